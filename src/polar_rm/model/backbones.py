"""Stock transformers backbones: reading their configs, weights and tokenizers from a folder, with checks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from polar_rm import attention
from polar_rm.common.sources import model_folder
from polar_rm.common.text import first_line
from polar_rm.encoding.tokenizers import load_tokenizer
from polar_rm.errors import PolarError, UnsupportedModel
from polar_rm.model.bars import without_bars
from polar_rm.model.folders import check_config_file, check_gguf_sizes, rope_refusals
from polar_rm.model.language_models import gguf_options, load_auto_tokenizer
from polar_rm.model.native import new_embeddings, read_specials, with_named_bos

SUPPORTED = ("llama", "qwen2", "qwen3", "mistral")
"""Families on which trees are known to be exact. Others are admitted if they are built alike and pass the equality check."""

# Sizes that a plan of a run, the vocabulary of a new model and the first layers of a backbone are made of. Configs of several
# parts have none of them at the top.
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def read_config(directory: str | Path, gguf_file: str | None = None) -> PretrainedConfig:
    """A model folder's config.

    Raises:
        UnsupportedModel: transformers doesn't know the model, it is no single decoder, or prefix trees are not exact with it.
        PolarError: there is no such folder.
    """
    directory = model_folder(directory)
    if gguf_file is None:
        check_config_file(directory)
    else:
        check_gguf_sizes(Path(directory) / gguf_file)
    options = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, **options)
    except Exception as error:  # on a bad value transformers raises any type of error
        raise UnsupportedModel(f"{directory}: {first_line(error)}") from error
    for reason in rope_refusals(config.to_dict()):  # from a GGUF, or a default of the model family
        raise UnsupportedModel(f"{directory}: {reason}")
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        raise UnsupportedModel(f"{directory}: {config.model_type} with a sliding window: prefix trees need full causal attention")
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        raise UnsupportedModel(f"{directory}: {config.model_type} is not a causal decoder")
    if missing := [key for key in _SIZES if type(getattr(config, key, None)) is not int]:
        raise UnsupportedModel(f"{directory}: {not_supported(config, f'its config has no {missing[0]}')}")
    return config


def not_supported(config: PretrainedConfig, reason: str) -> str:
    """Why a family is refused, with the families that are known to be exact."""
    return f"backbones of type {config.model_type!r} are not supported (known: {', '.join(SUPPORTED)}): {reason}"


@contextmanager
def _without_report() -> Iterator[None]:
    """Within the block transformers does not list missing and unexpected tensors, which are checked here: of a language model the
    head is always missing, and the advice to train it is no news to who makes a reward model."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return record.module != "loading_report" and not str(record.msg).startswith("Some weights of")

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@without_bars()
def load_backbone(
    directory: str | Path,
    config: PretrainedConfig,
    dtype: str,
    device: str,
    implementation: str | None,
    *,
    new_head: bool,
    gguf_file: str | None = None,
) -> PreTrainedModel:
    """Load the classifier in a folder with its weights.

    config: the model to build. dtype, implementation: as in ``RewardModel``. new_head: the folder holds no head; the caller
    sets its values.

    Raises:
        UnsupportedModel: a tensor is missing, has another shape, is not finite, or transformers can't read the weights.
    """
    options: dict[str, Any] = {"config": config, "dtype": dtype_of(dtype), "trust_remote_code": False}
    options |= gguf_options(gguf_file)
    try:
        with _without_report():
            backbone, loading = AutoModelForSequenceClassification.from_pretrained(
                directory,
                attn_implementation=attention_name(implementation, device),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the tensor's name
                **options,
            )
    except Exception as error:  # on a bad value transformers raises any type of error
        raise UnsupportedModel(f"{directory}: {first_line(error)}") from error
    for mismatched in sorted(loading["mismatched_keys"]):
        if isinstance(mismatched, str):  # transformers 4 gives only names
            raise UnsupportedModel(f"{directory}: tensor {mismatched!r} has another shape than config.json says")
        name, shape, expected = mismatched[0], list(mismatched[1]), list(mismatched[2])
        raise UnsupportedModel(f"{directory}: tensor {name!r} has the shape {shape}, but config.json says {expected}")
    # transformers fills missing tensors at random and only warns: a reloaded model would score noise (trl 381).
    missing = {key for key in loading["missing_keys"] if not (new_head and key == "score.weight")}
    if missing:
        raise UnsupportedModel(f"{directory}: {len(missing)} tensors are missing, first {min(missing)!r}")
    for name, tensor in backbone.state_dict().items():
        if not (new_head and name == "score.weight") and not torch.isfinite(tensor).all():
            raise UnsupportedModel(f"{directory}: tensor {name!r} holds NaN or infinite values")
    return backbone


def read_tokenizer(directory: str | Path, gguf_file: str | None) -> tuple[Tokenizer, dict[str, str]]:
    """A language model's fast tokenizer, and its special tokens by name (see :func:`polar_rm.model.native.read_specials`)."""
    if gguf_file is None:
        specials = read_specials(directory)
        return with_named_bos(load_tokenizer(directory), directory, specials), specials
    tokenizer = load_auto_tokenizer(directory, gguf_file)
    texts = {key: getattr(tokenizer, key, None) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return tokenizer.backend_tokenizer, {key: text for key, text in texts.items() if text}


def keep_layers(config: PretrainedConfig, n_layers: int) -> None:
    """Change a config so that it has only its first layers."""
    config.num_hidden_layers = n_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:n_layers]


def add_embeddings(backbone: PreTrainedModel, vocabulary: int, known: Iterable[int], added: Sequence[int], seed: int) -> None:
    """Initialise the embedding rows of new tokens; the table grows to ``vocabulary`` rows if it has fewer.

    known: ids of the tokenizer. added: ids of role tokens that the language model was not trained with. Many tables have more
    rows than their tokenizer has ids: those are padding, often zeros, and must not influence the new rows.
    """
    rows = backbone.get_input_embeddings().weight.shape[0]
    if vocabulary > rows:
        backbone.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():
        table = backbone.get_input_embeddings().weight
        new = sorted({*added, *range(rows, vocabulary)})
        if new:
            trained = _rows(table, sorted(index for index in {*known} - {*new} if index < rows))
            table[torch.tensor(new, device=table.device)] = new_embeddings(trained, len(new), seed)


def find_untrained(table: torch.Tensor, ids: Sequence[int]) -> list[int]:
    """The ids whose embedding rows were never trained: they are almost zero, or equal to the row of another of the ids.

    table: the embedding, [vocabulary, width].
    """
    rows = table[torch.tensor(list(ids), dtype=torch.long, device=table.device)].float()
    typical = table[: 1 << 12].float().norm(dim=1).mean()
    equal = (rows[:, None] == rows[None]).all(-1).sum(1) > 1
    return [
        index for index, same, norm in zip(ids, equal.tolist(), rows.norm(dim=1), strict=True) if same or norm < 1e-3 * typical
    ]


def _rows(table: torch.Tensor, indices: list[int]) -> torch.Tensor:
    """Rows of a table; a view where they are its first rows, because a table may have gigabytes."""
    first = indices == list(range(len(indices)))
    return table[: len(indices)] if first else table[torch.tensor(indices, device=table.device)]


def attention_name(name: str | None, device: str) -> str:
    """The name of a registered tree attention; by default the fast one for the device."""
    attention.register()
    return name or attention.default_attention(torch.device(device))


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a name: float32, bfloat16 or float16.

    Raises:
        PolarError: the name is another.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise PolarError(f"unknown dtype {name!r}; known: {', '.join(known)}")
    return known[name]

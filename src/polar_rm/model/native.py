"""The native checkpoint: a stock ``*ForSequenceClassification`` folder with one label, safetensors and no remote code.

It loads with ``AutoModelForSequenceClassification``, and vLLM and SGLang serve it unchanged. ``config.json`` has one section of
ours, ``polar``, with the encoder's settings and hash and the parts that were never trained. Writing is atomic: a killed or failed
save never leaves a folder that looks complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PretrainedConfig

from polar_rm.common.files import atomic_directory, read_json, write_file, write_json
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import REWARD_TOKEN, SEPARATOR_TOKEN
from polar_rm.encoding.tokenizers import leading_ids
from polar_rm.errors import PolarError
from polar_rm.model.weights import LazyTensor, write_shards

# The keys that other loaders need. The rest of tokenizer_config.json concerns chat, which a reward model does not need.
_TOKENIZER_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token")

HEAD = "head"
"""The name of the head among the parts that were never trained. The other parts are role tokens, named by their texts."""


def save_native(
    directory: str | Path,
    config: PretrainedConfig,
    weights: Mapping[str, torch.Tensor],
    encoder: Encoder,
    specials: Mapping[str, str],
    untrained: Sequence[str] = (),
) -> None:
    """Write a complete checkpoint.

    weights: named as in the transformers model. specials: as in :func:`read_specials`. untrained: as in :func:`native_config`.
    """
    tensors = {name: LazyTensor.of(tensor) for name, tensor in weights.items()}
    values = native_config(config.to_dict(), tensors, encoder, untrained)
    write_checkpoint(directory, values, tensors, tokenizer_files(encoder, specials))


def native_config(
    values: Mapping[str, Any], tensors: Mapping[str, LazyTensor], encoder: Encoder, untrained: Sequence[str] = ()
) -> dict[str, Any]:
    """The content of ``config.json``: a transformers config's values, readable by transformers 4 and 5, with our section.

    untrained: the parts that were never trained: :data:`HEAD`, and role tokens by their texts.
    """
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    section: dict[str, Any] = {"encoder": encoder.to_config()} | ({"untrained": list(untrained)} if untrained else {})
    # transformers 4 reads torch_dtype, transformers 5 reads dtype.
    values = {**values, "dtype": dtype, "torch_dtype": dtype, "polar": section}
    if rope := values.get("rope_parameters"):
        # Without its own two keys, transformers 4 would silently compute with a theta of 10000.
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        is_default = scaling.get("rope_type", "default") == "default"
        values |= {"rope_theta": rope["rope_theta"], "rope_scaling": None if is_default else scaling}
    return {key: value for key, value in values.items() if not key.startswith("_")}


def read_untrained(directory: str | Path) -> tuple[str, ...]:
    """The parts of a saved model that were never trained, as in :func:`native_config`; empty if none is recorded.

    Raises:
        PolarError: ``polar.untrained`` in ``config.json`` is not a list of texts.
    """
    path = Path(directory) / "config.json"
    section = read_json(path).get("polar")
    parts = section.get("untrained", []) if isinstance(section, dict) else []
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise PolarError(f"{path}: polar.untrained: expected a list of texts, not {parts!r:.60}")
    return tuple(parts)


def untrained_warning(name: str | Path, parts: Sequence[str]) -> str:
    """One line about a model's parts that were never trained."""
    tokens = [part for part in parts if part != HEAD]
    named = [*(["its head"] if HEAD in parts else []), *([f"its tokens {' and '.join(tokens)}"] if tokens else [])]
    advice = "fine-tune it on comparisons first"
    if HEAD not in parts:
        advice += ", or evaluate the original reward model with --model hf:FOLDER"
    return f"{name}: {' and '.join(named)} were never trained, so its scores mean nothing: {advice}"


def write_checkpoint(
    directory: str | Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], files: Mapping[str, bytes]
) -> None:
    """Write a whole folder, atomically and one shard at a time. config: the values of ``config.json``. files: relative path ->
    content."""
    with atomic_directory(directory) as folder:
        write_shards(folder, tensors)
        write_json(folder / "config.json", config)
        for name, content in files.items():
            write_file(folder / name, content)


def read_specials(directory: str | Path) -> dict[str, str]:
    """The texts of the BOS, EOS, unknown and padding tokens that ``tokenizer_config.json`` names, by key.

    Raises:
        PolarError: a token is neither a text nor an object with ``content``.
    """
    path = Path(directory) / "tokenizer_config.json"
    if not path.is_file():
        return {}
    values = read_json(path)
    texts: dict[str, str] = {}
    for key in _TOKENIZER_KEYS:
        token = values.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str) and token is not None:
            raise PolarError(f"{path}: {key}: expected a token's text, not {token!r:.60}")
        if text:
            texts[key] = text
    return texts


def with_named_bos(tokenizer: Tokenizer, directory: str | Path, specials: Mapping[str, str]) -> Tokenizer:
    """The tokenizer, or a copy that adds BOS before a text where only ``tokenizer_config.json`` asks for it.

    DeepSeek's distilled models, which were trained with BOS, are saved with ``add_bos_token: true`` beside a ``tokenizer.json``
    that adds none.
    """
    path = Path(directory) / "tokenizer_config.json"
    bos = specials.get("bos_token")
    if bos is None or read_json(path).get("add_bos_token") is not True or leading_ids(tokenizer):
        return tokenizer
    bos_id = tokenizer.token_to_id(bos)
    if bos_id is None:
        raise PolarError(f"{path}: bos_token is {bos!r}, which the tokenizer does not have")
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    template = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, bos_id)])
    existing = tokenizer.post_processor
    tokenizer.post_processor = template if existing is None else processors.Sequence([existing, template])
    return tokenizer


def add_role_tokens(tokenizer: Tokenizer, reward_token: str = REWARD_TOKEN) -> Tokenizer:
    """A copy of the tokenizer in which the separator and the reward token are special and atomic."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (SEPARATOR_TOKEN, reward_token)])
    return tokenizer


def new_embeddings(known: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Rows for added tokens, [count, width]: the mean embedding plus noise, so that the two role tokens start different."""
    table = known.float()
    noise = torch.randn(count, table.shape[1], generator=torch.Generator().manual_seed(seed))
    return (table.mean(0) + noise.to(table.device) * table.std(0)).to(known.dtype)


def padding_token(specials: Mapping[str, str]) -> str:
    """The token to use as padding. It must not be the reward token: other loaders pool at the last token that is not padding.

    Raises:
        PolarError: the tokenizer has no special token that can be used.
    """
    for key in ("pad_token", "eos_token", "unk_token", "bos_token"):
        if key in specials:
            return specials[key]
    raise PolarError("the tokenizer names no padding, EOS, unknown or BOS token; one is needed as padding")


def tokenizer_files(encoder: Encoder, specials: Mapping[str, str]) -> dict[str, bytes]:
    """The tokenizer's two files: name -> content."""
    settings = json.dumps(tokenizer_config(encoder, specials), indent=2, ensure_ascii=False)
    return {"tokenizer.json": encoder.source.to_str(pretty=True).encode(), "tokenizer_config.json": settings.encode()}


def tokenizer_config(encoder: Encoder, specials: Mapping[str, str]) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``, readable by transformers 4 and 5.

    We write it ourselves because transformers 4 can't read what transformers 5 writes (``TokenizersBackend``).
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **specials,
        "additional_special_tokens": [encoder.settings.separator_token, encoder.settings.reward_token],
        "model_max_length": encoder.settings.max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }

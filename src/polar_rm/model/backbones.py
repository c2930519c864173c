"""Stock transformers backbones: configs, weights and tokenizers read from a folder, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from polar_rm import attention
from polar_rm.common.paths import no_model
from polar_rm.encoding.tokenizers import load_tokenizer
from polar_rm.errors import PolarError, UnsupportedModel
from polar_rm.model.language_models import gguf_options, load_auto_tokenizer
from polar_rm.model.native import new_embeddings, read_specials

SUPPORTED = ("llama", "qwen2", "qwen3", "mistral")


def read_config(directory: str | Path, gguf_file: str | None = None) -> PretrainedConfig:
    """A model folder's config.

    Raises:
        UnsupportedModel: transformers doesn't know it, or prefix trees are not exact with it. PolarError: no such folder.
    """
    if not Path(directory).is_dir():
        raise PolarError(no_model(directory))
    options = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, **options)
    except (ValueError, OSError, KeyError) as error:
        raise UnsupportedModel(f"{directory}: {first_line(error)}") from error
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        raise UnsupportedModel(f"{directory}: {config.model_type} with a sliding window: prefix trees need full causal attention")
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        raise UnsupportedModel(f"{directory}: {config.model_type} is not a causal decoder")
    return config


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
    options: dict[str, Any] = {"config": config, "dtype": dtype_of(dtype), "trust_remote_code": False}
    options |= gguf_options(gguf_file)
    try:
        backbone, loading = AutoModelForSequenceClassification.from_pretrained(
            directory,
            attn_implementation=attention_name(implementation, device),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **options,
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UnsupportedModel(f"{directory}: {first_line(error)}") from error
    for name, *shapes in sorted(loading["mismatched_keys"]):
        found, expected = (list(shape) for shape in shapes)
        raise UnsupportedModel(f"{directory}: tensor {name!r} has the shape {found}, by config.json it is {expected}")
    # transformers fills missing tensors at random and only warns: a reloaded model would score noise (trl 381).
    missing = {key for key in loading["missing_keys"] if not (new_head and key == "score.weight")}
    if missing:
        raise UnsupportedModel(f"{directory}: {len(missing)} tensors are missing, first {min(missing)!r}")
    for name, tensor in backbone.state_dict().items():
        if not (new_head and name == "score.weight") and not torch.isfinite(tensor).all():
            raise UnsupportedModel(f"{directory}: tensor {name!r} holds NaN or infinite values")
    return backbone


def read_tokenizer(directory: str | Path, gguf_file: str | None) -> tuple[Tokenizer, dict[str, str]]:
    if gguf_file is None:
        return load_tokenizer(directory), read_specials(directory)
    tokenizer = load_auto_tokenizer(directory, gguf_file)
    texts = {key: getattr(tokenizer, key, None) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return tokenizer.backend_tokenizer, {key: text for key, text in texts.items() if text}


def keep_layers(config: PretrainedConfig, n_layers: int) -> None:
    config.num_hidden_layers = n_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:n_layers]


def add_embeddings(backbone: PreTrainedModel, vocabulary: int, seed: int) -> None:
    old = backbone.get_input_embeddings().weight.shape[0]
    if vocabulary <= old:
        return
    backbone.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():
        table = backbone.get_input_embeddings().weight
        table[old:] = new_embeddings(table[:old], vocabulary - old, seed)


def attention_name(name: str | None, device: str) -> str:
    attention.register()
    return name or attention.default_attention(torch.device(device))


def dtype_of(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise PolarError(f"unknown dtype {name!r}; known: {', '.join(known)}")
    return known[name]


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]

"""Checks of a model folder's ``config.json``, before transformers reads it and builds the model.

A folder may come from an untrusted source, and a ``config.json`` of a few kilobytes can ask for any amount of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from polar_rm.common.files import read_json
from polar_rm.errors import UnsupportedModel
from polar_rm.model.gguf_files import gguf_metadata
from polar_rm.model.weights import tensor_shapes

# Sizes under all the names that families give them, and the most that each may be: several times that of any model. What they
# multiply to is held against the weights and against the machine's memory.
_MAX_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 10_000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 1 << 18),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "num_heads", "head_dim"), 1 << 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 1 << 30),
    "intermediate_size": 1 << 22,
    "vocab_size": 1 << 24,
}
# Sizes that not every model has: none of them is zero elsewhere.
_FURTHER_MAX_SIZES = {
    "num_labels": 1 << 16,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts"), 1 << 14),
    **dict.fromkeys(("n_inner", "d_ff", "moe_intermediate_size", "shared_expert_intermediate_size"), 1 << 22),
}
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
# The same in the metadata of a GGUF, behind the architecture's name.
_GGUF_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "expert_count": "num_experts",
}
MAX_DEPTH = 50
"""Levels of objects and lists in a config; composite models have five."""
_NUMBERS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta")
_OPTIONAL = ("num_key_value_heads", "head_dim", "rope_theta")
# RoPE types whose frequencies depend on the longest position of a row, under all their names. With them a score would depend on
# the other items of its row.
_ROW_ROPE = ("dynamic", "longrope", "su")
_ROPE_SECTIONS = ("rope_scaling", "rope_parameters")
# Quantisation methods that transformers decompresses into ordinary weights.
_READABLE_QUANTISATION = ("fp8",)


def check_config_file(folder: str | Path) -> None:
    """Check a folder's ``config.json``.

    Raises:
        UnsupportedModel: names the first value that no model can have, or with which tree attention is not exact.
        PolarError: the file is missing or not JSON.
    """
    path = Path(folder) / "config.json"
    for reason in _refusals(check_sizes(path)):
        raise UnsupportedModel(f"{path}: {reason}")


def check_sizes(path: Path) -> dict[str, Any]:
    """The values of a ``config.json``, where a library may build what they say.

    Raises:
        UnsupportedModel: a size or a number is none or beyond all models, a value is of another type than elsewhere, or it is
            nested deeply. PolarError: it is no JSON object.
    """
    values = read_json(path)
    if _is_deeper(values, MAX_DEPTH):
        raise UnsupportedModel(f"{path}: nested deeper than {MAX_DEPTH} levels")
    for reason in (*_no_sizes(values), *_too_large(values), *_no_numbers(values), *_of_other_types(values)):
        raise UnsupportedModel(f"{path}: {reason}")
    return values


def check_gguf_sizes(path: Path) -> None:
    """The same of a GGUF's metadata, as far as a config is made of it.

    Raises:
        UnsupportedModel: a size is beyond all models. PolarError: it is no GGUF.
    """
    for key, value in gguf_metadata(path, tuple(_GGUF_SIZES)).items():
        sizes = value if isinstance(value, list) else [value]  # some have one for each layer
        for reason in _too_large({_GGUF_SIZES[key]: max(sizes, default=0)}):
            raise UnsupportedModel(f"{path}: {reason}")


def _no_sizes(values: Mapping[str, Any]) -> Iterator[str]:
    for key in _MAX_SIZES:
        value = values.get(key)
        if (key in values and not (value is None and key in _OPTIONAL)) and (type(value) is not int or value < 1):
            yield f"{key} is {_short(value)}: expected a positive integer"


def _too_large(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Sizes beyond all models, those of the parts of a composite one included."""
    for key, value in values.items():
        limit = _MAX_SIZES.get(key, _FURTHER_MAX_SIZES.get(key))
        if isinstance(value, dict):
            yield from _too_large(value, f"{above}{key}.")
        elif limit is not None and isinstance(value, int | float) and not value <= limit:
            yield f"{above}{key} is {value:,}: more than {limit:,}, and no model has as much"


def _no_numbers(values: Mapping[str, Any]) -> Iterator[str]:
    for key in _NUMBERS:
        value = values.get(key)
        if key in values and not (value is None and key in _OPTIONAL) and not _is_positive(value):
            yield f"{key} is {_short(value)}: expected a positive number"


def _of_other_types(values: Mapping[str, Any]) -> Iterator[str]:
    for key in _ROPE_SECTIONS:
        if not isinstance(values.get(key), dict | None):
            yield f"{key} is {_short(values[key])}: expected an object"
    names = values.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        yield f"architectures is {_short(names)}: expected a list of names"


def _refusals(values: Mapping[str, Any]) -> Iterator[str]:
    quantisation = values.get("quantization_config")
    if quantisation is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        if method not in _READABLE_QUANTISATION:
            yield f"its weights are quantised ({_short(method)}); a reward model needs the original, unquantised backbone"
    yield from rope_refusals(values)


def rope_refusals(values: Mapping[str, Any]) -> Iterator[str]:
    """Reasons to refuse the RoPE settings of a config, which is a dictionary in the form of transformers 4 or 5."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for key in _ROPE_SECTIONS:
        section = values.get(key)
        if not isinstance(section, dict):  # of another type it is refused by `check_sizes`
            continue
        nested = [each for each in section.values() if isinstance(each, dict)]
        for rope in [section, *nested]:
            kind = rope.get("rope_type", rope.get("type"))
            if isinstance(kind, str) and any(name in kind for name in _ROW_ROPE):
                yield (
                    f"{key} has the type {kind!r}, whose frequencies depend on the longest sequence of a row: an item's score "
                    "would depend on the items that it is scored with"
                )
            elif kind is not None and kind not in ("default", "mrope", *ROPE_INIT_FUNCTIONS):
                yield f"{key} has the unknown type {_short(kind)}; known: default, {', '.join(sorted(ROPE_INIT_FUNCTIONS))}"
            for name in ("rope_theta", "factor"):
                if rope.get(name) is not None and not _is_positive(rope[name]):
                    yield f"{key}.{name} is {_short(rope[name])}: expected a positive number"


def check_layers(folder: str | Path) -> None:
    """Check, before a model is built, that the weights have as many layers as ``config.json`` says; only names are read.

    Raises:
        UnsupportedModel: the weights have fewer layers.
        PolarError: there are no weights, or their index is damaged.
    """
    config = read_json(Path(folder) / "config.json")
    n_configured = next((config[key] for key in _LAYERS if key in config), 0)
    parts = [part for name in tensor_shapes(Path(folder)) for part in name.split(".")]
    n_stored = max((int(part) + 1 for part in parts if part.isdecimal() and len(part) < 9), default=0)
    if n_stored and n_stored < n_configured:
        raise UnsupportedModel(f"{folder}: config.json says {n_configured:,} layers, but the weights have {n_stored:,}")


def check_parameters(source: str | Path, model: Any, held: Mapping[str, tuple[int, ...]], n_held: int, n_new: int = 0) -> None:
    """Check, before a model is built, that its config asks for no more than twice as many parameters as the weights hold.

    model: the model on the meta device. held: names and shapes of the weights, as far as they are known, for the message.
    n_held: numbers in the weights. n_new: parameters that are in no weights.

    Raises:
        UnsupportedModel: it asks for more; the message has the numbers and the tensor that differs most.
    """
    asked = sum(parameter.numel() for parameter in model.parameters()) - n_new
    if asked > 2 * n_held:
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        name = max(shapes.keys() & held.keys(), key=lambda name: (prod(shapes[name]) - prod(held[name]), name), default=None)
        example = f": tensor {name!r} has the shape {list(held[name])}, by its config {list(shapes[name])}" if name else ""
        raise UnsupportedModel(f"{source}: its config asks for {asked:,} parameters, its weights hold {n_held:,}{example}")


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [inner for each in level if isinstance(each, dict | list) for inner in _inner(each)]
    return bool(level)


def _inner(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}..."

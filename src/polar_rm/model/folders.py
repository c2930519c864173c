"""What a model folder's small files may say, judged before transformers reads them and builds what they ask for.

A folder may come from anywhere: ``config.json`` and ``tokenizer.json`` of a few kilobytes can ask for any amount of memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polar_rm.common.files import read_json
from polar_rm.errors import UnsupportedModel
from polar_rm.model.weights import tensor_names

MAX_LAYERS = 10_000
"""No model has a tenth of it; a config that says more is refused before anything is built."""
MAX_DEPTH = 50
"""Levels of objects and lists in a config; composite models have five."""

# Sizes under all the names that families give them.
_SIZES = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size "
    "max_position_embeddings n_embd n_layer n_head n_positions d_model num_layers num_heads"
).split()
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_NUMBERS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta")
_OPTIONAL = ("num_key_value_heads", "head_dim", "rope_theta")
# Frequencies that go by the longest position of a row, under all their names: a score would depend on what it is packed with.
_ROW_ROPE = ("dynamic", "longrope", "su")
# Decompressed by transformers into ordinary weights.
_READABLE_QUANTISATION = ("fp8",)


def check_config_file(folder: str | Path) -> None:
    """Raises UnsupportedModel with the first thing in ``config.json`` that no model can have, or that we can't use exactly.
    PolarError: it is no JSON."""
    path = Path(folder) / "config.json"
    values = read_json(path)
    if _is_deeper(values, MAX_DEPTH):
        raise UnsupportedModel(f"{path}: nested deeper than {MAX_DEPTH} levels")
    for reason in _refusals(values):
        raise UnsupportedModel(f"{path}: {reason}")


def _refusals(values: Mapping[str, Any]) -> Iterator[str]:
    for key in _SIZES:
        value = values.get(key)
        if (key in values and not (value is None and key in _OPTIONAL)) and (type(value) is not int or value < 1):
            yield f"{key} is {_short(value)}: expected a positive integer"
    for key in _LAYERS:
        if values.get(key, 0) > MAX_LAYERS:
            yield f"{key} is {values[key]:,}: more than {MAX_LAYERS:,}"
    for key in _NUMBERS:
        value = values.get(key)
        if key in values and not (value is None and key in _OPTIONAL) and not _is_positive(value):
            yield f"{key} is {_short(value)}: expected a positive number"
    quantisation = values.get("quantization_config")
    if quantisation is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        if method not in _READABLE_QUANTISATION:
            yield f"its weights are quantised ({_short(method)}); a reward model needs a backbone that is not, use the original"
    yield from rope_refusals(values)


def rope_refusals(values: Mapping[str, Any]) -> Iterator[str]:
    """Why positions of a config (as a dictionary, of transformers 4 or 5) are not taken."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for key in ("rope_scaling", "rope_parameters"):
        section = values.get(key)
        if section is None:
            continue
        if not isinstance(section, dict):
            yield f"{key} is {_short(section)}: expected an object"
            return
        nested = [each for each in section.values() if isinstance(each, dict)]
        for rope in [section, *nested]:
            kind = rope.get("rope_type", rope.get("type"))
            if isinstance(kind, str) and any(name in kind for name in _ROW_ROPE):
                yield (
                    f"{key} is of the type {kind!r}, whose frequencies depend on the longest sequence of a row: an item's score "
                    "would depend on what it is scored with"
                )
            elif kind is not None and kind not in ("default", "mrope", *ROPE_INIT_FUNCTIONS):
                yield f"{key} has the unknown type {_short(kind)}; known: default, {', '.join(sorted(ROPE_INIT_FUNCTIONS))}"
            for name in ("rope_theta", "factor"):
                if rope.get(name) is not None and not _is_positive(rope[name]):
                    yield f"{key}.{name} is {_short(rope[name])}: expected a positive number"


def check_layers(folder: str | Path) -> None:
    """Whether the weights hold as many layers as ``config.json`` says, by their names alone: it is asked before they are built.

    Raises:
        PolarError: no weights, or a damaged index. UnsupportedModel: fewer layers.
    """
    config = read_json(Path(folder) / "config.json")
    said = next((config[key] for key in _LAYERS if key in config), 0)
    parts = [part for name in tensor_names(Path(folder)) for part in name.split(".")]
    found = max((int(part) + 1 for part in parts if part.isdecimal() and len(part) < 9), default=0)
    if found and found < said:
        raise UnsupportedModel(f"{folder}: config.json says {said:,} layers, its weights hold {found:,}")


def _is_deeper(value: Any, levels: int) -> bool:
    here = [value]
    for _ in range(levels):
        here = [inner for each in here if isinstance(each, dict | list) for inner in _inner(each)]
    return bool(here)


def _inner(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}..."

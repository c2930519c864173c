"""Sizes of models that are trained from scratch."""

from __future__ import annotations

import re
from typing import Any

from transformers import LlamaConfig, PretrainedConfig

from polar_rm.errors import PolarError

# Hidden size, layers, heads, key/value heads, feed-forward size. The name is the number of backbone parameters without the
# embedding; 50m to 1b cover the range of the paper's scaling law (section 4.4, which gives no shapes). 1.8b and 7b have the
# shapes of InternLM2.5, on which the published models were built, and its names, which count the embedding.
PRESETS: dict[str, tuple[int, int, int, int, int]] = {
    "1m": (128, 4, 4, 2, 384),
    "5m": (256, 6, 4, 2, 768),
    "15m": (384, 8, 6, 2, 1152),
    "50m": (640, 10, 10, 5, 1792),
    "100m": (768, 14, 12, 4, 2304),
    "200m": (1024, 16, 16, 8, 3072),
    "400m": (1280, 20, 20, 10, 3840),
    "1b": (2048, 22, 16, 8, 5632),
    "1.8b": (2048, 24, 16, 8, 8192),
    "7b": (4096, 32, 32, 8, 14336),
}

_LAYERS_AND_WIDTH = re.compile(r"([1-9]\d{0,2})x([1-9]\d{0,4})")


def preset_shape(preset: str) -> tuple[int, int, int, int, int]:
    """Hidden size, layers, heads, key/value heads and feed-forward size of a name of ``PRESETS`` or of ``LAYERSxWIDTH``, in
    capitals or not.

    ``8x384`` has 8 layers and a hidden size of 384. Heads are 64 wide, or 32 where the width is below 256 or no multiple of 64.
    Two heads share keys and values if their number is even, and the feed-forward size is three times the width.

    Raises:
        PolarError: the name is neither, or the width is no multiple of 32.
    """
    if (name := preset.lower()) in PRESETS:
        return PRESETS[name]
    match = _LAYERS_AND_WIDTH.fullmatch(name)
    if match is None:
        raise PolarError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}, or LAYERSxWIDTH such as 8x384")
    layers, width = int(match[1]), int(match[2])
    if width % 32:
        raise PolarError(f"preset {preset!r}: the width must be a multiple of 32, the width of a head")
    heads = width // (64 if width >= 256 and width % 64 == 0 else 32)
    return width, layers, heads, heads // 2 if heads % 2 == 0 else heads, 3 * width


def preset_config(preset: str, **options: Any) -> PretrainedConfig:
    """The config of a one-label Llama of a size that :func:`preset_shape` knows. options: further arguments of its config."""
    hidden, layers, heads, key_value_heads, feed_forward = preset_shape(preset)
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=feed_forward,
        num_labels=1,
        **options,
    )

"""Sizes of models that are trained from scratch."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, PretrainedConfig

# Hidden size, layers, heads, key/value heads, feed-forward size. The name is the number of backbone parameters without the
# embedding; 50m to 1b cover the range of the paper's scaling law (section 4.4, which gives no shapes).
PRESETS: dict[str, tuple[int, int, int, int, int]] = {
    "1m": (128, 4, 4, 2, 384),
    "5m": (256, 6, 4, 2, 768),
    "15m": (384, 8, 6, 2, 1152),
    "50m": (640, 10, 10, 5, 1792),
    "100m": (768, 14, 12, 4, 2304),
    "200m": (1024, 16, 16, 8, 3072),
    "400m": (1280, 20, 20, 10, 3840),
    "1b": (2048, 22, 16, 8, 5632),
}


def preset_config(preset: str, **options: Any) -> PretrainedConfig:
    """The config of a one-label Llama with a size from ``PRESETS``. options: further arguments of its config."""
    hidden, layers, heads, key_value_heads, feed_forward = PRESETS[preset]
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=feed_forward,
        num_labels=1,
        **options,
    )

"""The official layout, InternLM2ForRewardModel, into a native Llama checkpoint and back. No remote code is read or run.

Both layouts compute the same function: RoPE, RMSNorm and the order of the heads are Llama's; names differ, and q, k and v are
one matrix, packed per key/value head: rows are [kv_heads, groups of q, then k, then v, head_dim].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from polar_rm.checkpoints.plan import Conversion, encoder_settings, lengths_note
from polar_rm.checkpoints.native import native_config, read_specials
from polar_rm.checkpoints.tokenizer import fast_tokenizer
from polar_rm.checkpoints.weights import LazyTensor, check_names, check_shapes, read_weights
from polar_rm.encoding import SEPARATOR_TOKEN, Encoder
from polar_rm.errors import PolarError, UnsupportedModel
from polar_rm.files import read_json

ARCHITECTURE = "InternLM2ForRewardModel"

# Kept in the native folder, so that the way back restores what an official set-up expects.
KEPT = "internlm2"
_KEPT_FILES = ("config.json", "tokenizer_config.json", "tokenizer.model")

# (Llama, InternLM2); everything but q, k and v, which are packed.
_OUTER = [("model.embed_tokens", "model.tok_embeddings"), ("model.norm", "model.norm"), ("score", "v_head")]
_INNER = [
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("mlp.down_proj", "feed_forward.w2"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
]

# The same in both configs. pad_token_id and the like are required: the official class's defaults are another model's.
_SAME = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings rms_norm_eps "
    "bos_token_id eos_token_id pad_token_id"
).split()


def from_internlm2(folder: Path) -> Conversion:
    """What :func:`polar_rm.checkpoints.convert.convert` writes for an official folder.

    Raises:
        UnsupportedModel: the native checkpoint would not give exactly its scores; the message says why.
    """
    config = read_json(folder / "config.json")
    _check_official(folder, config)
    shape = Shape(config)
    tensors = read_weights(folder)
    if "v_head.weight" not in tensors:
        raise UnsupportedModel(f"{folder}: has no reward head: tensor 'v_head.weight' is missing")
    check_shapes(folder, tensors, {**shape.official(), "v_head.weight": (1, shape.hidden)})
    encoder = _encoder(folder, config)
    notes = ["the official client's clean-up of spaces before punctuation is repeated (clean_up: true)"]
    if config.get("rope_scaling"):
        notes.append(
            f"dynamic RoPE scaling becomes plain RoPE: it acts beyond {config['max_position_embeddings']:,} tokens only, and "
            f"sequences are at most {encoder.settings.max_length:,}"
        )
    notes += lengths_note(encoder.settings)
    native = {llama: tensors[f"{official}.weight"] for llama, official in shape.pairs()}
    for layer in range(shape.layers):
        packed = tensors[f"model.layers.{layer}.attention.wqkv.weight"]
        for name, rows, part in shape.parts():
            key = f"model.layers.{layer}.self_attn.{name}.weight"
            native[key] = packed.then(part, (rows, shape.hidden))
    kept = {f"{KEPT}/{name}": (folder / name).read_bytes() for name in _KEPT_FILES}
    return Conversion(
        f"{ARCHITECTURE} -> LlamaForSequenceClassification",
        native_config(_llama_config(config, shape), native, encoder),
        native,
        encoder,
        read_specials(folder),
        kept,
        notes,
    )

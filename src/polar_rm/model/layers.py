"""Compilation and activation checkpointing of decoder layers for training.

Both replace a layer's ``forward``, so that FSDP's hooks stay outside. Call both before the model is sharded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import _dynamo as dynamo
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from polar_rm import attention
from polar_rm.model.backbones import SUPPORTED
from polar_rm.model.products import Product
from polar_rm.model.skipping import Chunked, LastLayer

# Parts of a layer that compute every token separately, so that they compile whatever the attention is.
_PARTS = ("mlp", "input_layernorm", "post_attention_layernorm")
# torch allows 8 of a function, and with a whole graph the ninth ends the run. Training, evaluation and comparisons that are split
# over their candidates need up to 7 of the last layer (torch 2.13), and a second model of another shape as many again.
_GRAPHS = 64


def compile_layers(backbone: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Compile every decoder layer. All layers share one graph for rows of any shape, except for the last, which has its own.

    dtype: the type in which attention computes. Returns False, and compiles only parts of each layer, for an attention that can't
    be part of a graph for all rows, and for a family whose layers we do not know.
    """
    layers, config = backbone.base_model.layers, backbone.config
    for part in layers.modules():
        if isinstance(part.forward, Chunked | Product):  # these objects differ by layer, so that each would get its own graph
            del part.forward
    known = config.model_type in SUPPORTED
    if not known or not attention.compiles(config._attn_implementation, backbone.device, dtype):
        for part in [getattr(layer, name) for layer in layers for name in _PARTS if hasattr(layer, name)]:
            part.compile(dynamic=True)
        return False
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _GRAPHS)
    for layer in layers:
        forward = layer.forward.__call__ if isinstance(layer.forward, LastLayer) else layer.forward
        layer.forward = torch.compile(forward, dynamic=True, fullgraph=True)
    return True


def checkpoint_activations(backbone: PreTrainedModel, n_layers: int | None = None) -> None:
    """In training keep only the inputs of layers and recompute the rest. Call it after :func:`compile_layers`.

    n_layers: of the first layers, whose activations are kept for the longest time; None for all layers.

    The checkpointing of transformers lies outside FSDP's hooks in some versions and inside compiled code in others, and it
    skips our last layer.
    """
    for layer in backbone.base_model.layers[:n_layers]:
        layer.forward = partial(_checkpointed, layer, layer.forward)


def _checkpointed(layer: nn.Module, forward: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    output: torch.Tensor = checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return output

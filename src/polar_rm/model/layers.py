"""How decoder layers are run in training: compiled, or computed twice to save memory. Both replace a layer's ``forward``, so that
FSDP's hooks stay outside; both are to be called before the model is sharded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from polar_rm import attention
from polar_rm.model.skipping import LastLayer


def compile_layers(backbone: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Compile every decoder layer, all of them into the same graph for rows of any shape; the last layer is another.

    dtype: what attention computes in. With an attention whose arguments are more than tensors, parts of layers are compiled
    instead, and the result is false.
    """
    layers = backbone.base_model.layers
    if not attention.compiles(backbone.config._attn_implementation, backbone.device, dtype):
        for layer in layers:
            for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
                part.compile(dynamic=True)
        return False
    for layer in layers:
        vars(layer.mlp).pop("forward", None)  # its chunks are an object of this layer, with which each would be another graph
        forward = layer.forward.__call__ if isinstance(layer.forward, LastLayer) else layer.forward
        layer.forward = torch.compile(forward, dynamic=True, fullgraph=True)
    return True


def checkpoint_activations(backbone: PreTrainedModel) -> None:
    """In training keep only what goes into each layer, and compute the rest again in the backward. After :func:`compile_layers`.

    transformers' own has its place outside of FSDP's hooks in some versions, inside of compiled code in others, and leaves our
    last layer out.
    """
    for layer in backbone.base_model.layers:
        layer.forward = partial(_checkpointed, layer, layer.forward)


def _checkpointed(layer: nn.Module, forward: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    output: torch.Tensor = checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return output

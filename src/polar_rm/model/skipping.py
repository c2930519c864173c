"""What we attach to stock modules so that they leave out or divide work, and why that is exact."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from polar_rm.attention import TreeLayout


def only_score_positions(decoder: Any) -> None:
    """In the last layer only keys and values are computed for every token; what comes after runs where a score is read.

    Nothing attends to a last layer's output, so scores and gradients stay the same. It saves nearly all of that layer: little in
    a deep model, a sixth in one of six layers. Hooks of the stock modules: what goes in is gathered, what comes out is
    scattered into zeros. Those of the layer itself run again where activation checkpointing calls it again, with its own row.
    """
    layer = decoder.layers[-1]
    layer.register_forward_pre_hook(_note, with_kwargs=True)
    for first, last in (
        (layer.self_attn.q_proj, layer.self_attn.q_proj),
        (layer.self_attn.o_proj, layer.self_attn.o_proj),
        (layer.post_attention_layernorm, layer.mlp),
        (decoder.norm, decoder.norm),
    ):
        first.register_forward_pre_hook(_gather)
        last.register_forward_hook(_scatter)


class _LastLayer(threading.local):
    """The row whose last layer this thread computes: threads may share a model, and all of them its hooks."""

    positions: torch.Tensor | None = None
    n_tokens = 0


_LAST_LAYER = _LastLayer()


def _note(
    layer: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]] | None:
    tree: TreeLayout | None = kwargs.get("tree")  # absent where transformers is called without us
    if tree is None:
        _LAST_LAYER.positions = None
        return None
    _LAST_LAYER.positions = tree.score_positions().to(args[0].device)
    _LAST_LAYER.n_tokens = args[0].shape[1]
    return args, kwargs | {"tree": tree.last}


def _gather(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    if _LAST_LAYER.positions is None:
        return None
    return (args[0][:, _LAST_LAYER.positions],)


def _scatter(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    if _LAST_LAYER.positions is None:
        return output
    return output.new_zeros(1, _LAST_LAYER.n_tokens, output.shape[-1]).index_copy(1, _LAST_LAYER.positions, output)


class InChunks:
    """Stands in for the ``forward`` of a module that treats every token alike, and on a CPU in inference mode gives it so many
    tokens at a time: what it computes in between then stays in the cache. For a whole row these would be the largest tensors of
    all, each in memory that the system has just handed out page by page. Compiled code keeps none of them, and would be compiled
    again for every number of chunks.
    """

    TOKENS = 512

    def __init__(self, module: nn.Module) -> None:
        self._whole = module.forward
        module.forward = self

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if not torch.is_inference_mode_enabled() or hidden.device.type != "cpu" or torch.compiler.is_compiling():
            whole: torch.Tensor = self._whole(hidden)
            return whole
        return torch.cat([self._whole(part) for part in hidden.split(self.TOKENS, 1)], 1)

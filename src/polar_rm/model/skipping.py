"""What we attach to stock modules so that they leave out or divide work, and why that is exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from polar_rm.attention import TreeTensors


def leave_out_work(backbone: PreTrainedModel) -> None:
    """Once for each backbone, which may be wrapped again."""
    layers = backbone.base_model.layers
    if hasattr(backbone, "leaves_out_work"):
        return
    LastLayer(layers[-1])
    for layer in layers[:-1]:
        InChunks(layer.mlp)
    backbone.leaves_out_work = True


def at_scores(backbone: PreTrainedModel, hidden: torch.Tensor, tree: TreeTensors) -> torch.Tensor:
    """[1, T or candidates, hidden], a backbone's output -> [candidates, hidden]"""
    return hidden[0] if hasattr(backbone, "leaves_out_work") else hidden[0, tree.scores]


class LastLayer:
    """Stands in for the ``forward`` of a last decoder layer: only keys and values are computed for every token, all else where a
    score is read. Given a tree it returns [1, candidates, hidden], at the score positions.

    Nothing attends to a last layer's output, so scores and gradients stay the same. It saves nearly all of that layer: little in
    a deep model, a sixth in one of six layers. Everything it goes by is an argument, so that threads may share a model, and
    activation checkpointing and compiled code see what they need.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer, self._whole = layer, layer.forward
        layer.forward = self

    def __call__(self, hidden_states: torch.Tensor, *args: Any, tree: TreeTensors | None = None, **kwargs: Any) -> torch.Tensor:
        if tree is None:  # transformers is called without us
            whole: torch.Tensor = self._whole(hidden_states, *args, **kwargs)
            return whole
        layer: Any = self._layer
        narrowed = _AtScores(layer.self_attn, tree.scores)
        normed = layer.input_layernorm(hidden_states)
        attended = type(layer.self_attn).forward(narrowed, normed, *args, tree=tree, scores_only=True, **kwargs)[0]
        hidden = hidden_states[:, tree.scores] + attended
        ends: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return ends


class _AtScores:
    """An attention module, to its own ``forward``, but for two projections. ``q_proj`` computes queries at the score positions
    and zeros elsewhere; ``o_proj`` takes its input there."""

    def __init__(self, module: Any, scores: torch.Tensor) -> None:
        self._module, self._scores = module, scores

    def q_proj(self, hidden: torch.Tensor) -> torch.Tensor:
        query: torch.Tensor = self._module.q_proj(hidden[:, self._scores])
        return query.new_zeros(1, hidden.shape[1], query.shape[-1]).index_copy(1, self._scores, query)

    def o_proj(self, attended: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._module.o_proj(attended[:, self._scores])
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


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
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled() or hidden.device.type != "cpu":
            whole: torch.Tensor = self._whole(hidden)
            return whole
        return torch.cat([self._whole(part) for part in hidden.split(self.TOKENS, 1)], 1)

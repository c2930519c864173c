"""Functions that we attach to stock modules so that they skip or split work, and the reasons why the result stays exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from polar_rm.attention import TreeTensors


def skip_unused_work(backbone: PreTrainedModel) -> None:
    """Attach the functions to a backbone; a second call, for a backbone that is wrapped again, changes nothing."""
    layers = backbone.base_model.layers
    if hasattr(backbone, "skips_unused_work"):
        return
    LastLayer(layers[-1])
    for layer in layers[:-1]:
        Chunked(layer.mlp)
    backbone.skips_unused_work = True


def hidden_at_scores(backbone: PreTrainedModel, hidden: torch.Tensor, tree: TreeTensors) -> torch.Tensor:
    """The output of a backbone, [1, T or candidates, hidden] -> hidden states at score positions, [candidates, hidden]"""
    return hidden[0] if hasattr(backbone, "skips_unused_work") else hidden[0, tree.scores]


class LastLayer:
    """Replaces the ``forward`` of the last decoder layer.

    Given a tree, it computes keys and values for every token and everything else only at score positions. It then returns the
    hidden states at the score positions, [1, candidates, hidden].

    Nothing attends to the last layer's output, so scores and gradients stay the same. It saves nearly all of that layer: little
    in a deep model, a sixth in a model of six layers. All its inputs are arguments, so that threads can share a model, and
    activation checkpointing and compiled code see them.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer, self._forward = layer, layer.forward
        layer.forward = self

    def __call__(self, hidden_states: torch.Tensor, *args: Any, tree: TreeTensors | None = None, **kwargs: Any) -> torch.Tensor:
        if tree is None:  # the backbone is used without a RewardModel
            unchanged: torch.Tensor = self._forward(hidden_states, *args, **kwargs)
            return unchanged
        layer: Any = self._layer
        self_attn = _AttentionAtScores(layer.self_attn, tree.scores)
        normed = layer.input_layernorm(hidden_states)
        attended = type(layer.self_attn).forward(self_attn, normed, *args, tree=tree, scores_only=True, **kwargs)[0]
        hidden = hidden_states[:, tree.scores] + attended
        output: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return output


class _AttentionAtScores:
    """Passed as ``self`` to the ``forward`` of an attention module. It is the module with two projections replaced: ``q_proj``
    computes queries at the score positions and gives zeros elsewhere; ``o_proj`` reads its input there."""

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


class Chunked:
    """Replaces the ``forward`` of a module that computes every token separately, such as an MLP.

    On a CPU in inference mode it passes ``TOKENS`` tokens at a time, so that the intermediate results stay in the cache. For a
    whole row they would be the largest tensors of all, each in memory that the system has just allocated page by page. Compiled
    code keeps no intermediate results, and would be compiled again for every number of chunks.
    """

    TOKENS = 512

    def __init__(self, module: nn.Module) -> None:
        self._forward = module.forward
        module.forward = self

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled() or hidden.device.type != "cpu":
            unchanged: torch.Tensor = self._forward(hidden)
            return unchanged
        return torch.cat([self._forward(part) for part in hidden.split(self.TOKENS, 1)], 1)

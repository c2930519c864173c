"""The oracle: one dense mask over the whole row. Its cost is quadratic in the row, so it is for tests and checks only."""

from __future__ import annotations

import torch

from polar_rm.attention.layout import TreeTensors


def dense_mask(tree: TreeTensors) -> torch.Tensor:
    """bool [T, T]: whether query i may attend to key j."""
    trees, branches, positions = tree.trees, tree.branches, tree.positions
    causal = torch.ones(len(trees), len(trees), dtype=torch.bool, device=trees.device).tril()
    same_tree = trees[:, None] == trees[None, :]
    in_prefix = (branches[None, :] == 0) & (positions[None, :] < tree.visible[:, None])
    visible = in_prefix | (branches[:, None] == branches[None, :])
    return causal & same_tree & visible


def tree_dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeTensors, scale: float, scores_only: bool = False
) -> torch.Tensor:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] -> [1, heads, T, dim].

    This is plain PyTorch code, which autograd differentiates and torch.compile compiles. All queries are computed.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale
    scores = scores.masked_fill(~dense_mask(tree), -torch.inf)
    return torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ value

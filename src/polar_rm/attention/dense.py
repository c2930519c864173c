"""The oracle: one dense mask over the whole row. Quadratic in the row, so for tests and checks only."""

from __future__ import annotations

import torch

from polar_rm.attention.layout import TreeLayout


def dense_mask(layout: TreeLayout) -> torch.Tensor:
    """bool [T, T]: whether query i may see key j."""
    tree, branch = layout.tree_and_branch_ids()
    causal = torch.ones(len(tree), len(tree), dtype=torch.bool).tril()
    same_tree = tree[:, None] == tree[None, :]
    visible = (branch[None, :] == 0) | (branch[:, None] == branch[None, :])
    return causal & same_tree & visible


def tree_dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TreeLayout, scale: float) -> torch.Tensor:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] -> [1, heads, T, dim]."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale
    scores = scores.masked_fill(~dense_mask(layout).to(query.device), -torch.inf)
    return torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ value

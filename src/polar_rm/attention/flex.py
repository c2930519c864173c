"""Tree attention on CUDA in any precision: one FlexAttention call per layer, with a block mask that all layers of a row share.

FlexAttention skips blocks that are fully masked, so the cost is that of the tree. Without a GPU the uncompiled function runs the
forward only; the tests compare it with the dense oracle.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.weak import WeakTensorKeyDictionary

from polar_rm.attention.layout import TreeTensors
from polar_rm.errors import PolarError


@cache
def _compiled() -> Any:
    # Every row has another length, and with static shapes each length would compile again.
    return torch.compile(flex_attention, dynamic=True)


# The tensor ``trees`` of each row that still exists -> the row's block mask, which all layers share.
_MASKS: Any = WeakTensorKeyDictionary()


def block_mask(row: TreeTensors) -> BlockMask:
    """The block mask of a row: which query may attend to which key. It is created for the first layer."""
    tree, branch, seen, position = row.trees, row.branches, row.visible, row.positions
    if tree not in _MASKS:

        def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            in_prefix = (branch[k] == 0) & (position[k] < seen[q])
            return (q >= k) & (copy[q] == copy[k]) & (in_prefix | (branch[q] == branch[k]))

        copy = tree.clone()  # the mask must not reference its own weak key, or it would never be freed
        _MASKS[tree] = create_block_mask(visible, None, None, len(tree), len(tree), device=tree.device)
    mask: BlockMask = _MASKS[tree]
    return mask


def tree_flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeTensors, scale: float, scores_only: bool = False
) -> torch.Tensor:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] -> [1, heads, T, dim]; differentiable on CUDA only."""
    if query.device.type == "cpu" and query.requires_grad:
        raise PolarError("attention tree_flex and tree_varlen have no backward on a CPU; use tree_cpu")
    function = _compiled() if query.device.type == "cuda" else flex_attention
    output: torch.Tensor = function(
        query,
        key,
        value,
        block_mask=block_mask(tree),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output

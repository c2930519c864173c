"""Tree attention on CUDA in any precision: one FlexAttention call per layer, with a block mask that all layers of a row share.

FlexAttention skips blocks that are wholly masked, so the cost is that of the tree. Without a GPU the uncompiled function runs
the forward only; the tests compare that with the dense oracle.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from polar_rm.attention.layout import TreeLayout
from polar_rm.errors import PolarError


@cache
def _compiled() -> Any:
    # Rows have ever-changing lengths: static shapes would compile again for each.
    return torch.compile(flex_attention, dynamic=True)


def block_mask(layout: TreeLayout, device: torch.device) -> BlockMask:
    """On a device, whether a query sees a key: ``tree_and_branch_ids`` of the row says so."""
    tree, branch = (ids.to(device) for ids in layout.tree_and_branch_ids())

    def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & (tree[q] == tree[k]) & ((branch[k] == 0) | (branch[q] == branch[k]))

    return create_block_mask(visible, None, None, layout.n_tokens, layout.n_tokens, device=device)


def tree_flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TreeLayout, scale: float) -> torch.Tensor:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] -> [1, heads, T, dim]; differentiable on CUDA only."""
    if query.device.type == "cpu" and query.requires_grad:
        raise PolarError("attention tree_flex has no backward on a CPU, nor has tree_varlen; use tree_cpu")
    function = _compiled() if query.device.type == "cuda" else flex_attention
    output: torch.Tensor = function(
        query,
        key,
        value,
        block_mask=layout.once(block_mask, query.device),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output

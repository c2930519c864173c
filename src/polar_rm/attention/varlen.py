"""Tree attention on CUDA in half precision: one variable-length call of torch's flash kernel per layer.

The kernel takes sequences with more keys than queries and aligns its causal mask with their ends. So a branch is a sequence whose
queries are its own tokens and whose keys are the prefix and its own, and a prefix is a sequence by itself: exactly the pairs of
the tree, whose softmax is complete in one call. Queries stay where they are in the row; keys are gathered, a prefix once per
branch, which in a grouped-query model is a small tensor. There is nothing to compile, whatever the lengths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from polar_rm.attention.flex import tree_flex
from polar_rm.attention.layout import TreeLayout

# The public torch.nn.attention.varlen is this pair of operators, with arguments that change from release to release.
_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward


class Sequences(NamedTuple):
    """A row as the kernel takes it. keys: int64 [T_k], the row's tokens that are keys, sequence by sequence. query_ends and
    key_ends: int32 [1 + sequences], both from 0."""

    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    most_queries: int
    most_keys: int


def sequences(layout: TreeLayout, device: torch.device) -> Sequences:
    """Each prefix, and each branch behind its prefix, in the order of the row."""
    keys, queries, seen = [], [], []
    for span in layout.spans:
        prefix = torch.arange(span.start, span.start + span.prefix)
        keys.append(prefix)
        queries.append(span.prefix)
        seen.append(span.prefix)
        for start, length in span.branch_starts():
            keys += [prefix, torch.arange(start, start + length)]
            queries.append(length)
            seen.append(span.prefix + length)
    query_ends, key_ends = (torch.tensor([0, *n]).cumsum(0).to(device, torch.int32) for n in (queries, seen))
    # With single queries alone the kernel takes its way for decoding, which has no backward.
    return Sequences(torch.cat(keys).to(device), query_ends, key_ends, max(2, *queries), max(seen))


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Sequences, scale: float
    ) -> torch.Tensor:
        """query [T, heads, dim], key and value [T, kv_heads, dim] -> [T, heads, dim]"""
        keys, values = key[row.keys], value[row.keys]
        output, log_sum_exp, *_ = _forward(query, keys, values, *row[1:], 0.0, True, False, scale=scale)
        ctx.save_for_backward(query, key, value, output, log_sum_exp)
        ctx.row, ctx.scale = row, scale
        return output  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, log_sum_exp = ctx.saved_tensors
        row: Sequences = ctx.row
        keys, values = key[row.keys], value[row.keys]
        dropout = torch.zeros(2, dtype=torch.uint64, device=key.device), torch.empty(0, device=key.device)  # none: state unread
        d_query, *d_gathered = _backward(
            gradient, query, keys, values, output, log_sum_exp, *row[1:], 0.0, True, *dropout, scale=ctx.scale
        )
        # A prefix collects the gradients of all its branches, in float32.
        d_key, d_value = (
            torch.zeros(key.shape, dtype=torch.float32, device=key.device).index_add_(0, row.keys, part.float()).to(key.dtype)
            for part in d_gathered
        )
        return d_query, d_key, d_value, None, None


def tree_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TreeLayout, scale: float) -> torch.Tensor:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] -> [1, heads, T, dim], differentiable.

    The kernel knows bfloat16 and float16, on GPUs from Ampere on; all else goes to :func:`tree_flex`.
    """
    if value.dtype.itemsize != 2 or value.device.type != "cuda" or torch.cuda.get_device_capability(value.device) < (8, 0):
        return tree_flex(query, key, value, layout, scale)
    by_token = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attend: Any = _VarlenAttention.apply
    output: torch.Tensor = attend(*by_token, layout.once(sequences, value.device), scale)
    return output.transpose(0, 1)[None]

"""Tree attention on a CPU: plain matrix products over blocks of query rows, each against only the keys that it may see.

A tree is a list of segments: the prefix on itself, and each branch on the prefix and itself. A segment's rows are taken in
blocks; a block's keys are one contiguous range, its softmax is complete (no log-sum-exp to merge), and only the small square on
the diagonal is masked. Heads that share a key/value head are folded into rows, so keys are never copied per head.

Against the flash kernel on the same segments this is about 1.4 times faster forwards and backwards (``benchmarks/attention.py``):
the CPU's flash kernel spends long in its backward. Inference in float32 is left to that kernel, which keeps no probabilities and
is faster without a backward. A dense mask over a row of many trees is several times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from polar_rm.attention.layout import TreeLayout

BLOCK = 128

# In bfloat16 a block's rows and keys are filled up to a multiple of this: there oneDNN builds code for every new shape of a
# product and keeps it, and no two trees have the same.
GRANULE = 32

# Probabilities kept for the backward, per call (one layer); segments beyond are recomputed. Short trees keep all of theirs,
# while a prefix of 16k tokens, whose probabilities would be gigabytes a layer, keeps none.
KEEP_BYTES = 64 << 20


class _Block(NamedTuple):
    """Rows ``[first, end)`` of the packed row, ``size`` with those filled up, and the ``visible`` first keys of their segment, of
    which the last ``own`` begin with the block's own."""

    first: int
    end: int
    size: int
    visible: int
    own: int

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """[kv_heads, groups, T, dim] -> [kv_heads, groups * size, dim], zeros where filled up"""
        rows = tensor[:, :, self.first : self.end]
        missing = self.size - (self.end - self.first)
        return (pad(rows, (0, 0, 0, missing)) if missing else rows).flatten(1, 2)

    def put(self, rows: torch.Tensor, target: torch.Tensor) -> None:
        """Undo :meth:`rows`."""
        kv_heads, groups, _, dim = target.shape
        target[:, :, self.first : self.end] = rows.view(kv_heads, groups, self.size, dim)[:, :, : self.end - self.first]


class _Segment:
    """Tokens ``[start, start + n)``, which see ``prefix`` keys from ``origin`` on (none for a prefix itself) and each other.
    Those from ``first`` on are queries. Sizes are filled up to multiples of ``granule``."""

    __slots__ = ("first", "granule", "n", "origin", "prefix", "start")

    def __init__(self, start: int, n: int, origin: int, prefix: int, first: int, granule: int) -> None:
        self.start, self.n, self.origin, self.prefix, self.first, self.granule = start, n, origin, prefix, first, granule

    def keys(self, tensor: torch.Tensor) -> torch.Tensor:
        """[kv_heads, prefix + n filled up with zeros, dim]"""
        own = tensor[:, self.start : self.start + self.n]
        if self.prefix:
            own = torch.cat([tensor[:, self.origin : self.origin + self.prefix], own], 1)
        missing = -own.shape[1] % self.granule
        return pad(own, (0, 0, 0, missing)) if missing else own

    def add_to(self, target: torch.Tensor, gradient: torch.Tensor) -> None:
        """Undo :meth:`keys` for a gradient: all branches add to the prefix that they share."""
        if self.prefix:
            target[:, self.origin : self.origin + self.prefix] += gradient[:, : self.prefix]
        target[:, self.start : self.start + self.n] += gradient[:, self.prefix : self.prefix + self.n]

    def blocks(self) -> Iterator[_Block]:
        for first in range(self.first, self.n, BLOCK):
            end = min(first + BLOCK, self.n)
            visible = self._filled(self.prefix + end)
            size = self._filled(end - first)
            yield _Block(self.start + first, self.start + end, size, visible, visible - self.prefix - first)

    def _filled(self, size: int) -> int:
        return size + -size % self.granule


def _segments(layout: TreeLayout, granule: int = 1) -> Iterator[_Segment]:
    for span in layout.spans:
        yield _Segment(span.start, span.prefix, span.start, 0, span.prefix if layout.scores_only else 0, granule)
        for start, length in span.branch_starts():
            yield _Segment(start, length, span.start, span.prefix, length - 1 if layout.scores_only else 0, granule)


def _granule(tensor: torch.Tensor) -> int:
    return GRANULE if tensor.dtype == torch.bfloat16 else 1


@lru_cache(512)
def _causal(rows: int, groups: int, dtype: torch.dtype) -> torch.Tensor:
    """[groups * rows, rows + GRANULE]: minus infinity above the diagonal, once for every head of the group."""
    return torch.full((rows, rows + GRANULE), -torch.inf, dtype=dtype).triu_(1).repeat(groups, 1)


def _probabilities(query: torch.Tensor, keys: torch.Tensor, block: _Block, groups: int) -> torch.Tensor:
    """Softmax of a block's (already scaled) queries on its visible keys."""
    scores = torch.bmm(query, keys.transpose(1, 2))
    scores[:, :, -block.own :] += _causal(block.size, groups, scores.dtype)[:, : block.own]
    return torch.softmax(scores, -1)


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TreeLayout, scale: float
    ) -> torch.Tensor:
        """query [heads, T, dim], key and value [kv_heads, T, dim] -> [heads, T, dim]"""
        heads, n_tokens, dim = query.shape
        kv_heads = key.shape[0]
        groups = heads // kv_heads
        scaled = (query * scale).view(kv_heads, groups, n_tokens, dim)
        output = torch.zeros_like(scaled) if layout.scores_only else torch.empty_like(scaled)
        kept: list[torch.Tensor] = []
        room = KEEP_BYTES if any(ctx.needs_input_grad) else 0
        for segment in _segments(layout, _granule(query)):
            keys, values = segment.keys(key), segment.keys(value)
            for block in segment.blocks():
                probabilities = _probabilities(block.rows(scaled), keys[:, : block.visible], block, groups)
                block.put(torch.bmm(probabilities, values[:, : block.visible]), output)
                if probabilities.nbytes <= room:
                    room -= probabilities.nbytes
                    kept.append(probabilities)
                else:
                    room = 0  # keep a leading run of blocks, so that the backward knows which by counting
        ctx.save_for_backward(scaled, key, value, *kept)
        ctx.layout, ctx.scale = layout, scale
        return output.view(heads, n_tokens, dim)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled, key, value, *kept = ctx.saved_tensors
        kv_heads, groups, n_tokens, dim = scaled.shape
        gradient = gradient.view(kv_heads, groups, n_tokens, dim)
        # A prefix collects the gradients of all branches, so sums are at least float32 whatever the compute type.
        total = torch.promote_types(key.dtype, torch.float32)
        d_query = torch.zeros_like(scaled) if ctx.layout.scores_only else torch.empty_like(scaled)
        d_key = torch.zeros(key.shape, dtype=total)
        d_value = torch.zeros(value.shape, dtype=total)
        saved = iter(kept)
        for segment in _segments(ctx.layout, _granule(scaled)):
            keys, values = segment.keys(key), segment.keys(value)
            d_keys = torch.zeros(keys.shape, dtype=total)
            d_values = torch.zeros(values.shape, dtype=total)
            for block in segment.blocks():
                query, d_block, visible = block.rows(scaled), block.rows(gradient), block.visible
                probabilities = next(saved, None)
                if probabilities is None:
                    probabilities = _probabilities(query, keys[:, :visible], block, groups)
                d_values[:, :visible] += torch.bmm(probabilities.transpose(1, 2), d_block)
                d_probabilities = torch.bmm(d_block, values[:, :visible].transpose(1, 2))
                d_scores = torch._softmax_backward_data(d_probabilities, probabilities, -1, probabilities.dtype)
                block.put(torch.bmm(d_scores, keys[:, :visible]).mul_(ctx.scale), d_query)
                d_keys[:, :visible] += torch.bmm(d_scores.transpose(1, 2), query)
            segment.add_to(d_key, d_keys)
            segment.add_to(d_value, d_values)
        return d_query.view(-1, n_tokens, dim), d_key.to(key.dtype), d_value.to(value.dtype), None, None


@lru_cache(4)
def _mask(width: int) -> torch.Tensor:
    """float32 [BLOCK, width + BLOCK]: zeros, then a square with minus infinity above the diagonal. Every mask is a part of it."""
    return torch.cat([torch.zeros(BLOCK, width, dtype=torch.float32), _causal(BLOCK, 1, torch.float32)[:, :BLOCK]], 1)


def _in_inference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TreeLayout, scale: float) -> torch.Tensor:
    """As ``_TreeAttention.forward``, in float32."""
    kv_heads, n_tokens, dim = key.shape
    grouped = query.view(kv_heads, -1, n_tokens, dim)
    output = torch.zeros_like(grouped) if layout.scores_only else torch.empty_like(grouped)
    # A prefix is copied here once, and its branches behind it in turn. Expanded, not repeated: the kernel goes by strides.
    longest = max(span.prefix + max(span.branches) for span in layout.spans)
    keys, values = (tensor.new_empty(kv_heads, 1, longest, dim).expand(-1, grouped.shape[1], -1, -1) for tensor in (key, value))
    width = 1 << longest.bit_length()  # of few sizes, so that masks are made once
    mask = _mask(width)
    for segment in _segments(layout):
        for held, tensor in ((keys, key), (values, value)):
            held[:, 0, segment.prefix : segment.prefix + segment.n] = tensor[:, segment.start : segment.start + segment.n]
        for first, end, rows, visible, _ in segment.blocks():
            seen = mask[:rows, width + rows - visible : width + rows]
            output[:, :, first:end] = scaled_dot_product_attention(
                grouped[:, :, first:end], keys[:, :, :visible], values[:, :, :visible], attn_mask=seen, scale=scale
            )
    return output.view(query.shape)


def tree_cpu(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: TreeLayout, scale: float) -> torch.Tensor:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] -> [1, heads, T, dim], differentiable."""
    # Not in bfloat16, where the products round as transformers' own attention does, and the kernel otherwise.
    flash = torch.is_inference_mode_enabled() and query.dtype == torch.float32
    attend = _in_inference if flash else _TreeAttention.apply
    output: torch.Tensor = attend(query[0], key[0], value[0], layout, scale)
    return output[None]

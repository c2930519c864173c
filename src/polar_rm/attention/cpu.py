"""Tree attention on a CPU: plain matrix products over blocks of query rows, each against only the keys that it may see.

A tree is a list of segments: the prefix on itself, and each branch on the prefix and itself. A segment's rows are taken in
blocks; a block's keys are one contiguous range, its softmax is complete (no log-sum-exp to merge), and only the small square on
the diagonal is masked. Heads that share a key/value head are folded into rows, so keys are never copied per head.

Against the flash kernel on the same segments this is about 1.4 times faster forwards and backwards (``benchmarks/attention.py``):
the CPU's flash kernel spends long in its backward. Inference in float32 is left to that kernel, which keeps no probabilities and
is faster without a backward. A dense mask over a row of many trees is several times slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from polar_rm.attention.layout import BLOCK, GRANULE, TreeTensors

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


def _segments(segments: torch.Tensor, scores_only: bool, granule: int = 1) -> Iterator[_Segment]:
    """segments: as in TreeTensors. Where only scores matter, a branch's last token is its one query, and a prefix has none."""
    for start, length, origin, prefix in segments.tolist():
        if prefix or not scores_only:
            yield _Segment(start, length, origin, prefix, length - 1 if scores_only else 0, granule)


def _granule(tensor: torch.Tensor) -> int:
    return GRANULE if tensor.dtype == torch.bfloat16 else 1


@lru_cache(512)
def _causal(rows: int, groups: int, dtype: torch.dtype) -> torch.Tensor:
    """[groups * rows, rows + GRANULE]: minus infinity above the diagonal, once for every head of the group."""
    return torch.full((rows, rows + GRANULE), -torch.inf, dtype=dtype).triu_(1).repeat(groups, 1)


class _Kept:
    """Probabilities of the first blocks, one behind another in one tensor, until it is full. Counting says which they are."""

    def __init__(self, room: torch.Tensor) -> None:
        self._room, self._used = room, 0

    def next(self, *shape: int) -> torch.Tensor | None:
        """The place of the next block's."""
        end = self._used + math.prod(shape)
        if end > self._room.numel():
            self._used = self._room.numel()
            return None
        place = self._room[self._used : end].view(shape)
        self._used = end
        return place


def _probabilities(
    query: torch.Tensor, keys: torch.Tensor, block: _Block, groups: int, place: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax of a block's (already scaled) queries on its visible keys, in ``place`` if there is one."""
    scores = torch.bmm(query, keys.transpose(1, 2))
    scores[:, :, -block.own :] += _causal(block.size, groups, scores.dtype)[:, : block.own]
    return torch.softmax(scores, -1) if place is None else torch._softmax(scores, -1, False, out=place)


# tree: ``segments`` of TreeTensors. kept: numbers of which the probabilities may take as many to the backward.
_SCHEMA = "(Tensor query, Tensor key, Tensor value, Tensor tree, float scale, bool scores_only, SymInt kept)"


@torch.library.custom_op("polar::tree_cpu", mutates_args=(), schema=f"{_SCHEMA} -> (Tensor, Tensor)")
def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: torch.Tensor, scale: float, scores_only: bool, kept: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [heads, T, dim], key and value [kv_heads, T, dim] -> [heads, T, dim], and the probabilities that are kept"""
    room = query.new_empty(kept)
    # Not in bfloat16, where the products round as transformers' own attention does, and the kernel otherwise.
    if torch.is_inference_mode_enabled() and query.dtype == torch.float32:
        return _in_inference(query, key, value, tree, scale, scores_only), room
    heads, n_tokens, dim = query.shape
    kv_heads = key.shape[0]
    groups = heads // kv_heads
    shape = (kv_heads, groups, n_tokens, dim)
    scaled = (query * scale).view(shape)
    output = torch.zeros_like(query) if scores_only else torch.empty_like(query)
    target, places = output.view(shape), _Kept(room)
    for segment in _segments(tree, scores_only, _granule(query)):
        keys, values = segment.keys(key), segment.keys(value)
        for block in segment.blocks():
            place = places.next(kv_heads, groups * block.size, block.visible)
            probabilities = _probabilities(block.rows(scaled), keys[:, : block.visible], block, groups, place)
            block.put(torch.bmm(probabilities, values[:, : block.visible]), target)
    return output, room


@torch.library.custom_op(
    "polar::tree_cpu_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor room, Tensor tree, float scale, bool scores_only)"
    " -> (Tensor, Tensor, Tensor)",
)
def _backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    room: torch.Tensor,
    tree: torch.Tensor,
    scale: float,
    scores_only: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, n_tokens, dim = query.shape
    kv_heads = key.shape[0]
    groups = heads // kv_heads
    shape = (kv_heads, groups, n_tokens, dim)
    scaled, gradient = (query * scale).view(shape), gradient.view(shape)
    # A prefix collects the gradients of all branches, so sums are at least float32 whatever the compute type.
    total = torch.promote_types(key.dtype, torch.float32)
    d_query = torch.zeros_like(query) if scores_only else torch.empty_like(query)
    d_key = torch.zeros(key.shape, dtype=total)
    d_value = torch.zeros(value.shape, dtype=total)
    target, places = d_query.view(shape), _Kept(room)
    for segment in _segments(tree, scores_only, _granule(scaled)):
        keys, values = segment.keys(key), segment.keys(value)
        d_keys = torch.zeros(keys.shape, dtype=total)
        d_values = torch.zeros(values.shape, dtype=total)
        for block in segment.blocks():
            rows, d_block, visible = block.rows(scaled), block.rows(gradient), block.visible
            probabilities = places.next(kv_heads, groups * block.size, visible)
            if probabilities is None:
                probabilities = _probabilities(rows, keys[:, :visible], block, groups)
            d_values[:, :visible] += torch.bmm(probabilities.transpose(1, 2), d_block)
            d_probabilities = torch.bmm(d_block, values[:, :visible].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_probabilities, probabilities, -1, probabilities.dtype)
            block.put(torch.bmm(d_scores, keys[:, :visible]).mul_(scale), target)
            d_keys[:, :visible] += torch.bmm(d_scores.transpose(1, 2), rows)
        segment.add_to(d_key, d_keys)
        segment.add_to(d_value, d_values)
    return d_query, d_key.to(key.dtype), d_value.to(value.dtype)


@_forward.register_fake
def _forward_shapes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: torch.Tensor, scale: float, scores_only: bool, kept: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), query.new_empty(kept)


@_backward.register_fake
def _backward_shapes(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, tree, ctx.scale, ctx.scores_only, _ = inputs
    ctx.set_materialize_grads(False)  # a gradient of the probabilities would be zeros of their size
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, output[1], tree)


def _differentiate(ctx: Any, gradient: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, ...]:
    if gradient is None:
        return (None,) * 7
    query, key, value, room, tree = ctx.saved_tensors
    d_query, d_key, d_value = _backward(gradient, query, key, value, room, tree, ctx.scale, ctx.scores_only)
    return d_query, d_key, d_value, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


@lru_cache(4)
def _mask(width: int) -> torch.Tensor:
    """float32 [BLOCK, width + BLOCK]: zeros, then a square with minus infinity above the diagonal. Every mask is a part of it."""
    return torch.cat([torch.zeros(BLOCK, width, dtype=torch.float32), _causal(BLOCK, 1, torch.float32)[:, :BLOCK]], 1)


def _in_inference(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: torch.Tensor, scale: float, scores_only: bool
) -> torch.Tensor:
    """As ``_forward``, in float32."""
    kv_heads, n_tokens, dim = key.shape
    grouped = query.view(kv_heads, -1, n_tokens, dim)
    output = torch.zeros_like(grouped) if scores_only else torch.empty_like(grouped)
    # A prefix is copied here once, and its branches behind it in turn. Expanded, not repeated: the kernel goes by strides.
    longest = int((tree[:, 1] + tree[:, 3]).max())
    keys, values = (tensor.new_empty(kv_heads, 1, longest, dim).expand(-1, grouped.shape[1], -1, -1) for tensor in (key, value))
    width = 1 << longest.bit_length()  # of few sizes, so that masks are made once
    mask = _mask(width)
    held_prefix = -1
    for segment in _segments(tree, scores_only):
        own = slice(segment.start, segment.start + segment.n)
        for held, tensor in ((keys, key), (values, value)):
            if segment.prefix and segment.origin != held_prefix:
                held[:, 0, : segment.prefix] = tensor[:, segment.origin : segment.origin + segment.prefix]
            held[:, 0, segment.prefix : segment.prefix + segment.n] = tensor[:, own]
        held_prefix = segment.origin
        for first, end, rows, visible, _ in segment.blocks():
            seen = mask[:rows, width + rows - visible : width + rows]
            output[:, :, first:end] = scaled_dot_product_attention(
                grouped[:, :, first:end], keys[:, :, :visible], values[:, :, :visible], attn_mask=seen, scale=scale
            )
    return output.view(query.shape)


def tree_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeTensors, scale: float, scores_only: bool = False
) -> torch.Tensor:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] -> [1, heads, T, dim], differentiable."""
    kept = 0
    # A last layer's few queries are recomputed for less than keeping them would be.
    if torch.is_grad_enabled() and not scores_only and (query.requires_grad or key.requires_grad or value.requires_grad):
        blocks = tree.filled_blocks if query.dtype == torch.bfloat16 else tree.blocks
        kept = torch.sym_min(blocks * query.shape[1], KEEP_BYTES // query.dtype.itemsize)
    output: torch.Tensor = _forward(query[0], key[0], value[0], tree.segments, scale, scores_only, kept)[0]
    return output[None]

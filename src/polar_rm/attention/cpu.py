"""Tree attention on a CPU and on the GPU of a Mac: plain matrix products over blocks of query rows, each against only the keys
that it may attend to.

A tree is a list of segments: the prefix, which attends to itself, and each branch, which attends to the prefix and itself. The
rows of a segment are processed in blocks. The keys of a block are one contiguous range, its softmax is complete (there are no
log-sum-exps to merge), and only the small square on the diagonal is masked. Heads that share a key/value head are folded into
rows, so that keys are never copied per head.

This is about 1.4 times faster, forwards and backwards, than the flash kernel on the same segments (``benchmarks/attention.py``),
because the CPU's flash kernel has a slow backward. Inference in float32 uses that kernel, which keeps no probabilities and is
faster without a backward. A dense mask over a row of many trees is several times slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from polar_rm.attention.layout import BLOCK, FEWEST_ROWS, PAD_MULTIPLE, TreeTensors

# Bytes of probabilities that one call (one layer) keeps for the backward; those of further blocks are recomputed. Short trees
# keep all of theirs. A prefix of 16k tokens, whose probabilities would be gigabytes a layer, keeps few.
KEEP_BYTES = 64 << 20


class _Block(NamedTuple):
    """Query rows ``[first, end)`` of the packed row, and the keys that they attend to.

    size: number of rows with padding. n_keys: the first ``n_keys`` keys of the segment, with padding. n_diagonal: how many of
    them, at the end, are the block's own tokens or padding; only these are masked.
    """

    first: int
    end: int
    size: int
    n_keys: int
    n_diagonal: int

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """[kv_heads, groups, T, dim] -> [kv_heads, groups, size, dim], padded with zeros"""
        taken = tensor[:, :, self.first : self.end]
        padding = self.size - (self.end - self.first)
        return pad(taken, (0, 0, 0, padding)) if padding else taken

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """[kv_heads, groups, T, dim] -> [kv_heads, groups * size, dim], padded with zeros"""
        return self.take(tensor).flatten(1, 2)

    def put(self, rows: torch.Tensor, target: torch.Tensor) -> None:
        """The inverse of :meth:`rows`: write a block's rows into ``target``, without the padding."""
        kv_heads, groups, _, dim = target.shape
        target[:, :, self.first : self.end] = rows.view(kv_heads, groups, self.size, dim)[:, :, : self.end - self.first]


class _Segment:
    """Tokens ``[start, start + length)``, which attend to each other and to ``prefix`` tokens from ``prefix_start`` on.

    prefix: 0 for a prefix itself. first: the first token that is a query, counted in the segment. Sizes are padded to multiples
    of ``multiple``.
    """

    __slots__ = ("first", "length", "multiple", "prefix", "prefix_start", "start")

    def __init__(self, start: int, length: int, prefix_start: int, prefix: int, first: int, multiple: int) -> None:
        self.start, self.length, self.first, self.multiple = start, length, first, multiple
        self.prefix_start, self.prefix = prefix_start, prefix

    def keys(self, tensor: torch.Tensor) -> torch.Tensor:
        """[kv_heads, prefix + length padded with zeros, dim]"""
        keys = tensor[:, self.start : self.start + self.length]
        if self.prefix:
            keys = torch.cat([tensor[:, self.prefix_start : self.prefix_start + self.prefix], keys], 1)
        padding = -keys.shape[1] % self.multiple
        return pad(keys, (0, 0, 0, padding)) if padding else keys

    def add_to(self, target: torch.Tensor, gradient: torch.Tensor) -> None:
        """The inverse of :meth:`keys` for a gradient: all branches add to the prefix that they share."""
        if self.prefix:
            target[:, self.prefix_start : self.prefix_start + self.prefix] += gradient[:, : self.prefix]
        target[:, self.start : self.start + self.length] += gradient[:, self.prefix : self.prefix + self.length]

    def blocks(self) -> Iterator[_Block]:
        for first in range(self.first, self.length, BLOCK):
            end = min(first + BLOCK, self.length)
            n_keys = self._padded(self.prefix + end)
            size = max(self._padded(end - first), FEWEST_ROWS)
            yield _Block(self.start + first, self.start + end, size, n_keys, n_keys - self.prefix - first)

    def _padded(self, size: int) -> int:
        return size + -size % self.multiple


def _segments(segments: torch.Tensor, scores_only: bool, multiple: int = 1) -> Iterator[_Segment]:
    """segments: as in TreeTensors. scores_only: the last token of a branch is its only query, and a prefix has no queries."""
    for start, length, prefix_start, prefix in segments.tolist():
        if prefix or not scores_only:
            yield _Segment(start, length, prefix_start, prefix, length - 1 if scores_only else 0, multiple)


def _multiple(tensor: torch.Tensor) -> int:
    return PAD_MULTIPLE if tensor.dtype == torch.bfloat16 else 1


@lru_cache(512)
def _causal(rows: int, groups: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[groups * rows, rows + PAD_MULTIPLE]: minus infinity above the diagonal, repeated for every head of the group."""
    return torch.full((rows, rows + PAD_MULTIPLE), -torch.inf, dtype=dtype, device=device).triu_(1).repeat(groups, 1)


class _KeptProbabilities:
    """The probabilities of the first blocks, one after another in one buffer, until the buffer is full.

    Forward and backward take the blocks in the same order, so that both find the same views.
    """

    def __init__(self, buffer: torch.Tensor) -> None:
        self._buffer, self._used = buffer, 0

    def next(self, *shape: int) -> torch.Tensor | None:
        """The view for the next block; None from the first block on that does not fit."""
        end = self._used + math.prod(shape)
        if end > self._buffer.numel():
            self._used = self._buffer.numel()
            return None
        view = self._buffer[self._used : end].view(shape)
        self._used = end
        return view


def _probabilities(
    query: torch.Tensor, keys: torch.Tensor, block: _Block, groups: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax of a block's queries, which are scaled already, over its keys; written to ``out`` if it is given."""
    scores = torch.bmm(query, keys.transpose(1, 2))
    scores[:, :, -block.n_diagonal :] += _causal(block.size, groups, scores.dtype, scores.device)[:, : block.n_diagonal]
    return torch.softmax(scores, -1) if out is None else torch._softmax(scores, -1, False, out=out)


# tree: ``segments`` of TreeTensors. n_kept: the size of the buffer of probabilities for the backward, in elements.
_SCHEMA = "(Tensor query, Tensor key, Tensor value, Tensor tree, float scale, bool scores_only, SymInt n_kept)"


@torch.library.custom_op("polar::tree_cpu", mutates_args=(), schema=f"{_SCHEMA} -> (Tensor, Tensor)")
def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: torch.Tensor, scale: float, scores_only: bool, n_kept: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [heads, T, dim], key and value [kv_heads, T, dim] -> [heads, T, dim], and the kept probabilities [n_kept]"""
    kept = query.new_empty(n_kept)
    # In bfloat16 the products below round as transformers' own attention does, and the inference kernel differently.
    if torch.is_inference_mode_enabled() and query.dtype == torch.float32 and query.device.type == "cpu":
        return _in_inference(query, key, value, tree, scale, scores_only), kept
    heads, n_tokens, dim = query.shape
    kv_heads = key.shape[0]
    groups = heads // kv_heads
    shape = (kv_heads, groups, n_tokens, dim)
    scaled = (query * scale).view(shape)
    output = torch.zeros_like(query) if scores_only else torch.empty_like(query)
    target, views = output.view(shape), _KeptProbabilities(kept)
    for segment in _segments(tree, scores_only, _multiple(query)):
        keys, values = segment.keys(key), segment.keys(value)
        for block in segment.blocks():
            out = views.next(kv_heads, groups * block.size, block.n_keys)
            probabilities = _probabilities(block.rows(scaled), keys[:, : block.n_keys], block, groups, out)
            block.put(torch.bmm(probabilities, values[:, : block.n_keys]), target)
    return output, kept


@torch.library.custom_op(
    "polar::tree_cpu_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor kept, Tensor tree, float scale, bool scores_only)"
    " -> (Tensor, Tensor, Tensor)",
)
def _backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: torch.Tensor,
    tree: torch.Tensor,
    scale: float,
    scores_only: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, n_tokens, dim = query.shape
    kv_heads = key.shape[0]
    groups = heads // kv_heads
    shape = (kv_heads, groups, n_tokens, dim)
    scaled, gradient = (query * scale).view(shape), gradient.view(shape)
    # A prefix collects the gradients of all branches, so the sums have at least float32 whatever the compute type.
    sum_dtype = torch.promote_types(key.dtype, torch.float32)
    d_query = torch.zeros_like(query) if scores_only else torch.empty_like(query)
    d_key = key.new_zeros(key.shape, dtype=sum_dtype)
    d_value = value.new_zeros(value.shape, dtype=sum_dtype)
    target, views = d_query.view(shape), _KeptProbabilities(kept)
    for segment in _segments(tree, scores_only, _multiple(scaled)):
        keys, values = segment.keys(key), segment.keys(value)
        d_keys = key.new_zeros(keys.shape, dtype=sum_dtype)
        d_values = value.new_zeros(values.shape, dtype=sum_dtype)
        for block in segment.blocks():
            rows, d_block, n_keys = block.rows(scaled), block.rows(gradient), block.n_keys
            probabilities = views.next(kv_heads, groups * block.size, n_keys)
            if probabilities is None:
                probabilities = _probabilities(rows, keys[:, :n_keys], block, groups)
            d_values[:, :n_keys] += torch.bmm(probabilities.transpose(1, 2), d_block)
            d_probabilities = torch.bmm(d_block, values[:, :n_keys].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_probabilities, probabilities, -1, probabilities.dtype)
            block.put(torch.bmm(d_scores, keys[:, :n_keys]).mul_(scale), target)
            d_keys[:, :n_keys] += torch.bmm(d_scores.transpose(1, 2), rows)
        segment.add_to(d_key, d_keys)
        segment.add_to(d_value, d_values)
    return d_query, d_key.to(key.dtype), d_value.to(value.dtype)


@_forward.register_fake
def _forward_shapes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: torch.Tensor, scale: float, scores_only: bool, n_kept: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), query.new_empty(n_kept)


@_backward.register_fake
def _backward_shapes(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, tree, ctx.scale, ctx.scores_only, _ = inputs
    ctx.set_materialize_grads(False)  # else autograd makes zeros as large as the kept probabilities
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, output[1], tree)


def _differentiate(ctx: Any, gradient: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, ...]:
    if gradient is None:
        return (None,) * 7
    query, key, value, kept, tree = ctx.saved_tensors
    d_query, d_key, d_value = _backward(gradient, query, key, value, kept, tree, ctx.scale, ctx.scores_only)
    return d_query, d_key, d_value, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


@lru_cache(4)
def _mask(width: int) -> torch.Tensor:
    """float32 [BLOCK, width + BLOCK]: zeros, then a square with minus infinity above the diagonal. Masks are slices of it."""
    causal = _causal(BLOCK, 1, torch.float32, torch.device("cpu"))[:, :BLOCK]
    return torch.cat([torch.zeros(BLOCK, width, dtype=torch.float32), causal], 1)


def _in_inference(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: torch.Tensor, scale: float, scores_only: bool
) -> torch.Tensor:
    """The output of ``_forward``, in float32, by the CPU's flash kernel."""
    kv_heads, n_tokens, dim = key.shape
    grouped = query.view(kv_heads, -1, n_tokens, dim)
    output = torch.zeros_like(grouped) if scores_only else torch.empty_like(grouped)
    # The buffers get each prefix once, and its branches after it one at a time; a branch that leaves the prefix before its end
    # overwrites the rest. The buffers are expanded, not repeated, because the kernel follows strides.
    longest = int((tree[:, 1] + tree[:, 3]).max())
    keys, values = (tensor.new_empty(kv_heads, 1, longest, dim).expand(-1, grouped.shape[1], -1, -1) for tensor in (key, value))
    width = 1 << longest.bit_length()  # a power of two, so that few masks are built
    mask = _mask(width)
    current_prefix, held = -1, 0  # the first token of the prefix in the buffers, and how many tokens of it they hold
    for segment in _segments(tree, scores_only):
        tokens = slice(segment.start, segment.start + segment.length)
        held = held if segment.prefix_start == current_prefix else 0
        for buffer, tensor in ((keys, key), (values, value)):
            if segment.prefix > held:
                missing = slice(segment.prefix_start + held, segment.prefix_start + segment.prefix)
                buffer[:, 0, held : segment.prefix] = tensor[:, missing]
            buffer[:, 0, segment.prefix : segment.prefix + segment.length] = tensor[:, tokens]
        current_prefix, held = segment.prefix_start, segment.prefix or segment.length
        for block in segment.blocks():
            n_rows, n_keys = block.end - block.first, block.n_keys
            attended = scaled_dot_product_attention(
                block.take(grouped),
                keys[:, :, :n_keys],
                values[:, :, :n_keys],
                attn_mask=mask[: block.size, width + n_rows - n_keys : width + n_rows],
                scale=scale,
            )
            output[:, :, block.first : block.end] = attended[:, :, :n_rows]
    return output.view(query.shape)


def tree_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeTensors, scale: float, scores_only: bool = False
) -> torch.Tensor:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] -> [1, heads, T, dim], differentiable."""
    n_kept = 0
    # Recomputing the few queries of a last layer costs less than keeping their probabilities.
    if torch.is_grad_enabled() and not scores_only and (query.requires_grad or key.requires_grad or value.requires_grad):
        pairs = tree.padded_block_pairs if query.dtype == torch.bfloat16 else tree.block_pairs
        n_kept = torch.sym_min(pairs * query.shape[1], KEEP_BYTES // query.dtype.itemsize)
    output: torch.Tensor = _forward(query[0], key[0], value[0], tree.segments, scale, scores_only, n_kept)[0]
    return output[None]

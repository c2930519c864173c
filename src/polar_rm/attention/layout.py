"""The layout of one packed row: which tokens form which prefix and which branch; and the same as tensors for the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class TreeSpan:
    """One tree. Tokens ``[start, start + prefix)`` are the shared prefix; the branches follow one after another.

    shared: for each branch the number of first tokens of the prefix that it continues; () if all branches continue the whole.
    """

    start: int
    prefix: int
    branches: tuple[int, ...]
    shared: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.prefix < 1 or not self.branches or min(self.branches) < 1:
            raise ValueError(f"a tree needs a prefix and branches of at least one token each, not {self}")
        if self.shared and (
            len(self.shared) != len(self.branches) or not 1 <= min(self.shared) <= max(self.shared) <= self.prefix
        ):
            raise ValueError(f"every branch continues at least one token of its prefix, and at most all, not {self}")

    @property
    def prefixes(self) -> tuple[int, ...]:
        """For each branch the number of tokens of the prefix that it continues."""
        return self.shared or (self.prefix,) * len(self.branches)

    @property
    def n_tokens(self) -> int:
        """Tokens of the tree: its prefix and all its branches."""
        return self.prefix + sum(self.branches)

    def branch_starts(self) -> Iterator[tuple[int, int]]:
        """(first token, number of tokens) of each branch."""
        start = self.start + self.prefix
        for length in self.branches:
            yield start, length
            start += length


@dataclass(frozen=True)
class TreeLayout:
    """All trees of a row of T tokens, one after another. A query attends to itself, to earlier tokens of its branch, and to the
    tokens of the prefix that its branch continues."""

    spans: tuple[TreeSpan, ...]

    def __post_init__(self) -> None:
        end = 0
        for span in self.spans:
            if span.start != end:
                raise ValueError(f"trees must follow each other without gaps: {span} should start at {end}")
            end += span.n_tokens

    @cached_property
    def n_tokens(self) -> int:
        """Tokens of the row: all its trees, without padding."""
        return sum(span.n_tokens for span in self.spans)

    @cached_property
    def attention_pairs(self) -> int:
        """Number of allowed query-key pairs, which attention has to compute."""
        triangle = [n * (n + 1) // 2 for span in self.spans for n in (span.prefix, *span.branches)]
        to_prefix = [shared * n for span in self.spans for shared, n in zip(span.prefixes, span.branches, strict=True)]
        return sum(triangle) + sum(to_prefix)

    @cached_property
    def score_pairs(self) -> int:
        """Number of allowed query-key pairs of the queries at score positions, which is all that a last layer has to compute."""
        return sum(shared + n for span in self.spans for shared, n in zip(span.prefixes, span.branches, strict=True))

    def tensors(self, padding: int = 0) -> TreeTensors:
        """The tensors of a row of T = ``n_tokens + padding`` tokens; padding tokens attend only to each other."""
        return TreeTensors.of(self, padding)


class TreeTensors(NamedTuple):
    """A row of T tokens as the kernels read it, built once and shared by all layers.

    It holds only tensors and two integers, so that compiled layers fit every row. A segment is a prefix, a branch or the padding.
    ``cu_seqlens`` are cumulative sequence lengths that begin with 0, and ``max_seqlens`` are int32 [2], the longest sequence of
    queries and the longest of keys, as variable-length flash kernels take them.

    segments: int32 [segments, 4], always on the CPU: first token, number of tokens, first token of the prefix that the segment
        attends to, number of first tokens of that prefix that it attends to (0 for a prefix and the padding).
    positions: int64 [T], position ids; every branch continues from its prefix. scores: int64 [candidates], the index of the last
        token of every branch.
    trees, branches: int32 [T], the tree of every token, and its branch counted from 1 (0 in the prefix). One tree of prefix 2 and
        branches 1 and 2 is trees [0, 0, 0, 0, 0] and branches [0, 0, 1, 2, 2]. visible: int32 [T], the number of tokens of its
        prefix that a token of a branch attends to; for other tokens larger than every position.
    cu_seqlens, max_seqlens: the segments; int32 [1 + segments] and int32 [2]. All max_seqlens are always on the CPU.
    prefix_indices: int64 [P], the tokens of all prefixes. prefix_cu_seqlens_q, prefix_cu_seqlens_k and prefix_max_seqlens: int32,
        the queries that attend to prefixes and the prefixes as their keys. For each tree these are first its prefix, without any
        keys, then its branches, together if they continue the same tokens, else one by one; at the end the padding, without any
        keys, if there is padding.
    score_keys: int64, the keys of the last token of each branch: its prefix and its branch. score_cu_seqlens_q,
        score_cu_seqlens_k and score_max_seqlens: these single queries and their keys.
    block_pairs, padded_block_pairs: query-key pairs in the blocks of the CPU's kernel, and the same with the blocks padded for
        bfloat16.
    """

    segments: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor
    trees: torch.Tensor
    branches: torch.Tensor
    visible: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlens: torch.Tensor
    prefix_indices: torch.Tensor
    prefix_cu_seqlens_q: torch.Tensor
    prefix_cu_seqlens_k: torch.Tensor
    prefix_max_seqlens: torch.Tensor
    score_keys: torch.Tensor
    score_cu_seqlens_q: torch.Tensor
    score_cu_seqlens_k: torch.Tensor
    score_max_seqlens: torch.Tensor
    block_pairs: int
    padded_block_pairs: int

    @classmethod
    def of(cls, layout: TreeLayout, padding: int = 0) -> Self:
        """See :meth:`TreeLayout.tensors`."""
        # First token, number of tokens, first token of the prefix, number of tokens of the prefix, tree, branch.
        rows: list[tuple[int, ...]] = []
        for number, span in enumerate(layout.spans):
            rows.append((span.start, span.prefix, span.start, 0, number, 0))
            branches = enumerate(zip(span.branch_starts(), span.prefixes, strict=True), 1)
            rows.extend((start, length, span.start, shared, number, i) for i, ((start, length), shared) in branches)
        if padding:
            rows.append((layout.n_tokens, padding, layout.n_tokens, 0, len(layout.spans), 0))
        table = np.array(rows, dtype=np.int64)
        starts, lengths, _, prefixes, trees, branch = table.T
        return cls(
            segments=torch.from_numpy(table[:, :4].astype(np.int32)),
            positions=torch.from_numpy(_ranges(prefixes, lengths)),
            scores=torch.from_numpy((starts + lengths - 1)[branch > 0]),
            trees=torch.from_numpy(np.repeat(trees.astype(np.int32), lengths)),
            branches=torch.from_numpy(np.repeat(branch.astype(np.int32), lengths)),
            visible=torch.from_numpy(np.repeat(np.where(branch > 0, prefixes, table[:, 1].max() + 1).astype(np.int32), lengths)),
            cu_seqlens=_cu_seqlens(lengths),
            max_seqlens=_max_seqlens(lengths, lengths),
            **_prefix_tensors(layout, padding),
            **_score_tensors(table[branch > 0]),
            block_pairs=_pairs_in_blocks(lengths, prefixes, 1),
            padded_block_pairs=_pairs_in_blocks(lengths, prefixes, PAD_MULTIPLE),
        )

    def to(self, device: torch.device) -> Self:
        """Copy the tensors to a device without waiting for it. Those that the CPU reads stay on the CPU."""
        host = {"segments", "max_seqlens", "prefix_max_seqlens", "score_max_seqlens", "block_pairs", "padded_block_pairs"}
        moved: dict[str, Any] = {name: copy_async(part, device) for name, part in self._asdict().items() if name not in host}
        return self._replace(**moved)


# Queries in a block of the CPU's kernel. In bfloat16 the rows and keys of a block are padded to a multiple: oneDNN builds and
# keeps code for every new shape of a product, and hardly two trees have the same shape.
BLOCK = 128
PAD_MULTIPLE = 32
# Products of fewer rows sum over the keys one after another: over 16,000 keys the error is ten times as large.
FEWEST_ROWS = 4


def copy_async(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device without waiting; this needs pinned memory, as other copies block."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: the numbers of all ranges ``[start, start + length)``, one range after another."""
    ends = lengths.cumsum()
    numbers: np.ndarray = np.arange(ends[-1], dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return numbers


def _cu_seqlens(lengths: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32))


def _max_seqlens(queries: np.ndarray, keys: np.ndarray) -> torch.Tensor:
    # If every sequence is one query, the flash kernel takes its decoding path, which has no backward.
    return torch.tensor([max(2, int(queries.max())), int(keys.max())], dtype=torch.int32)


def _prefix_tensors(layout: TreeLayout, padding: int) -> dict[str, torch.Tensor]:
    """The queries that attend to prefixes, and the prefixes as keys."""
    # First token of the prefix, number of queries, number of keys.
    rows: list[tuple[int, int, int]] = []
    for span in layout.spans:
        rows.append((span.start, span.prefix, 0))
        # Each sequence of keys is gathered, so branches that continue the same tokens are one sequence of queries.
        together = len(set(span.prefixes)) == 1
        branches = [(sum(span.branches), span.prefixes[0])] if together else zip(span.branches, span.prefixes, strict=True)
        rows.extend((span.start, n_queries, n_keys) for n_queries, n_keys in branches)
    if padding:
        rows.append((0, padding, 0))
    starts, queries, keys = np.array(rows).T
    return {
        "prefix_indices": torch.from_numpy(_ranges(starts[keys > 0], keys[keys > 0])),
        "prefix_cu_seqlens_q": _cu_seqlens(queries),
        "prefix_cu_seqlens_k": _cu_seqlens(keys),
        "prefix_max_seqlens": _max_seqlens(queries, keys),
    }


def _score_tensors(branches: np.ndarray) -> dict[str, torch.Tensor]:
    """The keys of the last token of each branch: two ranges, its prefix and its branch. branches: the branches' table rows."""
    starts, lengths, prefix_starts, prefixes = branches[:, :4].T
    n_queries, n_keys = np.ones(len(branches), dtype=np.int64), prefixes + lengths
    keys = _ranges(np.stack([prefix_starts, starts], 1).ravel(), np.stack([prefixes, lengths], 1).ravel())
    return {
        "score_keys": torch.from_numpy(keys),
        "score_cu_seqlens_q": _cu_seqlens(n_queries),
        "score_cu_seqlens_k": _cu_seqlens(n_keys),
        "score_max_seqlens": _max_seqlens(n_queries, n_keys),
    }


def _pairs_in_blocks(lengths: np.ndarray, prefixes: np.ndarray, multiple: int) -> int:
    """Query-key pairs in the blocks of :mod:`polar_rm.attention.cpu`, with sizes padded to a multiple and lone queries to the
    fewest rows."""
    n_full, rest = np.divmod(lengths, BLOCK)
    prefixes = prefixes + -prefixes % multiple if multiple > 1 else prefixes  # full blocks are a multiple of it already
    rest = rest + -rest % multiple
    rows = np.where(rest, np.maximum(rest, FEWEST_ROWS), 0)
    pairs = BLOCK * (n_full * prefixes + BLOCK * n_full * (n_full + 1) // 2) + rows * (prefixes + n_full * BLOCK + rest)
    return int(pairs.sum())

"""The shape of one packed row: which tokens are whose prefix and whose branch; and the same as tensors, for the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class TreeSpan:
    """One tree. Tokens ``[start, start + prefix)`` are shared; the branches follow one behind another."""

    start: int
    prefix: int
    branches: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.prefix < 1 or not self.branches or min(self.branches) < 1:
            raise ValueError(f"a tree needs a prefix and branches of at least one token each, not {self}")

    @property
    def n_tokens(self) -> int:
        """Of the tree: its prefix and all its branches."""
        return self.prefix + sum(self.branches)

    def branch_starts(self) -> Iterator[tuple[int, int]]:
        """(first token, number of tokens) of each branch."""
        start = self.start + self.prefix
        for length in self.branches:
            yield start, length
            start += length


@dataclass(frozen=True)
class TreeLayout:
    """All trees of a row of T tokens, one behind another. A query sees itself, earlier tokens of its own branch, its prefix."""

    spans: tuple[TreeSpan, ...]

    def __post_init__(self) -> None:
        end = 0
        for span in self.spans:
            if span.start != end:
                raise ValueError(f"trees must follow each other without gaps: {span} should start at {end}")
            end += span.n_tokens

    @cached_property
    def n_tokens(self) -> int:
        """Of the row: all its trees, without padding."""
        return sum(span.n_tokens for span in self.spans)

    @cached_property
    def attention_pairs(self) -> int:
        """Query-key pairs that are allowed, which is what attention has to compute."""
        triangle = [n * (n + 1) // 2 for span in self.spans for n in (span.prefix, *span.branches)]
        return sum(triangle) + sum(span.prefix * sum(span.branches) for span in self.spans)

    @cached_property
    def score_pairs(self) -> int:
        """Those of the queries at score positions, which are all that a last layer has to compute."""
        return sum(span.prefix + length for span in self.spans for length in span.branches)

    def tensors(self, padding: int = 0) -> TreeTensors:
        """For a row of T = ``n_tokens`` and as many tokens of ``padding`` behind them, which see each other and are not seen."""
        return TreeTensors.of(self, padding)


class TreeTensors(NamedTuple):
    """A row of T tokens as the kernels read it, made once and shared by all layers: tensors and two numbers, so that compiled
    layers fit every row. A segment is a prefix, a branch or the padding.

    segments: int32 [segments, 4], on the CPU always: first token, tokens, first token of the prefix that it sees, tokens of that
        (none for a prefix and the padding).
    positions: int64 [T], every branch continues from its prefix. scores: int64 [candidates], the last token of every branch.
    trees, branches: int32 [T], the tree of every token, and its branch counted from 1 (0 in the prefix). One tree of prefix 2 and
        branches 1 and 2 is trees [0, 0, 0, 0, 0] and branches [0, 0, 1, 2, 2].
    ends: int32 [1 + segments], ends of the segments, from 0. most: int32 [2], on the CPU always: tokens of the longest, twice.
    prefixes: int64 [P], the tokens of all prefixes. tree_query_ends and tree_key_ends: int32, ends of what sees prefixes and of
        what is seen there: of each tree the prefix itself, which sees none, and its branches; then the padding, if any.
        tree_most: the most of either.
    score_keys: int64, the tokens that the last one of each branch sees, the prefix and its own. score_ends, score_key_ends and
        score_most: ends and most of these queries and keys.
    blocks, filled_blocks: query-key pairs in the blocks of the CPU's kernel, and with their sides filled up for bfloat16.
    """

    segments: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor
    trees: torch.Tensor
    branches: torch.Tensor
    ends: torch.Tensor
    most: torch.Tensor
    prefixes: torch.Tensor
    tree_query_ends: torch.Tensor
    tree_key_ends: torch.Tensor
    tree_most: torch.Tensor
    score_keys: torch.Tensor
    score_ends: torch.Tensor
    score_key_ends: torch.Tensor
    score_most: torch.Tensor
    blocks: int
    filled_blocks: int

    @classmethod
    def of(cls, layout: TreeLayout, padding: int = 0) -> Self:
        """As :meth:`TreeLayout.tensors`."""
        rows: list[tuple[int, ...]] = []  # first token, tokens, first token of the prefix, tokens of that, tree, branch
        for number, span in enumerate(layout.spans):
            rows.append((span.start, span.prefix, span.start, 0, number, 0))
            branches = enumerate(span.branch_starts(), 1)
            rows.extend((start, length, span.start, span.prefix, number, i) for i, (start, length) in branches)
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
            ends=_ends(lengths),
            most=_most(lengths, lengths),
            **_shared(layout, padding),
            **_last(table[branch > 0]),
            blocks=_pairs_in_blocks(lengths, prefixes, 1),
            filled_blocks=_pairs_in_blocks(lengths, prefixes, GRANULE),
        )

    def to(self, device: torch.device) -> Self:
        """Without waiting for the device. What the CPU reads stays."""
        host = {"segments", "most", "tree_most", "score_most", "blocks", "filled_blocks"}
        moved: dict[str, Any] = {name: sent(part, device) for name, part in self._asdict().items() if name not in host}
        return self._replace(**moved)


# The CPU's kernel takes a segment's queries in blocks of so many. In bfloat16 a block's rows and keys are filled up to a multiple
# of the granule: there oneDNN builds code for every new shape of a product and keeps it, and no two trees have the same.
BLOCK = 128
GRANULE = 32


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On its way to a device; only from pinned memory does nobody wait."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: the numbers of all ranges ``[start, start + length)``, one behind another."""
    ends = lengths.cumsum()
    numbers: np.ndarray = np.arange(ends[-1], dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return numbers


def _ends(lengths: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32))


def _most(queries: np.ndarray, keys: np.ndarray) -> torch.Tensor:
    # With single queries alone the flash kernel takes its way for decoding, which has no backward.
    return torch.tensor([max(2, int(queries.max())), int(keys.max())], dtype=torch.int32)


def _shared(layout: TreeLayout, padding: int) -> dict[str, torch.Tensor]:
    """What sees prefixes, and the prefixes."""
    starts, prefixes = (np.array([getattr(span, name) for span in layout.spans]) for name in ("start", "prefix"))
    queries = np.array([n for span in layout.spans for n in (span.prefix, sum(span.branches))] + [padding] * bool(padding))
    keys = np.array([n for span in layout.spans for n in (0, span.prefix)] + [0] * bool(padding))
    return {
        "prefixes": torch.from_numpy(_ranges(starts, prefixes)),
        "tree_query_ends": _ends(queries),
        "tree_key_ends": _ends(keys),
        "tree_most": _most(queries, keys),
    }


def _last(branches: np.ndarray) -> dict[str, torch.Tensor]:
    """What the last token of each branch sees: two ranges, its prefix and its own. branches: the rows of a table of segments."""
    starts, lengths, origins, prefixes = branches[:, :4].T
    single, seen = np.ones(len(branches), dtype=np.int64), prefixes + lengths
    keys = _ranges(np.stack([origins, starts], 1).ravel(), np.stack([prefixes, lengths], 1).ravel())
    return {
        "score_keys": torch.from_numpy(keys),
        "score_ends": _ends(single),
        "score_key_ends": _ends(seen),
        "score_most": _most(single, seen),
    }


def _pairs_in_blocks(lengths: np.ndarray, prefixes: np.ndarray, granule: int) -> int:
    """Pairs of a query and a key that stand in the blocks of :mod:`polar_rm.attention.cpu`."""
    whole, rest = np.divmod(lengths, BLOCK)
    prefixes = prefixes + -prefixes % granule if granule > 1 else prefixes  # whole blocks are a multiple of it
    rest = rest + -rest % granule
    pairs = BLOCK * (whole * prefixes + BLOCK * whole * (whole + 1) // 2) + rest * (prefixes + whole * BLOCK + rest)
    return int(pairs.sum())

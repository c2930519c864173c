"""The shape of one packed row: which tokens are whose prefix and whose branch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

T = TypeVar("T")


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
        return self.prefix + sum(self.branches)

    def branch_starts(self) -> Iterator[tuple[int, int]]:
        """(first token, number of tokens) of each branch."""
        start = self.start + self.prefix
        for length in self.branches:
            yield start, length
            start += length


@dataclass(frozen=True)
class TreeLayout:
    """All trees of a row of T tokens, without padding. A query sees itself, earlier tokens of its own branch, its prefix.

    scores_only: only the queries at score positions matter, as in a last layer; an implementation may leave out the others, and
    may return anything finite there.
    """

    spans: tuple[TreeSpan, ...]
    scores_only: bool = False
    _made: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        end = 0
        for span in self.spans:
            if span.start != end:
                raise ValueError(f"trees must follow each other without gaps: {span} should start at {end}")
            end += span.n_tokens

    @cached_property
    def n_tokens(self) -> int:
        return sum(span.n_tokens for span in self.spans)

    def once(self, make: Callable[[TreeLayout, torch.device], T], device: torch.device) -> T:
        """``make(self, device)``, made for the first layer and shared by all others, the last included."""
        if (make, device) not in self._made:
            self._made[make, device] = make(self, device)
        made: T = self._made[make, device]
        return made

    @cached_property
    def last(self) -> TreeLayout:
        """The same row for a last layer."""
        return replace(self, scores_only=True)

    @cached_property
    def attention_pairs(self) -> int:
        """Query-key pairs that are allowed, which is what attention has to compute."""
        if self.scores_only:
            return sum(span.prefix + length for span in self.spans for length in span.branches)
        triangle = [n * (n + 1) // 2 for span in self.spans for n in (span.prefix, *span.branches)]
        return sum(triangle) + sum(span.prefix * sum(span.branches) for span in self.spans)

    def position_ids(self) -> torch.Tensor:
        """int64 [T]: every branch continues from its prefix."""
        parts = []
        for span in self.spans:
            parts.append(torch.arange(span.prefix))
            parts.extend(torch.arange(span.prefix, span.prefix + length) for length in span.branches)
        return torch.cat(parts)

    def score_positions(self) -> torch.Tensor:
        """int64 [n_candidates]: the last token of every branch, tree by tree."""
        return torch.tensor([start + length - 1 for span in self.spans for start, length in span.branch_starts()])

    def tree_and_branch_ids(self) -> tuple[torch.Tensor, torch.Tensor]:
        """int32 [T] each: the tree of every token, and its branch counted from 1 (0 in the prefix).

        Example: one tree of prefix 2 and branches 1 and 2 is tree [0, 0, 0, 0, 0] and branch [0, 0, 1, 2, 2].
        """
        trees = torch.cat([torch.full((span.n_tokens,), i, dtype=torch.int32) for i, span in enumerate(self.spans)])
        lengths = torch.tensor([n for span in self.spans for n in (span.prefix, *span.branches)])
        numbers = torch.tensor([n for span in self.spans for n in range(1 + len(span.branches))], dtype=torch.int32)
        return trees, numbers.repeat_interleave(lengths)

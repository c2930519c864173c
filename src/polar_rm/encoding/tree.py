"""An encoded comparison as a prefix tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Self


@dataclass(frozen=True, slots=True)
class Truncation:
    """Tokens cut away: from the prompt's beginning (once, all candidates share the cut) and from each response's end.

    Of a text that is many times as long as its limit, which is not read whole, the number is an estimate (never 0).
    """

    prompt: int = 0
    reference: int = 0
    candidates: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.prompt or self.reference or any(self.candidates))


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """An encoded comparison: ids of the shared prefix and of each candidate's own branch, which ends in the reward token.

    notes: per candidate, what a reader of its score should know of its texts (see :data:`polar_rm.encoding.texts.NOTES`).
    """

    prefix: list[int]
    branches: list[list[int]]
    ranks: tuple[int, ...]
    truncation: Truncation = Truncation()
    notes: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(
        cls,
        head: Sequence[int],
        tails: Sequence[list[int]],
        ranks: tuple[int, ...],
        truncation: Truncation = Truncation(),
        notes: tuple[tuple[str, ...], ...] = (),
        *,
        shared: int | None = None,
    ) -> Self:
        """The tree of sequences with one head.

        head: ids that all share, at least the separator's. tails: at least one, the ids behind; each ends in the reward token.
        shared: how many ids of the tails belong to the prefix; by default as many as all tails agree on, but the reward token.
        """
        if shared is None:
            shared = min(len(commonprefix(list(tails))), min(map(len, tails)) - 1)
        return cls([*head, *tails[0][:shared]], [list(tail[shared:]) for tail in tails], ranks, truncation, notes)

    @property
    def n_tokens(self) -> int:
        """Tokens computed for this tree; peers compute ``sum(len(prefix) + len(branch))``."""
        return len(self.prefix) + sum(map(len, self.branches))

    def sequence(self, candidate: int) -> list[int]:
        """The complete ids of one candidate, as an engine without prefix trees is fed."""
        return self.prefix + self.branches[candidate]

    def distinct(self) -> tuple[PrefixTree, list[list[int]]]:
        """The tree without repeated branches, and for each of its branches the candidates that have it.

        Different texts can have the same ids: what differed was cut away, or was a special token's text.
        """
        owners: dict[tuple[int, ...], list[int]] = {}
        for index, branch in enumerate(self.branches):
            owners.setdefault(tuple(branch), []).append(index)
        groups = list(owners.values())
        return self if len(groups) == len(self.branches) else self._subtree([first for first, *_ in groups]), groups

    def split(self, max_tokens: int) -> list[tuple[list[int], PrefixTree]]:
        """Parts of at most ``max_tokens`` (a single branch may exceed it), each with the indices of its candidates."""
        parts: list[list[int]] = [[]]
        used = len(self.prefix)
        for index, branch in enumerate(self.branches):
            if parts[-1] and used + len(branch) > max_tokens:
                parts.append([])
                used = len(self.prefix)
            parts[-1].append(index)
            used += len(branch)
        return [(part, self._subtree(part)) for part in parts]

    def _subtree(self, indices: Sequence[int]) -> PrefixTree:
        cut = self.truncation
        cut = Truncation(cut.prompt, cut.reference, tuple(cut.candidates[i] for i in indices) if cut.candidates else ())
        notes = tuple(self.notes[i] for i in indices) if self.notes else ()
        return PrefixTree(self.prefix, [self.branches[i] for i in indices], tuple(self.ranks[i] for i in indices), cut, notes)

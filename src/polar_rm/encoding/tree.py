"""An encoded comparison as a prefix tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Self


@dataclass(frozen=True, slots=True)
class Truncation:
    """The numbers of tokens that were removed from the prompt's beginning and from each response's end.

    All candidates of a tree share the truncation of the prompt. For a text many times as long as its limit, which is not read
    whole, the number is an estimate (never 0).
    """

    prompt: int = 0
    reference: int = 0
    candidates: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.prompt or self.reference or any(self.candidates))


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """An encoded comparison: ids of the shared prefix and of each candidate's branch, which ends in the reward token.

    notes: the notes of each candidate (see :data:`polar_rm.encoding.texts.Note`). shared: for each branch the number of first ids
    of the prefix that it continues; () if all continue the whole prefix, as nearly always.
    """

    prefix: list[int]
    branches: list[list[int]]
    ranks: tuple[int, ...]
    truncation: Truncation = Truncation()
    notes: tuple[tuple[str, ...], ...] = ()
    shared: tuple[int, ...] = ()

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

        head: ids that all sequences share, at least that of the separator. tails: the ids after the head, of at least one
        sequence; each ends in the reward token. shared: the number of ids of the tails that belong to the prefix; by default the
        longest common prefix of the tails without the reward token.
        """
        if shared is None:
            shared = min(len(commonprefix(list(tails))), min(map(len, tails)) - 1)
        return cls([*head, *tails[0][:shared]], [list(tail[shared:]) for tail in tails], ranks, truncation, notes)

    @property
    def n_tokens(self) -> int:
        """The number of tokens computed for this tree; without prefix trees it is ``sum(len(prefix) + len(branch))``."""
        return len(self.prefix) + sum(map(len, self.branches))

    def sequence(self, candidate: int) -> list[int]:
        """The complete ids of one candidate, as an engine without prefix trees gets them."""
        shared = self.shared[candidate] if self.shared else len(self.prefix)
        return self.prefix[:shared] + self.branches[candidate]

    def length(self, candidate: int) -> int:
        """The number of ids of one candidate's sequence."""
        return (self.shared[candidate] if self.shared else len(self.prefix)) + len(self.branches[candidate])

    def nested(self) -> PrefixTree:
        """The same sequences with fewer tokens, where they begin alike for longer than the prefix: as the turns of one
        conversation, each of which continues the one before.

        The prefix goes on along the longest branch, to its last id, and every branch leaves it where it differs.
        """
        longest = max(self.branches, key=len)[:-1]
        prefix = [*self.prefix, *longest]
        lengths = [min(len(commonprefix([branch, longest])), len(branch) - 1) for branch in self.branches]
        branches = [branch[length:] for branch, length in zip(self.branches, lengths, strict=True)]
        shared = tuple(len(self.prefix) + length for length in lengths)
        return PrefixTree(prefix, branches, self.ranks, self.truncation, self.notes, shared)

    def distinct(self) -> tuple[PrefixTree, list[list[int]]]:
        """The tree without repeated branches, and for each of its branches the indices of the candidates with these ids.

        Different texts can have the same ids, if the difference was truncated or was a special token's text.
        """
        candidates: dict[tuple[int, ...], list[int]] = {}
        for index, branch in enumerate(self.branches):
            candidates.setdefault((self.shared[index] if self.shared else 0, *branch), []).append(index)
        groups = list(candidates.values())
        return self if len(groups) == len(self.branches) else self._subtree([first for first, *_ in groups]), groups

    def split(self, max_tokens: int) -> list[tuple[list[int], PrefixTree]]:
        """Parts of at most ``max_tokens`` each (a part of one branch may exceed it), with the indices of their candidates."""
        parts: list[list[int]] = [[]]
        prefix = used = 0  # tokens of the last part: of its prefix, and of its branches
        for index, branch in enumerate(self.branches):
            shared = self.length(index) - len(branch)
            if parts[-1] and max(prefix, shared) + used + len(branch) > max_tokens:
                parts.append([])
                prefix = used = 0
            parts[-1].append(index)
            prefix, used = max(prefix, shared), used + len(branch)
        return [(part, self._subtree(part)) for part in parts]

    def _subtree(self, indices: Sequence[int]) -> PrefixTree:
        """The tree of some branches, with as much of the prefix as they need."""
        whole = self.truncation
        candidates = tuple(whole.candidates[i] for i in indices) if whole.candidates else ()
        truncation = Truncation(whole.prompt, whole.reference, candidates)
        notes = tuple(self.notes[i] for i in indices) if self.notes else ()
        branches, ranks = [self.branches[i] for i in indices], tuple(self.ranks[i] for i in indices)
        shared = tuple(self.shared[i] for i in indices) if self.shared else ()
        return PrefixTree(self.prefix[: max(shared, default=None)], branches, ranks, truncation, notes, shared)

"""What becomes of one item, in the server and in the client: a reward or a typed failure, never None and never 0 instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import ScoreError

FailureCode = Literal[
    "invalid_item",  # the item is not what it should be; sending it again will not help
    "non_finite",  # the model gave NaN or infinity
    "model_error",  # the model failed on this item, for example for want of memory
    "refused",  # the server does not take it: limits, key, an unknown route
    "unavailable",  # no answer in time: connection refused, overload, a deadline
    "bad_reply",  # the server's answer is not what its protocol says
]


@dataclass(frozen=True, slots=True)
class Cut:
    """Tokens cut away: from the prompt's beginning and from the end of reference and output."""

    prompt: int = 0
    reference: int = 0
    output: int = 0

    def __bool__(self) -> bool:
        return bool(self.prompt or self.reference or self.output)

    @classmethod
    def of(cls, tree: PrefixTree, branch: int) -> Cut:
        """Of one candidate of an encoded tree."""
        cut = tree.truncation
        return cls(cut.prompt, cut.reference, cut.candidates[branch] if cut.candidates else 0)


Note = Literal["truncated", "beyond_positions", "unfinished_thinking", "thinking_stripped", "empty"]
"""What a reader of a reward should know. truncated: a text was cut to the encoder's limits. beyond_positions: the sequence is
longer than the backbone's positions, where scores mean little. The others: see :mod:`polar_rm.encoding.texts`."""


@dataclass(frozen=True, slots=True)
class Reward:
    """reward: raw and unbounded. n_tokens: of the whole sequence. notes: see :data:`Note`; none where nothing is known."""

    reward: float
    n_tokens: int
    cut: Cut = Cut()
    notes: tuple[str, ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether a text was cut to the encoder's limits."""
        return bool(self.cut)

    @classmethod
    def of(cls, reward: float, tree: PrefixTree, branch: int, max_positions: int | None = None) -> Reward:
        """Of one candidate of an encoded tree. max_positions: of the backbone."""
        n_tokens = len(tree.prefix) + len(tree.branches[branch])
        cut = Cut.of(tree, branch)
        notes = {"truncated": bool(cut), "beyond_positions": bool(max_positions) and n_tokens > (max_positions or 0)}
        of_texts = tree.notes[branch] if tree.notes else ()
        return cls(reward, n_tokens, cut, (*(note for note, holds in notes.items() if holds), *of_texts))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item has no reward."""

    code: FailureCode
    message: str


Outcome = Reward | Failure


def rewards(outcomes: Sequence[Outcome]) -> list[float]:
    """The rewards of outcomes that must all have one.

    Raises:
        ScoreError: an item failed; the message counts them and gives the first reason.
    """
    failed = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Failure)]
    if failed:
        index, failure = failed[0]
        raise ScoreError(
            f"{len(failed)} of {len(outcomes)} items have no reward; first item {index + 1}: {failure.code}: {failure.message}"
        )
    return [outcome.reward for outcome in outcomes if isinstance(outcome, Reward)]

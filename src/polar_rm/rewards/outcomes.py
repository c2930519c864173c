"""The outcome of one item in server and client: a reward or a typed failure, never None or 0 in place of a failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polar_rm.errors import ScoreError

if TYPE_CHECKING:  # the encoder loads tokenizers, which `polar --help` and the names of transforms don't need
    from polar_rm.encoding.tree import PrefixTree

FailureCode = Literal[
    "invalid_item",  # the item is invalid; sending it again will not help
    "non_finite",  # the model's score is NaN or infinite
    "model_error",  # the model failed on this item, for example by running out of memory
    "refused",  # the server refused the request: limits, key, an unknown route
    "unavailable",  # no answer in time: connection refused, overload, a deadline
    "bad_reply",  # the server's answer does not follow its protocol
]


@dataclass(frozen=True, slots=True)
class Cut:
    """Numbers of tokens that truncation removed: from the beginning of the prompt, and from the end of reference and output."""

    prompt: int = 0
    reference: int = 0
    output: int = 0

    def __bool__(self) -> bool:
        return bool(self.prompt or self.reference or self.output)

    def __add__(self, other: Cut) -> Cut:
        return Cut(self.prompt + other.prompt, self.reference + other.reference, self.output + other.output)

    @classmethod
    def of(cls, tree: PrefixTree, branch: int) -> Cut:
        """The truncation of one candidate of an encoded tree."""
        truncation = tree.truncation
        return cls(truncation.prompt, truncation.reference, truncation.candidates[branch] if truncation.candidates else 0)


Note = Literal["truncated", "beyond_positions", "unfinished_thinking", "thinking_stripped", "empty"]
"""A caveat about a reward. truncated: a text was truncated to the encoder's limits. beyond_positions: the sequence is longer than
the backbone's number of positions, where scores are unreliable. For the others see :mod:`polar_rm.encoding.texts`."""

ANCHOR_FIELDS = ("anchor", "probability", "deviation")
"""The fields of a :class:`Reward` that are known only if the reference was scored too."""


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of one item, raw and unbounded.

    n_tokens: tokens of the whole sequence. cut: the truncation. notes: see :data:`Note`; empty if the source reports no notes.
    The other fields are None unless the reference was scored too. anchor: the raw reward of the reference as a candidate.
    probability: P(candidate over the reference) = sigmoid((reward - anchor) / T), if the model has a calibration card.
    deviation: the standard deviation of reward - anchor, if the uncertainty of the model's head is known.
    """

    reward: float
    n_tokens: int
    cut: Cut = Cut()
    notes: tuple[str, ...] = ()
    anchor: float | None = None
    probability: float | None = None
    deviation: float | None = None

    @property
    def anchored(self) -> float | None:
        """The reward on the scale whose 0 is the reference itself; None if the reference was not scored."""
        return None if self.anchor is None else self.reward - self.anchor

    def anchor_fields(self) -> dict[str, float]:
        """The known values of :data:`ANCHOR_FIELDS`; files and replies add them to the reward."""
        values = {name: getattr(self, name) for name in ANCHOR_FIELDS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def truncated(self) -> bool:
        """Whether a text was truncated to the encoder's limits."""
        return bool(self.cut)

    @classmethod
    def of(cls, reward: float, tree: PrefixTree, branch: int, max_positions: int | None = None) -> Reward:
        """The reward of one candidate of an encoded tree. max_positions: the backbone's number of positions."""
        n_tokens = tree.length(branch)
        text_notes = tree.notes[branch] if tree.notes else ()
        return cls.noted(reward, n_tokens, Cut.of(tree, branch), text_notes, max_positions)

    @classmethod
    def noted(
        cls, reward: float, n_tokens: int, cut: Cut, text_notes: tuple[str, ...] = (), max_positions: int | None = None
    ) -> Reward:
        """The reward with all its notes. text_notes: the encoder's. max_positions: the backbone's; None if it is unknown."""
        notes = {"truncated": bool(cut), "beyond_positions": max_positions is not None and n_tokens > max_positions}
        return cls(reward, n_tokens, cut, (*(note for note, holds in notes.items() if holds), *text_notes))


@dataclass(slots=True)
class Unread:
    """What truncation removed from the sequences that it affected, in tokens, summed over them.

    sequences: their number. read: the tokens that remain of them. cut: the removed tokens of each text.
    """

    sequences: int = 0
    read: int = 0
    cut: Cut = Cut()

    def add(self, n_tokens: int, cut: Cut) -> None:
        """Count one sequence, if it was truncated. n_tokens: the tokens that remain of it."""
        if cut:
            self.sequences += 1
            self.read += n_tokens
            self.cut += cut

    def merge(self, other: Unread) -> None:
        """Count the sequences of another count, too."""
        self.sequences += other.sequences
        self.read += other.read
        self.cut += other.cut

    def __str__(self) -> str:
        parts = {"prompts": self.cut.prompt, "references": self.cut.reference, "outputs": self.cut.output}
        removed = sum(parts.values())
        words = ", ".join(f"{count / removed:.0%} of it in {name}" for name, count in parts.items() if count)
        return f"{removed / (self.read + removed):.0%} of these sequences' {self.read + removed:,} tokens was not read, {words}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item has no reward."""

    code: FailureCode
    message: str


Outcome = Reward | Failure


def rewards(outcomes: Sequence[Outcome]) -> list[float]:
    """The rewards of outcomes that must all have one.

    Raises:
        ScoreError: an item failed; the message has the number of failed items and the first reason.
    """
    failed = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Failure)]
    if failed:
        index, failure = failed[0]
        raise ScoreError(
            f"{len(failed)} of {len(outcomes)} items have no reward; first item {index + 1}: {failure.code}: {failure.message}"
        )
    return [outcome.reward for outcome in outcomes if isinstance(outcome, Reward)]

"""Turns of a conversation: each is scored as the output that ends with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from polar_rm.records import InvalidRecord, ScoreItem, Text, check
from polar_rm.rewards.outcomes import Failure, Outcome, Reward


class Turn(NamedTuple):
    """The reward at the end of a turn. message: the number of the message that ends it, from 1."""

    message: int
    reward: Reward


TurnOutcome = list[Turn] | Failure
"""All turns of an output, in order, or why it has no reward."""


def turns_of(output: Text) -> list[Text]:
    """The outputs up to and with each turn of the assistant; a string is one turn.

    Raises:
        InvalidRecord: there is none.
    """
    if isinstance(output, str):
        return [output]
    ends = [end for end, message in enumerate(output, 1) if message["role"] == "assistant"]
    if not ends:
        raise InvalidRecord("output", "a message of the assistant, whose turns are scored")
    return [output[:end] for end in ends]


def turn_ends(output: Text) -> list[int]:
    """The number of the message, from 1, that ends each turn; 1 for a string.

    Raises:
        InvalidRecord: there is none.
    """
    return [1 if isinstance(part, str) else len(part) for part in turns_of(output)]


def turns_or_whole(output: Text) -> list[Text]:
    """As :func:`turns_of`; an output without a turn, which can't be scored, is one by itself."""
    try:
        return turns_of(output)
    except InvalidRecord:
        return [output]


@dataclass(frozen=True, slots=True)
class TurnItems:
    """The items that must be scored for the turns of items.

    to_score: an item for each turn. ends: for each of the given items the messages that end its turns, or why it has none.
    """

    to_score: list[ScoreItem]
    ends: list[list[int] | Failure]

    @classmethod
    def of(cls, items: Sequence[ScoreItem]) -> Self:
        """The plan for items with one reference each; others fail alone, as do invalid ones and those without a turn."""
        parts: list[ScoreItem] = []
        ends: list[list[int] | Failure] = []
        for item in items:
            try:
                turns = turns_of(check(item).output)
                if isinstance(item.reference, tuple):
                    raise InvalidRecord("references", "one reference, because turns are scored under one")
            except InvalidRecord as error:
                ends.append(Failure("invalid_item", str(error)))
                continue
            parts += [replace(item, output=turn) for turn in turns]
            ends.append(turn_ends(item.output))
        return cls(parts, ends)

    def outcomes(self, scored: Sequence[Outcome]) -> list[TurnOutcome]:
        """The outcomes of the given items, in order. An item fails if one of its turns does. scored: those of ``to_score``."""
        remaining = iter(scored)
        return [of_item if isinstance(of_item, Failure) else _together(of_item, remaining) for of_item in self.ends]


def _together(ends: Sequence[int], scored: Iterator[Outcome]) -> TurnOutcome:
    outcomes = [next(scored) for _ in ends]
    rewards = [Turn(end, outcome) for end, outcome in zip(ends, outcomes, strict=True) if isinstance(outcome, Reward)]
    if len(rewards) == len(ends):
        return rewards
    number, failure = next((number, each) for number, each in enumerate(outcomes, 1) if isinstance(each, Failure))
    return failure if len(ends) == 1 else replace(failure, message=f"turn {number}: {failure.message}")

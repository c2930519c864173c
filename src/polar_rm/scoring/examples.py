"""A few packaged examples with a better and a worse answer each, on which a newcomer sees a model right and wrong.

The first seven are samples of the packaged corpus, of prompts that ``polar quickstart`` and ``package:demo`` hold out; the others
are written by hand. All were chosen before any model scored them, and their order is fixed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from polar_rm.records import ScoreItem
from polar_rm.rewards.outcomes import Failure, Outcome


@dataclass(frozen=True, slots=True)
class Example:
    """An answer to a prompt that should get the higher reward under the reference, and another one. about: in a few words why."""

    prompt: str
    reference: str
    better: str
    worse: str
    about: str

    def items(self) -> list[ScoreItem]:
        """The better answer and the worse one, to be scored."""
        return [ScoreItem(self.prompt, self.reference, output) for output in (self.better, self.worse)]


@dataclass(frozen=True, slots=True)
class Judged:
    """An example with a model's rewards for the better and for the worse answer."""

    example: Example
    better: float
    worse: float

    @property
    def is_right(self) -> bool:
        """Whether the better answer has the higher reward; equal rewards are not right."""
        return self.better > self.worse

    def to_json(self) -> dict[str, Any]:
        """The example and, in ``rewards``, those of the better and of the worse answer."""
        return {**asdict(self.example), "rewards": [self.better, self.worse], "right": self.is_right}


def read_examples() -> list[Example]:
    """All packaged examples, in their order."""
    text = (files("polar_rm.scoring") / "examples.jsonl").read_text(encoding="utf-8")
    return [Example(**json.loads(line)) for line in text.splitlines()]


def example_items(examples: Sequence[Example]) -> list[ScoreItem]:
    """What a scorer or server has to score for :func:`judge`."""
    return [item for example in examples for item in example.items()]


def judge(examples: Sequence[Example], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What a model made of the examples. outcomes: of :func:`example_items`, in order.

    The result has ``n``, the number of examples with two rewards; ``n_right``; ``failed``, the number of the others with the
    first reason in ``failure``; and in ``right`` and ``wrong`` the first example of each kind, None where there is none.
    """
    pairs = list(zip(examples, outcomes[::2], outcomes[1::2], strict=True))
    failures = [each for _, better, worse in pairs for each in (better, worse) if isinstance(each, Failure)]
    judged = [
        Judged(example, better.reward, worse.reward)
        for example, better, worse in pairs
        if not isinstance(better, Failure) and not isinstance(worse, Failure)
    ]
    right = [each.to_json() for each in judged if each.is_right]
    wrong = [each.to_json() for each in judged if not each.is_right]
    return {
        "n": len(judged),
        "n_right": len(right),
        "failed": len(pairs) - len(judged),
        "failure": failures[0].message if failures else None,
        "right": right[0] if right else None,
        "wrong": wrong[0] if wrong else None,
    }

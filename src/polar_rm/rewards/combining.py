"""Several references of one item: each gives a reward of its own, and these are combined into one.

Raw rewards under different references lie on different scales. A mean of them still orders the outputs of one prompt, because all
outputs have the same references. The best of them does not: it would be the reference with the highest scale. So ``best``
compares anchored rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal, Self, get_args

from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem
from polar_rm.rewards.anchors import has_anchor
from polar_rm.rewards.outcomes import Cut, Failure, Outcome, Reward
from polar_rm.rewards.scale import Scale

Combine = Literal["mean", "best"]
"""mean: of the raw rewards. best: the highest anchored reward (reward - anchor) under any reference, also of one only.
The 0 of its scale is the reference itself, so that its own anchor is 0."""


COMBINE: tuple[Combine, ...] = get_args(Combine)


def check_combine(combine: str, transform: str) -> None:
    """Refuse an unknown way to combine, and one that a transform can't follow.

    Raises:
        PolarError: the name is unknown, or the transform is ``percentile`` and the rewards are no raw ones.
    """
    if combine not in COMBINE:
        raise PolarError(f"unknown way to combine references {combine!r}; known: {', '.join(COMBINE)}")
    if combine == "best" and transform == "percentile":
        raise PolarError("percentiles are those of raw rewards, and the best of several references is an anchored one")


@dataclass(frozen=True, slots=True)
class ReferencedItems:
    """The items that must be scored for items with several references: one for each reference.

    to_score: the items, each with one reference. counts: for each of the given items the number of its references.
    """

    to_score: list[ScoreItem]
    counts: list[int]

    @classmethod
    def of(cls, items: Sequence[ScoreItem]) -> Self:
        """The plan for items, each with one reference or several. Invalid items remain as they are, to be refused."""
        parts = [_parts(item) for item in items]
        return cls([part for each in parts for part in each], list(map(len, parts)))

    def is_plain(self, combine: Combine) -> bool:
        """Whether the outcomes of ``to_score`` are those of the given items."""
        return combine == "mean" and len(self.to_score) == len(self.counts)

    def outcomes(self, scored: Sequence[Outcome], combine: Combine, scale: Scale) -> list[Outcome]:
        """The outcomes of the given items, in order. An item fails if one of its references does.

        scored: the outcomes of ``to_score``; for ``best`` with anchors. scale: gives means of anchored rewards a probability.
        """
        remaining = iter(scored)
        return [_combined([next(remaining) for _ in range(count)], combine, scale) for count in self.counts]


def _parts(item: ScoreItem) -> list[ScoreItem]:
    if not isinstance(item.reference, tuple) or len(item.reference) < 2 or not has_anchor(item):
        return [item]
    return [replace(item, reference=reference) for reference in item.reference]


def combined_rewards(rewards: Sequence[Reward], combine: Combine, scale: Scale) -> Reward:
    """One reward from those under several references. For ``best`` they must be anchored.

    The counts of tokens are summed, and notes are kept. The deviation of a mean is not known.
    """
    if combine == "best":
        best = max(rewards, key=lambda reward: reward.reward - (reward.anchor or 0.0))
        reward = replace(best, reward=best.reward - (best.anchor or 0.0), anchor=0.0)
    elif len(rewards) == 1:
        return rewards[0]
    else:
        anchors = [reward.anchor for reward in rewards if reward.anchor is not None]
        reward = Reward(fmean(reward.reward for reward in rewards), 0)
        if len(anchors) == len(rewards):
            [anchored] = scale.anchor([reward], [Reward(fmean(anchors), 0)])
            reward = anchored if isinstance(anchored, Reward) else reward
    cut = sum((reward.cut for reward in rewards), Cut())
    notes = tuple(dict.fromkeys(note for reward in rewards for note in reward.notes))
    return replace(reward, n_tokens=sum(reward.n_tokens for reward in rewards), cut=cut, notes=notes)


def _combined(outcomes: Sequence[Outcome], combine: Combine, scale: Scale) -> Outcome:
    for number, outcome in enumerate(outcomes, 1):
        if isinstance(outcome, Failure):
            return outcome if len(outcomes) == 1 else replace(outcome, message=f"reference {number}: {outcome.message}")
    return combined_rewards([outcome for outcome in outcomes if isinstance(outcome, Reward)], combine, scale)

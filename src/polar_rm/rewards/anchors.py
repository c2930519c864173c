"""Anchored rewards: r(candidate | reference) - r(reference | reference), 0 for a candidate that is the reference itself.

Raw rewards under different references lie on different scales; the reference's own reward is the zero of its scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from polar_rm.records import ScoreItem, flatten, group_items
from polar_rm.rewards.outcomes import Failure, Outcome
from polar_rm.rewards.scale import Scale

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NO_ANCHOR = "the reference is empty, so that there is no reward of the reference itself: give one, or ask for raw rewards"


def has_anchor(item: ScoreItem) -> bool:
    """Whether its reference is more than white space. True for what is no text: scoring tells what is wrong with it."""
    try:
        return bool(flatten(item.reference).strip())
    except (TypeError, KeyError, AttributeError):
        return True


@dataclass(frozen=True, slots=True)
class AnchoredItems:
    """What has to be scored for the anchored rewards of items: the items that have an anchor, and behind them their anchors.

    An anchor is a reference as a candidate, once for each prompt, reference and wrapper. Scored together with the items, it
    joins their tree as one more branch. own: the indices of the items that have an anchor; ``to_score`` begins with them.
    anchor_of: for each of them the index in ``to_score`` of its anchor. count: of all items.
    """

    count: int
    own: list[int]
    to_score: list[ScoreItem]
    anchor_of: list[int]

    @classmethod
    def of(cls, items: Sequence[ScoreItem]) -> Self:
        """The plan for items, with or without references."""
        own = [index for index, item in enumerate(items) if has_anchor(item)]
        to_score, anchor_of = [items[index] for index in own], [0] * len(own)
        for group in group_items(to_score):
            item = to_score[group[0]]
            for index in group:
                anchor_of[index] = len(to_score)
            to_score.append(ScoreItem(item.prompt, item.reference, item.reference, item.wrapper))
        return cls(len(items), own, to_score, anchor_of)

    def outcomes(self, scored: Sequence[Outcome], scale: Scale, features: NDArray[np.float32] | None = None) -> list[Outcome]:
        """The outcomes of all items, in order; those without an anchor fail.

        scored: of ``to_score``. features: of the same, float32 [len(to_score), hidden], for deviations.
        """
        number = len(self.own)
        differences = None if features is None else features[:number] - features[self.anchor_of]
        anchored = scale.anchor(scored[:number], [scored[index] for index in self.anchor_of], differences)
        outcomes: list[Outcome] = [Failure("invalid_item", NO_ANCHOR)] * self.count
        for index, outcome in zip(self.own, anchored, strict=True):
            outcomes[index] = outcome
        return outcomes

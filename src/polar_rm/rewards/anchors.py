"""Anchored rewards: r(candidate | reference) - r(reference | reference), which is 0 for the reference itself.

Raw rewards under different references lie on different scales. The reward of the reference itself is the zero of its scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from polar_rm.records import ScoreItem, flatten, group_items, one_reference
from polar_rm.rewards.outcomes import Failure, Outcome
from polar_rm.rewards.scale import Scale

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NO_ANCHOR = "the reference is empty, so it has no reward of its own; give a reference, or use raw rewards"


def has_anchor(item: ScoreItem) -> bool:
    """Whether the item has references of more than white space. True for what is no text; scoring reports that error."""
    references = item.reference if isinstance(item.reference, tuple) else (item.reference,)
    try:
        return all(flatten(each).strip() for each in references)
    except (TypeError, KeyError, AttributeError):
        return True


@dataclass(frozen=True, slots=True)
class AnchoredItems:
    """The items that must be scored for anchored rewards.

    An anchor is an item whose candidate is the reference itself. There is one for each prompt, reference and wrapper. When it is
    scored together with the other items, it becomes one more branch of their tree.

    count: the number of all items. anchorable: the indices of the items that have an anchor. to_score: these items, then their
    anchors. anchor_of: for each of these items the index of its anchor in ``to_score``.
    """

    count: int
    anchorable: list[int]
    to_score: list[ScoreItem]
    anchor_of: list[int]

    @classmethod
    def of(cls, items: Sequence[ScoreItem]) -> Self:
        """The plan for items, with or without references."""
        anchorable = [index for index, item in enumerate(items) if has_anchor(item)]
        to_score, anchor_of = [items[index] for index in anchorable], [0] * len(anchorable)
        for group in group_items(to_score):
            item = to_score[group[0]]
            for index in group:
                anchor_of[index] = len(to_score)
            to_score.append(replace(item, output=one_reference(item), metadata={}))
        return cls(len(items), anchorable, to_score, anchor_of)

    def outcomes(self, scored: Sequence[Outcome], scale: Scale, features: NDArray[np.float32] | None = None) -> list[Outcome]:
        """Return the outcomes of all items, in order; an item without an anchor fails.

        scored: the outcomes of ``to_score``. features: their features, float32 [len(to_score), hidden], for deviations.
        """
        n = len(self.anchorable)
        differences = None if features is None else features[:n] - features[self.anchor_of]
        anchored = scale.anchor(scored[:n], [scored[index] for index in self.anchor_of], differences)
        outcomes: list[Outcome] = [Failure("invalid_item", NO_ANCHOR)] * self.count
        for index, outcome in zip(self.anchorable, anchored, strict=True):
            outcomes[index] = outcome
        return outcomes

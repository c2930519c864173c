"""Anchored rewards: r(candidate | reference) - r(reference | reference), 0 for a candidate that is the reference itself.

Raw rewards under different references lie on different scales; the reference's own reward is the zero of its scale.
"""

from __future__ import annotations

from collections.abc import Sequence

from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem, flatten, group_items

NO_ANCHOR = "the reference is empty, so that there is no reward of the reference itself: give one, or ask for raw rewards"


def has_anchor(item: ScoreItem) -> bool:
    """Whether its reference is more than white space."""
    return bool(flatten(item.reference).strip())


def anchor_items(items: Sequence[ScoreItem], first: int = 1) -> tuple[list[ScoreItem], list[int]]:
    """The items whose rewards anchor the others: each reference as a candidate, once for each prompt, reference and wrapper.

    Scored together with the items, an anchor joins their tree as one more branch. Returns the anchors, and for each item the
    index of its anchor. first: number of the first item, for errors.

    Raises:
        PolarError: an item has an empty reference.
    """
    anchors, anchor_of = [], [0] * len(items)
    for number, group in enumerate(group_items(items)):
        item = items[group[0]]
        if not has_anchor(item):
            raise PolarError(f"item {first + group[0]}: {NO_ANCHOR}")
        anchors.append(ScoreItem(item.prompt, item.reference, item.reference, item.wrapper))
        for index in group:
            anchor_of[index] = number
    return anchors, anchor_of

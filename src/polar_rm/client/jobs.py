"""Items in an order in which neighbours share prefixes, and the place that each outcome goes back to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import PolarError
from polar_rm.records import InvalidRecord, ScoreItem, check, group_items
from polar_rm.rewards.outcomes import Cut, Failure

Job = TypeVar("Job")


@dataclass(frozen=True, slots=True)
class Ids:
    """One encoded item."""

    ids: list[int]
    cut: Cut


@dataclass(frozen=True, slots=True)
class Jobs(Generic[Job]):
    """todo: what to score. places: the index of the item that each job belongs to. failed: items that can't be scored."""

    todo: list[Job]
    places: list[int]
    failed: dict[int, Failure]


def by_group(items: Sequence[ScoreItem]) -> Jobs[ScoreItem]:
    """Items as they are, those with one prompt, reference and wrapper next to each other; one that is no item has failed."""
    jobs: Jobs[ScoreItem] = Jobs([], [], {})
    for group in _checked_groups(items, jobs.failed):
        jobs.todo.extend(items[index] for index in group)
        jobs.places.extend(group)
    return jobs


def _checked_groups(items: Sequence[ScoreItem], failed: dict[int, Failure]) -> list[list[int]]:
    """Indices of the items by group, without those that a file's reader would refuse, such as an output with the prompt in it."""
    for index, item in enumerate(items):
        try:
            check(item)
        except InvalidRecord as error:
            failed[index] = Failure("invalid_item", str(error))
    return [kept for group in group_items(items) if (kept := [index for index in group if index not in failed])]


def encode(items: Sequence[ScoreItem], encoder: Encoder) -> Jobs[Ids]:
    """The same as token ids; an item that can't be encoded has failed."""
    jobs: Jobs[Ids] = Jobs([], [], {})
    groups = _checked_groups(items, jobs.failed)[::-1]
    while groups:
        group = groups.pop()
        first = items[group[0]]
        try:
            outputs = [items[index].output for index in group]
            trees = encoder.encode_outputs(first.prompt, first.reference, outputs, first.wrapper)
        except PolarError as error:
            if len(group) == 1:
                jobs.failed[group[0]] = Failure("invalid_item", str(error))
            else:  # perhaps only one output is at fault
                groups += [[index] for index in reversed(group)]
            continue
        for part, tree in trees:
            for branch, place in enumerate(part):
                jobs.todo.append(Ids(tree.sequence(branch), Cut.of(tree, branch)))
                jobs.places.append(group[place])
    return jobs

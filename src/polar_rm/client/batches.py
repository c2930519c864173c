"""Batches of items, ordered so that adjacent items share prefixes, with the original index of each item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import PolarError
from polar_rm.records import InvalidRecord, ScoreItem, check, group_items, one_reference
from polar_rm.rewards.outcomes import Cut, Failure

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """The token ids of one item. cut: its truncation. shared: the number of ids up to the end of the prompt after the separator,
    which all outputs of the prompt share; None if it is unknown. notes: the encoder's, on its texts."""

    ids: list[int]
    cut: Cut
    shared: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch(Generic[Entry]):
    """entries: the items to score. indices: the original index of each entry. failed: by index, items that can't be scored."""

    entries: list[Entry]
    indices: list[int]
    failed: dict[int, Failure]


def by_group(items: Sequence[ScoreItem]) -> Batch[ScoreItem]:
    """The items; those with the same prompt, reference and wrapper are adjacent. Invalid items are in ``failed``."""
    batch: Batch[ScoreItem] = Batch([], [], {})
    for group in _valid_groups(items, batch.failed):
        batch.entries.extend(items[index] for index in group)
        batch.indices.extend(group)
    return batch


def _valid_groups(items: Sequence[ScoreItem], failed: dict[int, Failure]) -> list[list[int]]:
    """Indices of the items by group, without items that a file reader would refuse, such as an output that repeats the prompt."""
    for index, item in enumerate(items):
        try:
            check(item)
        except InvalidRecord as error:
            failed[index] = Failure("invalid_item", str(error))
    return [kept for group in group_items(items) if (kept := [index for index in group if index not in failed])]


def encode(items: Sequence[ScoreItem], encoder: Encoder) -> Batch[EncodedItem]:
    """As :func:`by_group`, with token ids. Items that can't be encoded are in ``failed``."""
    batch: Batch[EncodedItem] = Batch([], [], {})
    groups = _valid_groups(items, batch.failed)[::-1]
    while groups:
        group = groups.pop()
        first = items[group[0]]
        try:
            outputs = [items[index].output for index in group]
            trees = encoder.encode_outputs(first.prompt, one_reference(first), outputs, first.wrapper)
        except PolarError as error:
            if len(group) == 1:
                batch.failed[group[0]] = Failure("invalid_item", str(error))
            else:  # perhaps only one output is at fault
                groups += [[index] for index in reversed(group)]
            continue
        for part, tree in trees:
            for branch, position in enumerate(part):
                notes = tree.notes[branch] if tree.notes else ()
                batch.entries.append(EncodedItem(tree.sequence(branch), Cut.of(tree, branch), len(tree.prefix), notes))
                batch.indices.append(group[position])
    return batch

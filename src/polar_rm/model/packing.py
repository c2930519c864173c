"""Trees -> rows: many trees of different lengths in one sequence.

An optimiser step takes the next ``batch_size`` comparisons of a seeded permutation and packs *them* into rows. So the global
batch depends neither on the number of ranks nor on the row budget, and the place in the data is one integer: the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from polar_rm.attention.layout import TreeLayout, TreeSpan, TreeTensors, copy_async
from polar_rm.encoding.tree import PrefixTree


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One micro-step's input. ``ids``: int64 [1, T]; ``tree``: every index that the model needs, of the same T tokens; ``ranks``:
    one tuple per tree, in the order of the layout's spans. ``layout``: without the padding, for counting on the host."""

    ids: torch.Tensor
    tree: TreeTensors
    layout: TreeLayout
    ranks: tuple[tuple[int, ...], ...]

    def to(self, device: torch.device) -> Self:
        """Without waiting for the device."""
        return type(self)(copy_async(self.ids, device), self.tree.to(device), self.layout, self.ranks)


def pack(trees: Sequence[PrefixTree], *, multiple: int = 1) -> PackedRow:
    """Lay trees one behind another: each tree's prefix, then its branches. The row is filled up with tokens that nobody reads,
    to a ``multiple`` of so many (compiled code likes few sizes; one is no padding)."""
    ids: list[int] = []
    spans = []
    for tree in trees:
        spans.append(TreeSpan(len(ids), len(tree.prefix), tuple(map(len, tree.branches))))
        ids.extend(tree.prefix)
        for branch in tree.branches:
            ids.extend(branch)
    layout = TreeLayout(tuple(spans))
    padding = -len(ids) % multiple
    ids.extend([0] * padding)
    return PackedRow(torch.tensor([ids]), layout.tensors(padding), layout, tuple(tree.ranks for tree in trees))


def first_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped into rows of at most ``budget`` tokens, first-fit decreasing (within 22% of the fewest rows possible).

    A tree longer than the budget gets a row of its own: it is never cut or dropped here. Deterministic: ties keep their order.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        place = next((row for row, free in enumerate(room) if free >= length), None)
        if place is None:
            rows.append([index])
            room.append(budget - length)
        else:
            rows[place].append(index)
            room[place] -= length
    return rows


def deal(rows: Sequence[list[int]], costs: Sequence[int], world_size: int) -> list[list[list[int]]]:
    """Rows for each micro-step and rank: ``result[micro_step][rank]``, an empty list where a rank has nothing left to do.

    Rows of like cost meet in the same micro-step, since all ranks wait for the slowest.
    """
    order = sorted(range(len(rows)), key=lambda r: -sum(costs[i] for i in rows[r]))
    dealt = [[rows[r] for r in order[start : start + world_size]] for start in range(0, len(order), world_size)]
    for ranks in dealt:
        ranks.extend([] for _ in range(world_size - len(ranks)))
    return dealt


def steps_per_epoch(n_comparisons: int, batch_size: int) -> int:
    """The last step of an epoch takes what is left: no comparison is dropped."""
    return -(-n_comparisons // batch_size)


def batches(n_comparisons: int, batch_size: int, *, seed: int, start_step: int = 0) -> Iterator[np.ndarray]:
    """Endless epochs of index arrays; step ``s`` is the same whatever step a run was resumed from.

    Each epoch has its own permutation, drawn from ``(seed, epoch)`` and nothing else.
    """
    per_epoch = steps_per_epoch(n_comparisons, batch_size)
    epoch, offset = divmod(start_step, per_epoch)
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(n_comparisons)
        for step in range(offset, per_epoch):
            yield order[step * batch_size : (step + 1) * batch_size]
        epoch, offset = epoch + 1, 0

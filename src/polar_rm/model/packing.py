"""Packing of trees into rows: many trees of different lengths in one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from polar_rm.attention.layout import TreeLayout, TreeSpan, TreeTensors, copy_async
from polar_rm.attention.prefixes import Prefix, PrefixStore, RowPrefixes
from polar_rm.encoding.tree import PrefixTree


@dataclass(frozen=True, slots=True)
class PackedRow:
    """The input of one micro-step.

    ids: int64 [1, T]. tree: all index tensors that the model needs, for the same T tokens. layout: the row without padding, for
    counting on the host. ranks: one tuple per tree, in the order of the layout's spans. prefixes: of a row of
    :func:`pack_live`, whose ids and tree are those of its live tokens.
    """

    ids: torch.Tensor
    tree: TreeTensors
    layout: TreeLayout
    ranks: tuple[tuple[int, ...], ...]
    prefixes: RowPrefixes | None = None

    def to(self, device: torch.device) -> Self:
        """Copy the row to a device without waiting for it."""
        return replace(self, ids=copy_async(self.ids, device), tree=self.tree.to(device))


def pack(trees: Sequence[PrefixTree], *, multiple: int = 1) -> PackedRow:
    """Concatenate trees, each as its prefix and then its branches.

    multiple: pad the row to a multiple of this many tokens, because compiled code prefers few sizes; 1 adds no padding.
    """
    ids: list[int] = []
    spans = []
    for tree in trees:
        spans.append(TreeSpan(len(ids), len(tree.prefix), tuple(map(len, tree.branches)), tree.shared))
        ids.extend(tree.prefix)
        for branch in tree.branches:
            ids.extend(branch)
    layout = TreeLayout(tuple(spans))
    padding = -len(ids) % multiple
    ids.extend([0] * padding)
    return PackedRow(torch.tensor([ids]), layout.tensors(padding), layout, tuple(tree.ranks for tree in trees))


def pack_live(trees: Sequence[PrefixTree], store: PrefixStore) -> PackedRow:
    """A row as of :func:`pack`, in which tokens of ``store`` are not computed again. For CPUs and without padding."""
    row = pack(trees)
    kept: list[tuple[int, Prefix, int]] = []
    new: list[tuple[int, Prefix]] = []
    is_live = np.ones(row.layout.n_tokens, dtype=bool)
    segments = row.tree.segments.numpy().copy()
    for tree, span in zip(trees, row.layout.spans, strict=True):
        found = store.use(tree.prefix)
        if found:
            prefix, length = found
            kept.append((span.start, prefix, length))
            is_live[span.start : span.start + length] = False
            # What is left of the prefix continues the kept tokens, as a branch does.
            segments[segments[:, 0] == span.start] = (span.start + length, span.prefix - length, span.start, length)
        if found is None or found[1] < span.prefix:
            new.append((span.start, Prefix(tree.prefix)))
    live = torch.from_numpy(is_live.nonzero()[0])
    places = torch.from_numpy(is_live.cumsum() - 1)  # of the row's tokens among the live ones
    of_live = row.tree._replace(positions=row.tree.positions[live], scores=places[row.tree.scores], trees=row.tree.trees[live])
    whole = row.tree._replace(segments=torch.from_numpy(segments[segments[:, 1] > 0]))
    return replace(row, ids=row.ids[:, live], tree=of_live, prefixes=RowPrefixes(whole, live, kept, new))


def first_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped into rows of at most ``budget`` tokens, by first-fit decreasing (at most 22% more rows than the minimum).

    A tree longer than the budget gets its own row; it is never truncated or dropped here. The result is deterministic: ties keep
    their order.
    """
    rows: list[list[int]] = []
    free: list[int] = []  # tokens left in each row
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        row = next((row for row, left in enumerate(free) if left >= length), None)
        if row is None:
            rows.append([index])
            free.append(budget - length)
        else:
            rows[row].append(index)
            free[row] -= length
    return rows


def deal(rows: Sequence[list[int]], costs: Sequence[int], world_size: int) -> list[list[list[int]]]:
    """Distribute rows over micro-steps and ranks: ``result[micro_step][rank]``, an empty list where a rank has no row left.

    Rows of similar cost are in the same micro-step, because all ranks wait for the slowest.
    """
    order = sorted(range(len(rows)), key=lambda r: -sum(costs[i] for i in rows[r]))
    dealt = [[rows[r] for r in order[start : start + world_size]] for start in range(0, len(order), world_size)]
    for ranks in dealt:
        ranks.extend([] for _ in range(world_size - len(ranks)))
    return dealt

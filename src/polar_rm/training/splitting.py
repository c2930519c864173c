"""Comparisons that are longer than a row: their candidates are computed in several rows, with the gradients of one.

A loss compares candidates, so no row alone has it. All parts are first computed without gradients; the loss of all scores gives
the gradient of each score; then each part is computed again and passes the gradient of its scores on (the two passes of
gradient caching, Gao et al. 2021, arXiv 2101.06983). Memory is that of the longest part. The prefix is computed in every part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from polar_rm.encoding.tree import PrefixTree
from polar_rm.model.packing import deal
from polar_rm.training.parallel import World


@dataclass(frozen=True, slots=True)
class Part:
    """Some consecutive candidates of a comparison as a tree of its own.

    scores: their places in the concatenated scores of all comparisons that are split.
    """

    tree: PrefixTree
    scores: slice


def longer_than(budget: int, trees: Mapping[int, PrefixTree]) -> dict[int, PrefixTree]:
    """The trees that are longer than ``budget`` tokens and that splitting makes shorter."""
    return {i: tree for i, tree in trees.items() if tree.n_tokens > budget and len(tree.branches) > 1}


def parts_of(trees: Sequence[PrefixTree], budget: int) -> list[Part]:
    """The trees cut into parts of at most ``budget`` tokens, or of a single candidate where that is longer."""
    parts, n_scores = [], 0
    for tree in trees:
        first, n_tokens = 0, len(tree.prefix)
        for number, branch in enumerate(tree.branches):
            if number > first and n_tokens + len(branch) > budget:
                parts.append(_part(tree, first, number, n_scores))
                first, n_tokens = number, len(tree.prefix)
            n_tokens += len(branch)
        parts.append(_part(tree, first, len(tree.branches), n_scores))
        n_scores += len(tree.branches)
    return parts


def backward_in_parts(
    parts: Sequence[Part],
    world: World,
    scores_of: Callable[[PrefixTree | None, int], torch.Tensor],
    backward: Callable[[torch.Tensor], None],
) -> None:
    """Accumulate the gradients of all parts, which are dealt to the ranks. Every rank calls this with the same parts.

    scores_of: the forward of a tree, float32 [n_candidates], where its second argument is the number of the forward on this rank
    in a pass; None is a tree that counts nothing, because every rank takes part in FSDP's collectives. backward: called once with
    all parts' scores, float32 [n], a leaf whose gradient it accumulates.
    """
    dealt = deal([[i] for i in range(len(parts))], [part.tree.n_tokens for part in parts], world.size)
    own = [parts[ranks[world.rank][0]] if ranks[world.rank] else None for ranks in dealt]
    gathered = torch.zeros(parts[-1].scores.stop, device=world.device)
    with torch.no_grad():
        for number, part in enumerate(own):
            scores = scores_of(part.tree if part else None, number)
            if part:
                gathered[part.scores] = scores
    gathered = world.all_reduce(gathered).requires_grad_()
    backward(gathered)
    assert gathered.grad is not None
    for number, part in enumerate(own):
        scores = scores_of(part.tree if part else None, number)
        # FSDP averages gradients over ranks, but the loss is a mean over the whole batch already.
        (scores @ gathered.grad[part.scores] * world.size if part else scores.sum() * 0).backward()


def _part(tree: PrefixTree, first: int, end: int, offset: int) -> Part:
    return Part(PrefixTree(tree.prefix, tree.branches[first:end], tree.ranks[first:end]), slice(offset + first, offset + end))

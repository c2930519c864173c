"""Objectives on (scores, ranks). The scores of all trees of a row are concatenated, as the model returns them.

Every objective is a *sum* over its items, which are pairs for Bradley-Terry and winners for listwise. The trainer divides by the
number of items of the whole global batch, so that the result does not depend on how comparisons are distributed over rows,
micro-steps and ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from polar_rm.attention.layout import copy_async
from polar_rm.training.config import LossConfig

Ranks = Sequence[Sequence[int]]


# Indices (better, worse) of ordered pairs in a row's flat scores: two int64 tensors [n_pairs], on the scores' device.
Pairs = tuple[torch.Tensor, torch.Tensor]


def pair_indices(ranks: Ranks, device: torch.device | None = None) -> Pairs:
    """All ordered pairs of a row, copied to a device without waiting for it."""
    better, worse = [], []
    offset = 0
    for tree in ranks:
        for i, rank in enumerate(tree):
            for j, other in enumerate(tree):
                if rank < other:
                    better.append(offset + i)
                    worse.append(offset + j)
        offset += len(tree)
    pairs = torch.tensor([better, worse], dtype=torch.long)
    better_indices, worse_indices = (copy_async(pairs, device) if device else pairs).unbind()
    return better_indices, worse_indices


def count_items(ranks: Ranks, config: LossConfig) -> int:
    """The number by which the objective's sum is divided: pairs, or for ``listwise`` candidates that beat at least one other."""
    if config.objective == "listwise":
        return sum(rank < max(tree) for tree in ranks for rank in tree)
    return sum(rank < other for tree in ranks for rank in tree for other in tree)


def item_name(config: LossConfig) -> str:
    """The name of :func:`count_items` among the numbers of a comparison, see :data:`polar_rm.encoded.format.NUMBERS`."""
    return "winners" if config.objective == "listwise" else "pairs"


def loss_sum(scores: torch.Tensor, pairs: Pairs, config: LossConfig) -> torch.Tensor:
    """The objective summed over a row's items, without penalties (see :func:`penalty_sum`). scores: float32 [n_candidates]."""
    if config.objective == "listwise":
        return _listwise(scores, pairs)
    better, worse = pairs
    difference = scores[better] - scores[worse] - config.margin
    loss = -F.logsigmoid(difference)
    if config.label_smoothing:
        loss = (1 - config.label_smoothing) * loss - config.label_smoothing * F.logsigmoid(-difference)
    if config.focal:
        loss = loss * (1 - 2 * F.relu(torch.sigmoid(difference) - 0.5)).square()
    return loss.sum()


def penalty_sum(scores: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """Penalties summed over candidates; the trainer divides by the number of candidates of the global batch."""
    total = scores.new_zeros(())
    if config.centring:
        total = total + config.centring * scores.square().sum()
    if config.log_barrier:
        # Beyond the bounds the barrier is constant instead of infinite, so that a single outlier can't make the loss NaN.
        inside = scores.clamp(-5 + 1e-3, 5 - 1e-3)
        total = total - config.log_barrier * (torch.log(5 - inside) + torch.log(inside + 5)).sum()
    return total


def _listwise(scores: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Sum over winners w of log(1 + sum over their losers l of exp(s_l - s_w)); candidates without losers add 0."""
    better, worse = pairs
    difference = scores[worse] - scores[better]
    # The largest exponent of each sum, at least the 0 of the winner itself, is factored out of it.
    largest = torch.zeros_like(scores).scatter_reduce(0, better, difference.detach(), "amax")
    total = torch.exp(-largest).index_add(0, better, torch.exp(difference - largest[better]))
    return (largest + torch.log(total)).sum()

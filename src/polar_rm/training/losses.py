"""Objectives on (scores, ranks). Scores of all trees of a row stand one behind another, as the model returns them.

Every objective is a *sum* over its units; the trainer divides by the units of the whole global batch, so that the result does
not depend on how comparisons were spread over rows, micro-steps and ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from polar_rm.attention.layout import copy_async
from polar_rm.training.config import LossConfig

Ranks = Sequence[Sequence[int]]


# Positions (better, worse) of ordered pairs in a row's flat scores: two int64 tensors [n_pairs], on the scores' device.
Pairs = tuple[torch.Tensor, torch.Tensor]


def pair_indices(ranks: Ranks, device: torch.device | None = None) -> Pairs:
    """All ordered pairs, sent to a device without waiting for it."""
    better, worse = [], []
    offset = 0
    for tree in ranks:
        for i, rank in enumerate(tree):
            for j, other in enumerate(tree):
                if rank < other:
                    better.append(offset + i)
                    worse.append(offset + j)
        offset += len(tree)
    found = torch.tensor([better, worse], dtype=torch.long)
    better_found, worse_found = (copy_async(found, device) if device else found).unbind()
    return better_found, worse_found


def count_units(ranks: Ranks, config: LossConfig) -> int:
    """What the objective's sum is divided by: pairs, or for ``listwise`` candidates that beat at least one other."""
    if config.objective == "listwise":
        return sum(rank < max(tree) for tree in ranks for rank in tree)
    return sum(rank < other for tree in ranks for rank in tree for other in tree)


def loss_sum(scores: torch.Tensor, pairs: Pairs, config: LossConfig) -> torch.Tensor:
    """The objective summed over a row's units. scores: float32 [n_candidates]. Penalties are added by :func:`penalty_sum`."""
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
    """Penalties summed over candidates (the trainer divides by the global number of candidates)."""
    total = scores.new_zeros(())
    if config.centring:
        total = total + config.centring * scores.square().sum()
    if config.log_barrier:
        # Beyond the bounds the barrier is flat instead of infinite: a single far-off score can't make the loss NaN.
        inside = scores.clamp(-5 + 1e-3, 5 - 1e-3)
        total = total - config.log_barrier * (torch.log(5 - inside) + torch.log(inside + 5)).sum()
    return total


def _listwise(scores: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Of each winner w against the losers l of its pairs: log(1 + sum of exp(s_l - s_w)), and 0 without any."""
    better, worse = pairs
    behind = scores[worse] - scores[better]
    # The largest exponent, at least the 0 of the winner itself, is taken out of every sum.
    most = torch.zeros_like(scores).scatter_reduce(0, better, behind.detach(), "amax")
    mass = torch.exp(-most).index_add(0, better, torch.exp(behind - most[better]))
    return (most + torch.log(mass)).sum()

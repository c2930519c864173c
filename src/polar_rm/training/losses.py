"""Objectives on (scores, ranks). Scores of all trees of a row stand one behind another, as the model returns them.

Every objective is a *sum* over its units; the trainer divides by the units of the whole global batch, so that the result does
not depend on how comparisons were spread over rows, micro-steps and ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from polar_rm.training.config import LossConfig

Ranks = Sequence[Sequence[int]]


def pair_indices(ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (better, worse) of all ordered pairs of a row's flat scores: two int64 tensors [n_pairs]."""
    better, worse = [], []
    offset = 0
    for tree in ranks:
        for i, rank in enumerate(tree):
            for j, other in enumerate(tree):
                if rank < other:
                    better.append(offset + i)
                    worse.append(offset + j)
        offset += len(tree)
    return torch.tensor(better, dtype=torch.long), torch.tensor(worse, dtype=torch.long)


def count_units(ranks: Ranks, config: LossConfig) -> int:
    """What the objective's sum is divided by: pairs, or for ``listwise`` candidates that beat at least one other."""
    if config.objective == "listwise":
        return sum(rank < max(tree) for tree in ranks for rank in tree)
    return sum(rank < other for tree in ranks for rank in tree for other in tree)


def loss_sum(scores: torch.Tensor, ranks: Ranks, config: LossConfig) -> torch.Tensor:
    """The objective summed over a row's units. scores: float32 [n_candidates]. Penalties are added by :func:`penalty_sum`."""
    if config.objective == "listwise":
        return _listwise(scores, ranks)
    better, worse = (index.to(scores.device) for index in pair_indices(ranks))
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


def _listwise(scores: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    terms = []
    for tree_scores, tree in zip(scores.split([len(tree) for tree in ranks]), ranks, strict=True):
        order = torch.tensor(tree, device=scores.device)
        worse = order[:, None] < order[None, :]
        against = worse | torch.eye(len(tree), dtype=torch.bool, device=scores.device)
        log_mass = torch.logsumexp(tree_scores.expand(len(tree), -1).masked_fill(~against, -torch.inf), dim=1)
        terms.append((log_mass - tree_scores)[worse.any(dim=1)].sum())
    return torch.stack(terms).sum()

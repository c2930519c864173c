"""Sums over the rows of a batch, and the means that are logged."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from polar_rm.model.packing import PackedRow
from polar_rm.training.losses import pair_indices
from polar_rm.training.parallel import World


@dataclass
class Totals:
    """Sums over the rows of a batch, from which means are formed after adding up all ranks."""

    loss: float = 0.0
    units: float = 0.0
    pairs: float = 0.0
    correct: float = 0.0
    margin: float = 0.0
    scores: float = 0.0
    squares: float = 0.0
    candidates: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0

    def add(self, loss: torch.Tensor, scores: torch.Tensor, row: PackedRow) -> None:
        scores = scores.cpu()
        better, worse = pair_indices(row.ranks)
        difference = scores[better] - scores[worse]
        self.loss += float(loss)
        self.pairs += len(better)
        self.correct += float((difference > 0).sum() + 0.5 * (difference == 0).sum())
        self.margin += float(difference.sum())
        self.scores += float(scores.sum())
        self.squares += float(scores.square().sum())
        self.candidates += len(scores)
        self.tokens += row.layout.n_tokens

    def reduce(self, where: World) -> dict[str, float]:
        total = Totals(*where.sum([float(v) for v in asdict(self).values()]))
        mean = total.scores / total.candidates
        return {
            "loss": total.loss / (total.units or 1.0),
            "accuracy": total.correct / total.pairs,
            "margin": total.margin / total.pairs,
            "reward_mean": mean,
            "reward_std": math.sqrt(max(0.0, total.squares / total.candidates - mean * mean)),
            "pairs": total.pairs,
            "tokens": total.tokens,
            "flops": total.flops,
        }

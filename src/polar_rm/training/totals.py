"""Sums over the rows of a batch: added up on the device, so that no row waits for it, and read once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from polar_rm.training.losses import Pairs
from polar_rm.training.parallel import World

_MEASURED = ("not_finite", "loss", "correct", "margin", "scores", "squares")
_COUNTED = ("units", "pairs", "candidates", "tokens", "flops")


class Read(NamedTuple):
    """values: means and sums over all ranks, equal on every rank. not_finite: rows of all ranks whose loss is NaN or infinite."""

    values: dict[str, float]
    not_finite: int


@dataclass
class Totals:
    """Of this rank, until :meth:`read`. ``units`` of a loss that is a mean already are 0."""

    device: torch.device
    units: float = 0.0
    pairs: float = 0.0
    candidates: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    _rows: list[Sequence[int]] = field(default_factory=list)
    _losses: list[torch.Tensor] = field(default_factory=list)
    _scores: list[torch.Tensor] = field(default_factory=list)
    _differences: list[torch.Tensor] = field(default_factory=list)

    def add(self, indices: Sequence[int], loss: torch.Tensor, scores: torch.Tensor, pairs: Pairs, tokens: int) -> None:
        """A row. loss: [], scores: [n_candidates], both on the device. indices: of its comparisons, to name them."""
        better, worse = pairs
        self._rows.append(indices)
        self._losses.append(loss.detach())
        self._scores.append(scores.detach())
        self._differences.append(self._scores[-1][better] - self._scores[-1][worse])
        self.pairs += len(better)
        self.candidates += len(scores)
        self.tokens += tokens

    def read(self, where: World, norm: torch.Tensor | None = None) -> Read:
        """Summed over ranks; this waits for the device. norm: of the gradient, equal on all ranks, to be read with it."""
        sums = self._measured()
        counted = torch.tensor([getattr(self, name) for name in _COUNTED], dtype=torch.float64)
        sums = where.add_up(torch.cat([sums, counted.to(self.device, non_blocking=True)]))
        if norm is not None:
            sums = torch.cat([sums, norm.detach().double()[None]])
        found = sums.tolist()
        total = dict(zip((*_MEASURED, *_COUNTED), found, strict=False))
        mean = total["scores"] / total["candidates"]
        variance = total["squares"] / total["candidates"] - mean * mean
        values = {
            "loss": total["loss"] / (total["units"] or 1.0),
            "accuracy": total["correct"] / total["pairs"],
            "margin": total["margin"] / total["pairs"],
            "reward_mean": mean,
            "reward_std": math.sqrt(max(0.0, variance)) if math.isfinite(variance) else variance,
            "pairs": total["pairs"],
            "tokens": total["tokens"],
            "flops": total["flops"],
        }
        return Read(values | ({"grad_norm": found[-1]} if norm is not None else {}), int(total["not_finite"]))

    def offending(self) -> tuple[float, Sequence[int]] | None:
        """The loss and the comparisons of this rank's first row whose loss is not finite."""
        losses = torch.stack(self._losses).tolist() if self._losses else []
        return next(((loss, row) for loss, row in zip(losses, self._rows, strict=True) if not math.isfinite(loss)), None)

    def _measured(self) -> torch.Tensor:
        """float64, by the names above."""
        if not self._losses:
            return torch.zeros(len(_MEASURED), dtype=torch.float64, device=self.device)
        losses, scores = torch.stack(self._losses).double(), torch.cat(self._scores).double()
        differences = torch.cat(self._differences)
        correct = (differences > 0).sum() + 0.5 * (differences == 0).sum()
        not_finite = (~torch.isfinite(losses)).sum()
        sums = (not_finite, losses.sum(), correct, differences.double().sum(), scores.sum(), scores.square().sum())
        return torch.stack([each.double() for each in sums])

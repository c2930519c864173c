"""Sums over the rows of a batch. They are computed on the device, so that no row waits for it, and read once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from polar_rm.training.losses import Pairs
from polar_rm.training.parallel import World

_MEASURED = ("not_finite", "loss", "correct", "margin", "scores", "squares")
_COUNTED = ("items", "pairs", "candidates", "tokens", "flops")


class TotalValues(NamedTuple):
    """The means and sums of a batch over all ranks, equal on every rank.

    not_finite: the number of rows, of all ranks, with a loss that is NaN or infinite.
    """

    values: dict[str, float]
    not_finite: int


@dataclass
class Totals:
    """The sums of this rank, until :meth:`read`. items: the divisor of the loss; 0 if the loss is a mean already."""

    device: torch.device
    items: float = 0.0
    pairs: float = 0.0
    candidates: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    _rows: list[Sequence[int]] = field(default_factory=list)
    _losses: list[torch.Tensor] = field(default_factory=list)
    _scores: list[torch.Tensor] = field(default_factory=list)
    _differences: list[torch.Tensor] = field(default_factory=list)

    def add(self, indices: Sequence[int], loss: torch.Tensor, scores: torch.Tensor, pairs: Pairs, tokens: int) -> None:
        """Add a row. loss: [], scores: [n_candidates], both on the device. indices: of its comparisons, for messages."""
        better, worse = pairs
        self._rows.append(indices)
        self._losses.append(loss.detach())
        self._scores.append(scores.detach())
        self._differences.append(self._scores[-1][better] - self._scores[-1][worse])
        self.pairs += len(better)
        self.candidates += len(scores)
        self.tokens += tokens

    def read(self, world: World, norm: torch.Tensor | None = None) -> TotalValues:
        """Sum over ranks and read the values; this waits for the device.

        norm: the gradient's norm, equal on all ranks, which is read together with the sums.
        """
        sums = self._measured()
        device = sums.device
        counted = torch.tensor([getattr(self, name) for name in _COUNTED], dtype=torch.float64)
        sums = world.all_reduce(torch.cat([sums, counted.to(device, non_blocking=True)]))
        if norm is not None:
            sums = torch.cat([sums, _double(norm.detach())[None]])
        numbers = sums.tolist()
        total = dict(zip((*_MEASURED, *_COUNTED), numbers, strict=False))
        mean = total["scores"] / total["candidates"]
        variance = total["squares"] / total["candidates"] - mean * mean
        values = {
            "loss": total["loss"] / (total["items"] or 1.0),
            "accuracy": total["correct"] / total["pairs"],
            "margin": total["margin"] / total["pairs"],
            "reward_mean": mean,
            "reward_std": math.sqrt(max(0.0, variance)) if math.isfinite(variance) else variance,
            "pairs": total["pairs"],
            "tokens": total["tokens"],
            "flops": total["flops"],
        }
        return TotalValues(values | ({"grad_norm": numbers[-1]} if norm is not None else {}), int(total["not_finite"]))

    def first_not_finite(self) -> tuple[float, Sequence[int]] | None:
        """The loss and the comparisons of this rank's first row with a loss that is not finite; None if there is none."""
        losses = torch.stack(self._losses).tolist() if self._losses else []
        return next(((loss, row) for loss, row in zip(losses, self._rows, strict=True) if not math.isfinite(loss)), None)

    def _measured(self) -> torch.Tensor:
        """The sums named in ``_MEASURED``, float64 on the device, or on the CPU for a device without float64."""
        if not self._losses:
            return _double(torch.zeros(len(_MEASURED), device=self.device))
        losses, scores = _double(torch.stack(self._losses)), _double(torch.cat(self._scores))
        differences = _double(torch.cat(self._differences))
        correct = (differences > 0).sum() + 0.5 * (differences == 0).sum()
        not_finite = (~torch.isfinite(losses)).sum()
        sums = (not_finite, losses.sum(), correct, differences.sum(), scores.sum(), scores.square().sum())
        return torch.stack([each.double() for each in sums])


def _double(values: torch.Tensor) -> torch.Tensor:
    """In float64, which a Mac's GPU does not have."""
    return (values.cpu() if values.device.type == "mps" else values).double()

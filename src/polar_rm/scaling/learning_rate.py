"""The learning rate of a size: the lowest point of a parabola through the losses of three rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from polar_rm.scaling.config import LearningRates


@dataclass(frozen=True, slots=True)
class Tried:
    """A learning rate and the loss of its run; None where the run diverged."""

    lr: float
    loss: float | None


@dataclass(frozen=True, slots=True)
class Picked:
    """The learning rate of a size. how: a sentence about the choice. is_inside: it is the lowest point of a parabola."""

    lr: float
    how: str
    is_inside: bool
    tried: tuple[Tried, ...] = ()


def rounded(lr: float) -> float:
    """A learning rate to four digits, so that a run's name says it exactly, whatever machine computes it."""
    return float(f"{lr:.3e}")


def base_rate(settings: LearningRates, parameters: int, first: int) -> float:
    """The base of a size. parameters: of this size and, as ``first``, of the first size, without the embedding."""
    return rounded(settings.base * (parameters / first) ** settings.exponent)


def rates_to_try(settings: LearningRates, base: float) -> list[float]:
    """The learning rates around a base, the lowest first."""
    return sorted(rounded(base * factor) for factor in settings.factors)


def pick(tried: Sequence[Tried]) -> Picked | None:
    """The best learning rate by the runs that have been tried; None where all of them diverged.

    The parabola of the loss in the logarithm of the rate goes through the best rate and its two neighbours. If it opens
    downwards, or its lowest point is not between them, the best rate that was tried is taken.
    """
    tried = tuple(sorted(tried, key=lambda each: each.lr))
    points = [(math.log(each.lr), each.loss) for each in tried if each.loss is not None]
    if not points:
        return None
    best = min(range(len(points)), key=lambda index: points[index][1])
    lr = rounded(math.exp(points[best][0]))
    diverged = f"; {len(tried) - len(points)} of {len(tried)} runs diverged" if len(points) < len(tried) else ""
    if len(points) < 3:
        return Picked(lr, f"the best tried: a parabola needs three runs{diverged}", False, tried)
    first = min(max(best - 1, 0), len(points) - 3)
    window = points[first : first + 3]
    lowest = _lowest(window)
    if lowest is None or not window[0][0] <= lowest <= window[-1][0]:
        at = "lowest" if best == 0 else "highest" if best == len(points) - 1 else "best"
        return Picked(
            lr, f"the {at} tried: the parabola has no minimum between the rates that were tried{diverged}", False, tried
        )
    return Picked(rounded(math.exp(lowest)), f"the minimum of the parabola{diverged}", True, tried)


def _lowest(points: Sequence[tuple[float, float]]) -> float | None:
    """Where the parabola through three points is lowest; None where it opens downwards or is a line (Newton's form)."""
    (x0, y0), (x1, y1), (x2, y2) = points
    slope, next_slope = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (next_slope - slope) / (x2 - x0)
    return None if curvature <= 0 else (x0 + x1) / 2 - slope / (2 * curvature)

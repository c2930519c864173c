"""A checkpoint's calibration card: what its raw rewards look like on a set that stands for its use."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean, pstdev, quantiles
from typing import Self

from polar_rm.common.files import write_json
from polar_rm.errors import PolarError


@dataclass(frozen=True, slots=True)
class Calibration:
    """A checkpoint's calibration card: what its raw rewards look like on a set that stands for its use.

    quantiles: 101 rewards, not decreasing: the 0th to the 100th percentile. n: rewards they were taken from.
    """

    n: int
    mean: float
    std: float
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        values = self.quantiles
        if len(values) != 101 or not all(map(math.isfinite, values)) or list(values) != sorted(values):
            raise PolarError("a calibration card needs 101 finite quantiles in rising order")

    @classmethod
    def from_rewards(cls, rewards: Sequence[float]) -> Self:
        """Raises PolarError with fewer than two rewards, or with one that is not finite."""
        if len(rewards) < 2 or not all(map(math.isfinite, rewards)):
            raise PolarError("a calibration card needs at least two rewards, all finite")
        low, high = min(rewards), max(rewards)
        # Between equal rewards, interpolation can round to a neighbour of them.
        inner = accumulate((min(max(value, low), high) for value in quantiles(rewards, n=100, method="inclusive")), max)
        return cls(len(rewards), fmean(rewards), pstdev(rewards), (low, *inner, high))

    @classmethod
    def load(cls, model: str | Path) -> Self | None:
        """The card in a checkpoint folder, None where there is none.

        Raises:
            PolarError: there is one, but not as :meth:`save` writes it.
        """
        path = Path(model) / "calibration.json"
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text())
            return cls(int(values["n"]), float(values["mean"]), float(values["std"]), tuple(map(float, values["quantiles"])))
        except (ValueError, KeyError, TypeError, OverflowError, PolarError) as error:
            raise PolarError(f"{path}: not a calibration card: {error}") from error

    def save(self, model: str | Path) -> None:
        """Into a checkpoint folder, as ``calibration.json``."""
        write_json(Path(model) / "calibration.json", asdict(self))

    def percentile(self, reward: float) -> float:
        """The share of the card's rewards below this one, 0 to 1, interpolated between percentiles.

        Rewards equal to it count half: one that fills the percentiles from the 20th to the 60th is at 0.4.
        """
        values = self.quantiles
        below, above = bisect_left(values, reward), bisect_right(values, reward)
        if below < above:
            return (below + above - 1) / 2 / (len(values) - 1)
        if above in (0, len(values)):
            return 0.0 if above == 0 else 1.0
        low, high = values[above - 1], values[above]
        return (above - 1 + (reward - low) / (high - low)) / (len(values) - 1)

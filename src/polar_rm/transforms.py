"""Named transforms of raw rewards, for the server, the client and reinforcement learning alike.

Raw rewards are unbounded and only differences under one reference mean something (about -11 to +0.7 for POLAR-7B, an answer
identical to the reference near 0). What a trainer wants of them differs, so it has a name and is never applied silently.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean, pstdev, quantiles
from typing import Literal, Self, get_args

from polar_rm.errors import PolarError
from polar_rm.files import write_json

Transform = Literal["raw", "group_zscore", "whiten", "tanh", "percentile"]
TRANSFORMS: tuple[str, ...] = get_args(Transform)

# POLAR's users squash with tanh(reward / 10): its rewards span about ten units.
TANH_SCALE = 10.0


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


def transform(name: str, groups: Sequence[Sequence[float]], calibration: Calibration | None = None) -> list[list[float]]:
    """Finite raw rewards, one list per group (the outputs of one prompt and reference), in the same shape.

    raw: unchanged. group_zscore: zero mean, unit deviation within each group (as in GRPO). whiten: the same over all groups
    together (as PPO whitens a batch). tanh: ``tanh(reward / 10)``. percentile: 0 to 1 against the calibration card.
    Where all rewards are equal both z-scores are 0: there is no difference to scale.

    Raises:
        PolarError: an unknown name, or ``percentile`` without a card.
    """
    match name:
        case "raw":
            return [list(group) for group in groups]
        case "group_zscore":
            return [_zscores(group) for group in groups]
        case "whiten":
            flat = iter(_zscores([reward for group in groups for reward in group]))
            return [[next(flat) for _ in group] for group in groups]
        case "tanh":
            return [[math.tanh(reward / TANH_SCALE) for reward in group] for group in groups]
        case "percentile":
            if calibration is None:
                raise PolarError("the transform 'percentile' needs a calibration card (calibration.json in the model folder)")
            return [[calibration.percentile(reward) for reward in group] for group in groups]
    raise PolarError(f"unknown transform {name!r}; known: {', '.join(TRANSFORMS)}")


def _zscores(rewards: Sequence[float]) -> list[float]:
    if not rewards:
        return []
    mean, deviation = fmean(rewards), pstdev(rewards)
    return [(reward - mean) / deviation if deviation else 0.0 for reward in rewards]

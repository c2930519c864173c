"""Named transforms of raw rewards, for the server, the client and reinforcement learning.

Raw rewards are unbounded, and only differences under one reference are meaningful (they are about -11 to +0.7 for POLAR-7B,
near 0 for an answer identical to the reference). Trainers need different transforms, so each has a name and none is applied
silently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Literal, get_args

from polar_rm.errors import PolarError
from polar_rm.rewards.calibration import Calibration

Transform = Literal["raw", "group_zscore", "whiten", "tanh", "percentile"]
TRANSFORMS: tuple[str, ...] = get_args(Transform)
# Users of POLAR squash rewards with tanh(reward / 10), because they span about ten units.
TANH_SCALE = 10.0


def transform(name: str, groups: Sequence[Sequence[float]], calibration: Calibration | None = None) -> list[list[float]]:
    """Transform finite raw rewards, one list per group (the outputs of one prompt and reference); the result has the same shape.

    raw: unchanged. group_zscore: zero mean and unit deviation within each group (as in GRPO). whiten: the same over all groups
    together (as PPO whitens a batch). tanh: ``tanh(reward / 10)``. percentile: 0 to 1, by the calibration card.
    Where all rewards are equal, both z-scores are 0.

    Raises:
        PolarError: the name is unknown, or ``percentile`` has no card.
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

"""Named transforms of raw rewards, for the server, the client and reinforcement learning alike.

Raw rewards are unbounded and only differences under one reference mean something (about -11 to +0.7 for POLAR-7B, an answer
identical to the reference near 0). What a trainer wants of them differs, so it has a name and is never applied silently.
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
# POLAR's users squash with tanh(reward / 10): its rewards span about ten units.
TANH_SCALE = 10.0


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

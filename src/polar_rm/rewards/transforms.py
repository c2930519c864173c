"""Named transforms of raw rewards, for files, the server, the client and reinforcement learning.

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
from polar_rm.rewards.outcomes import Reward

Transform = Literal["raw", "group_zscore", "whiten", "tanh", "percentile", "anchored", "probability"]
TRANSFORMS: tuple[str, ...] = get_args(Transform)
# Users of POLAR squash rewards with tanh(reward / 10), because they span about ten units.
TANH_SCALE = 10.0

ItemTransform = Literal["raw", "tanh", "percentile", "anchored", "probability"]
"""Transforms that need no other reward: for files, and for trainers that ask for one reward at a time."""
ITEM_TRANSFORMS: tuple[str, ...] = get_args(ItemTransform)


def needs_anchors(name: str) -> bool:
    """Whether this transform needs the reward of the reference itself."""
    return name in ("anchored", "probability")


def needs_card(name: str) -> bool:
    """Whether this transform needs the model's calibration card."""
    return name in ("percentile", "probability")


def available(calibration: Calibration | None) -> list[str]:
    """The transforms that a model with this card supports."""
    temperature = calibration and calibration.temperature
    return [name for name in TRANSFORMS if not needs_card(name) or (temperature if name == "probability" else calibration)]


def check_name(name: str, known: Sequence[str] = TRANSFORMS) -> None:
    """Refuse a name that is no transform's, or that the caller can't apply. known: the transforms that the caller can apply.

    Raises:
        PolarError: the name is not among ``known``.
    """
    if name not in TRANSFORMS:
        raise PolarError(f"unknown transform {name!r}; known: {', '.join(known)}")
    if name not in known:
        raise PolarError(f"the transform {name!r} needs all rewards of a group or batch; use {', '.join(known)}")


def check_transform(name: str, calibration: Calibration | None = None, *, known: Sequence[str] = TRANSFORMS) -> None:
    """Refuse, before any work, a transform that :func:`transform` would refuse. known: the transforms that the caller can apply.

    Raises:
        PolarError: the name is not among ``known``, or the card is missing or too old for this transform.
    """
    check_name(name, known)
    if name not in available(calibration):
        requirement = (
            "a calibration card (calibration.json in the model folder)" if calibration is None else "a card with a temperature"
        )
        raise PolarError(f"the transform {name!r} needs {requirement}; polar calibrate MODEL PAIRS writes one")


def transform(
    name: str,
    groups: Sequence[Sequence[float]],
    calibration: Calibration | None = None,
    anchors: Sequence[float] | None = None,
) -> list[list[float]]:
    """Transform finite raw rewards, one list per group (the outputs of one prompt and reference); the result has the same shape.

    raw: unchanged. group_zscore: zero mean and unit deviation within each group (as in GRPO). whiten: the same over all groups
    together (as PPO whitens a batch). tanh: ``tanh(reward / 10)``. percentile: 0 to 1, by the calibration card.
    anchored: reward - anchor, so that 0 means "like the reference itself". probability: P(candidate over the reference) =
    ``sigmoid((reward - anchor) / T)``, by the card's temperature T. Where all rewards are equal, both z-scores are 0.

    anchors: for each group the raw reward of the reference as a candidate; ``anchored`` and ``probability`` need them.

    Raises:
        PolarError: the name is unknown, or what the transform needs is missing.
    """
    check_transform(name, calibration)
    match name:
        case "group_zscore":
            return [_zscores(group) for group in groups]
        case "whiten":
            flat = iter(_zscores([reward for group in groups for reward in group]))
            return [[next(flat) for _ in group] for group in groups]
        case "tanh":
            return [[math.tanh(reward / TANH_SCALE) for reward in group] for group in groups]
        case "percentile" if calibration:
            return [[calibration.percentile(reward) for reward in group] for group in groups]
        case "anchored" | "probability":
            differences = _anchored(name, groups, anchors)
            if name == "anchored" or calibration is None:
                return differences
            return [[calibration.probability(difference) for difference in group] for group in differences]
    return [list(group) for group in groups]


def transform_rewards(name: str, groups: Sequence[Sequence[Reward]], calibration: Calibration | None = None) -> list[list[float]]:
    """Apply :func:`transform` to rewards; if the transform needs anchors, each reward has its own. Errors as in it."""
    anchors = None
    if needs_anchors(name):
        optional = [group[0].anchor if group else 0.0 for group in groups]  # a group without rewards needs no anchor
        anchors = [anchor for anchor in optional if anchor is not None]
    return transform(name, [[reward.reward for reward in group] for group in groups], calibration, anchors)


def transform_one(name: str, reward: Reward, calibration: Calibration | None = None) -> float:
    """Apply a transform of :data:`ITEM_TRANSFORMS` to one reward; arguments and errors as in :func:`transform_rewards`."""
    check_transform(name, calibration, known=ITEM_TRANSFORMS)
    [[value]] = transform_rewards(name, [[reward]], calibration)
    return value


def _anchored(name: str, groups: Sequence[Sequence[float]], anchors: Sequence[float] | None) -> list[list[float]]:
    if anchors is None or len(anchors) != len(groups):
        raise PolarError(f"the transform {name!r} needs the reward of each group's reference itself")
    return [[reward - anchor for reward in group] for group, anchor in zip(groups, anchors, strict=True)]


def _zscores(rewards: Sequence[float]) -> list[float]:
    if not rewards:
        return []
    mean, deviation = fmean(rewards), pstdev(rewards)
    return [(reward - mean) / deviation if deviation else 0.0 for reward in rewards]

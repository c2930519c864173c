"""A checkpoint's calibration card: the scale of its rewards on representative pairs."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean, pstdev, quantiles
from typing import Any, Literal, Self

from polar_rm.common.files import write_json
from polar_rm.common.identity import check_identity, model_identity
from polar_rm.errors import PolarError

CARD = "calibration.json"
"""The card's name in the folder of the checkpoint."""
SCHEMA: Literal["polar-rm/calibration/2"] = "polar-rm/calibration/2"


def sigmoid(value: float) -> float:
    """The logistic function, without overflow for very negative values."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


@dataclass(frozen=True, slots=True)
class Distribution:
    """The distribution of rewards on a representative set.

    quantiles: the 0th to the 100th percentile, 101 non-decreasing rewards. n: the number of rewards in the set.
    """

    n: int
    mean: float
    std: float
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        values = self.quantiles
        if len(values) != 101 or not all(map(math.isfinite, values)) or list(values) != sorted(values):
            raise PolarError("a calibration card needs 101 finite quantiles in ascending order")
        if self.n < 2 or not math.isfinite(self.mean) or not 0 <= self.std < math.inf:
            raise PolarError("a calibration card needs at least two rewards, a finite mean and a finite deviation >= 0")

    @classmethod
    def from_rewards(cls, rewards: Sequence[float], **fields: Any) -> Self:
        """The distribution of rewards. fields: the other fields of a card.

        Raises:
            PolarError: there are fewer than two rewards, or one is not finite.
        """
        if len(rewards) < 2 or not all(map(math.isfinite, rewards)):
            raise PolarError("a calibration card needs at least two rewards, all finite")
        low, high = min(rewards), max(rewards)
        # Between equal rewards, interpolation can round to a neighbouring float.
        inner = accumulate((min(max(value, low), high) for value in quantiles(rewards, n=100, method="inclusive")), max)
        return cls(len(rewards), fmean(rewards), pstdev(rewards), (low, *inner, high), **fields)

    def percentile(self, reward: float) -> float:
        """The fraction of the set's rewards below this one, from 0 to 1, interpolated between percentiles.

        Rewards equal to it count half: a value that fills the percentiles from the 20th to the 60th is at 0.4.
        """
        values = self.quantiles
        below, above = bisect_left(values, reward), bisect_right(values, reward)
        if below < above:
            return (below + above - 1) / 2 / (len(values) - 1)
        if above in (0, len(values)):
            return 0.0 if above == 0 else 1.0
        low, high = values[above - 1], values[above]
        return (above - 1 + (reward - low) / (high - low)) / (len(values) - 1)


@dataclass(frozen=True, slots=True)
class Calibration(Distribution):
    """A checkpoint's calibration card: the distribution of its raw rewards, and the temperature of its probabilities.

    anchored: the distribution of anchored rewards; None if no pair had a reference. temperature: T of
    P(a over b) = sigmoid((r_a - r_b) / T), in units of the reward. n_pairs, n_prompts: the data that T was fitted on.
    ece_before, ece_after: the expected calibration error of these probabilities with T = 1 and, out of fold, with T.
    encoder, weights: hashes of the model that computed the rewards; :meth:`save` sets them. The card is valid for this model
    only. Cards of earlier versions have only the distribution of raw rewards: they give percentiles, but no probability.
    """

    encoder: str = ""
    weights: str = ""
    anchored: Distribution | None = None
    temperature: float | None = None
    n_pairs: int = 0
    n_prompts: int = 0
    ece_before: float | None = None
    ece_after: float | None = None

    def __post_init__(self) -> None:
        Distribution.__post_init__(self)
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise PolarError("a calibration card needs a finite temperature > 0")
        if not all(error is None or 0 <= error <= 1 for error in (self.ece_before, self.ece_after)):
            raise PolarError("a calibration card needs calibration errors between 0 and 1")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The card of :meth:`to_json`'s values, or of an earlier version's.

        Raises:
            PolarError, ValueError, KeyError, TypeError, OverflowError: the values are not a card.
        """
        anchored = values.get("anchored")
        return cls(
            *_distribution(values),
            encoder=str(values["encoder"]),
            weights=str(values["weights"]),
            anchored=None if anchored is None else Distribution(*_distribution(anchored)),
            temperature=_optional(values.get("temperature")),
            n_pairs=int(values.get("n_pairs", 0)),
            n_prompts=int(values.get("n_prompts", 0)),
            ece_before=_optional(values.get("ece_before")),
            ece_after=_optional(values.get("ece_after")),
        )

    def to_json(self) -> dict[str, Any]:
        """The card as JSON values."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def load(cls, model: str | Path) -> Self | None:
        """Load the card in a checkpoint folder; None if there is none.

        Raises:
            PolarError: the file was not written by :meth:`save`, or the card belongs to another model.
        """
        path = Path(model) / CARD
        if not path.is_file():
            return None
        try:
            card = cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, AttributeError, PolarError) as error:
            raise PolarError(f"{path}: not a calibration card: {error}") from error
        check_identity(path, {"encoder": card.encoder, "weights": card.weights}, Path(model), "the card", "calibrate")
        return card

    def save(self, model: str | Path) -> None:
        """Write the card as ``calibration.json`` into the folder of the checkpoint that computed the rewards."""
        write_json(Path(model) / CARD, self.to_json() | model_identity(Path(model)))

    def probability(self, difference: float) -> float:
        """P(a over b), from 0 to 1, of a difference of two raw rewards r_a - r_b under one prompt and reference.

        Raises:
            PolarError: the card has no temperature, because an earlier version wrote it.
        """
        if self.temperature is None:
            raise PolarError("the calibration card has no temperature, because an earlier version wrote it; run polar calibrate")
        return sigmoid(difference / self.temperature)


def _distribution(values: Mapping[str, Any]) -> tuple[int, float, float, tuple[float, ...]]:
    return int(values["n"]), float(values["mean"]), float(values["std"]), tuple(map(float, values["quantiles"]))


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)

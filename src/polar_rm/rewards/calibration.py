"""A checkpoint's calibration card: what its raw rewards look like on a set that stands for its use."""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean, pstdev, quantiles
from typing import Self

from polar_rm.common.files import read_json, write_json
from polar_rm.errors import PolarError


@dataclass(frozen=True, slots=True)
class Calibration:
    """A checkpoint's calibration card: what its raw rewards look like on a set that stands for its use.

    quantiles: 101 rewards, not decreasing: the 0th to the 100th percentile. n: rewards they were taken from.
    encoder, weights: hashes of the model that the rewards are of, as :meth:`save` finds them; a card fits no other.
    """

    n: int
    mean: float
    std: float
    quantiles: tuple[float, ...]
    encoder: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        values = self.quantiles
        if len(values) != 101 or not all(map(math.isfinite, values)) or list(values) != sorted(values):
            raise PolarError("a calibration card needs 101 finite quantiles in rising order")
        if self.n < 2 or not math.isfinite(self.mean) or not 0 <= self.std < math.inf:
            raise PolarError("a calibration card needs at least two rewards, a finite mean and a deviation of 0 or more")

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
            PolarError: there is one, but not as :meth:`save` writes it, or it is another model's.
        """
        path = Path(model) / "calibration.json"
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text())
            numbers = int(values["n"]), float(values["mean"]), float(values["std"]), tuple(map(float, values["quantiles"]))
            card = cls(*numbers, str(values["encoder"]), str(values["weights"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, PolarError) as error:
            raise PolarError(f"{path}: not a calibration card: {error}") from error
        for part, found in _identity(Path(model)).items():
            if getattr(card, part) != found:
                raise PolarError(f"{path}: the card of another model (other {part}): make it with this one")
        return card

    def save(self, model: str | Path) -> None:
        """Into the checkpoint folder whose rewards it is of, as ``calibration.json``."""
        write_json(Path(model) / "calibration.json", asdict(self) | _identity(Path(model)))

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


# Of a file of weights so many pieces are hashed, evenly spread: whatever trains a model changes all of them, and gigabytes would
# take longer than loading them.
_PIECES = 64
_PIECE_BYTES = 1 << 16


def _identity(model: Path) -> dict[str, str]:
    """The encoder's hash, and one of the weights: sizes and 4 MiB of each file, the same on every machine."""
    config = read_json(model / "config.json") if (model / "config.json").is_file() else {}
    section = config.get("polar")
    encoder = section.get("encoder", {}) if isinstance(section, dict) else {}
    weights = hashlib.sha256()
    for path in sorted(model.glob("*.safetensors")):
        size = path.stat().st_size
        weights.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for piece in range(_PIECES):
                file.seek(piece * max(0, size - _PIECE_BYTES) // (_PIECES - 1))
                weights.update(file.read(_PIECE_BYTES))
    return {"encoder": str(encoder.get("hash", "")), "weights": weights.hexdigest()[:16]}

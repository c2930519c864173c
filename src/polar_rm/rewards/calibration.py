"""A checkpoint's calibration card: the distribution of its raw rewards on a representative set."""

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
    """A checkpoint's calibration card: the distribution of its raw rewards on a representative set.

    quantiles: the 0th to the 100th percentile, 101 non-decreasing rewards. n: the number of rewards in the set.
    encoder, weights: hashes of the model that gave the rewards, which :meth:`save` computes; the card is valid for this model
    only.
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
            raise PolarError("a calibration card needs 101 finite quantiles in ascending order")
        if self.n < 2 or not math.isfinite(self.mean) or not 0 <= self.std < math.inf:
            raise PolarError("a calibration card needs at least two rewards, a finite mean and a finite deviation >= 0")

    @classmethod
    def from_rewards(cls, rewards: Sequence[float]) -> Self:
        """The card of raw rewards.

        Raises:
            PolarError: there are fewer than two rewards, or one is not finite.
        """
        if len(rewards) < 2 or not all(map(math.isfinite, rewards)):
            raise PolarError("a calibration card needs at least two rewards, all finite")
        low, high = min(rewards), max(rewards)
        # Between equal rewards, interpolation can round to a neighbouring float.
        inner = accumulate((min(max(value, low), high) for value in quantiles(rewards, n=100, method="inclusive")), max)
        return cls(len(rewards), fmean(rewards), pstdev(rewards), (low, *inner, high))

    @classmethod
    def load(cls, model: str | Path) -> Self | None:
        """The card in a checkpoint folder; None where there is none.

        Raises:
            PolarError: the file is not as :meth:`save` writes it, or the card belongs to another model.
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
        for part, digest in _identity(Path(model)).items():
            if getattr(card, part) != digest:
                raise PolarError(f"{path}: the card belongs to another model (different {part}); make one with this model")
        return card

    def save(self, model: str | Path) -> None:
        """Write the card as ``calibration.json`` into the folder of the checkpoint that gave the rewards."""
        write_json(Path(model) / "calibration.json", asdict(self) | _identity(Path(model)))

    def percentile(self, reward: float) -> float:
        """The fraction of the card's rewards below this one, from 0 to 1, interpolated between percentiles.

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


# The hash of a weights file covers this many evenly spread pieces: training changes all of them, and hashing gigabytes would take
# longer than loading them.
_PIECES = 64
_PIECE_BYTES = 1 << 16


def _identity(model: Path) -> dict[str, str]:
    """The encoder's hash, and a hash of the weights: names, sizes and 4 MiB of each file. Both are equal on every machine."""
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

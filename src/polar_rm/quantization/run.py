"""``polar quantize``: scores comparisons in float32 and in int8, and writes into the model's folder how far they agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from polar_rm.common.files import check_target
from polar_rm.common.locks import owned
from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.evaluation import ComparisonFiles
from polar_rm.evaluation.data import First
from polar_rm.model.int8 import RECORD, Int8Record, check_int8
from polar_rm.model.products import in_float32, quantize
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import Comparison, OnBadRow, items_of
from polar_rm.rewards.anchors import has_anchor
from polar_rm.rewards.outcomes import Reward
from polar_rm.scoring.scorer import Scorer

MINIMUM = 0.995
"""The rank correlation of differences below which int8 is refused by default."""
FLOAT32_LAYERS = ("down_proj",)
"""Ends of the names of the layers that stay in float32 by default: their inputs have the largest outliers."""
LIMIT = 200
"""Comparisons that are measured by default."""


@dataclass(slots=True)
class _Rewards:
    """Rewards in one precision. differences: of every two candidates of a comparison. anchored: of candidates with references."""

    differences: list[float]
    anchored: list[float]

    def add(self, rewards: Sequence[Reward]) -> None:
        """Add the candidates of one comparison."""
        self.differences += [first.reward - second.reward for first, second in combinations(rewards, 2)]
        self.anchored += [reward.reward - reward.anchor for reward in rewards if reward.anchor is not None]


def quantize_model(
    model_dir: str | Path,
    files: Sequence[str | Path],
    *,
    float32_layers: Sequence[str] = FLOAT32_LAYERS,
    minimum: float = MINIMUM,
    force: bool = False,
    limit: int | None = LIMIT,
    row_tokens: int = 8192,
    on_bad_row: OnBadRow | None = None,
    progress: Progress = silent,
) -> Int8Record:
    """Measure what int8 does to a model's rewards on comparisons, and write the record into its folder.

    float32_layers: ends of the names of linear layers that stay in float32. minimum: of the rank correlation of differences.
    force: write the record of a model below it, too. limit: use only this many first comparisons.

    Raises:
        PolarError: the folder, a file or an option is invalid, no comparison has two candidates, or the agreement is below the
            minimum.
        ScoreError: a score is not finite.
    """
    model_dir = Path(model_dir)
    check_int8("cpu")
    check_target(model_dir / RECORD)
    with owned(model_dir, "quantize"):
        read = ComparisonFiles(files, on_bad_row)
        progress("quantize", 0, limit, "loading")
        model = RewardModel.from_pretrained(model_dir)
        quantize(model.backbone.base_model, float32_layers)
        scorer = Scorer(model, row_tokens=row_tokens)
        record = measure(scorer, First(read, limit), float32_layers, [Path(path).name for path in read.paths], progress)
        if record.spearman < minimum and not force:
            raise PolarError(f"{model_dir}: {describe(record)}; below {minimum} int8 is refused (--force takes it)")
        record.save(model_dir)
    return record


def measure(
    scorer: Scorer,
    comparisons: Iterable[Comparison],
    float32_layers: Sequence[str],
    data: Sequence[str] = (),
    progress: Progress = silent,
) -> Int8Record:
    """The agreement of a quantised model with itself in float32. data: names of the files, for the record.

    Raises:
        PolarError: no comparison has two candidates. ScoreError: a score is not finite.
    """
    exact, rounded = _Rewards([], []), _Rewards([], [])
    done = 0
    for done, comparison in enumerate(comparisons, 1):
        items = items_of(comparison)
        anchored = all(map(has_anchor, items))
        with in_float32(scorer.model):
            exact.add(list(scorer.score(items, anchored=anchored)))
        rounded.add(list(scorer.score(items, anchored=anchored)))
        progress("quantize", done, None)
    if len(exact.differences) < 2:
        raise PolarError(f"int8 is measured by comparisons of candidates, and {done:,} comparisons have fewer than two pairs")
    before, after = np.array(exact.differences), np.array(rounded.differences)
    offset = fmean(np.subtract(rounded.anchored, exact.anchored)) if exact.anchored else None
    flipped = float(np.mean(np.sign(before) != np.sign(after)))
    return Int8Record(tuple(float32_layers), _spearman(before, after), flipped, offset, len(before), done, tuple(data))


def describe(record: Int8Record) -> str:
    """The measurement in one line."""
    offset = "" if record.offset is None else f", anchored rewards {record.offset:+.3f} on average"
    return (
        f"in int8 the differences between candidates correlate with those in float32 by {record.spearman:.4f} (ranks), "
        f"{record.flipped:.1%} of {record.n_pairs:,} pairs are flipped{offset}"
    )


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Rank correlation.

    Raises:
        PolarError: all differences are equal, as in a model that was never trained.
    """
    correlation = float(spearmanr(first, second)[0]) if np.ptp(first) and np.ptp(second) else np.nan
    if np.isnan(correlation):
        raise PolarError("all differences between candidates are equal: was this model ever trained?")
    return correlation

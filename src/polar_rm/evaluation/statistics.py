"""Intervals by resampling whole prompts.

Pairs of one prompt share its difficulty and often a candidate, so they are not independent: resampling pairs would give
an interval that is too narrow. All pairs of a prompt are drawn together instead (Davison and Hinkley 1997, 3.8).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polar_rm.errors import PolarError
from polar_rm.reporting.words import interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]

RESAMPLES = 2000

# Prompt indices drawn at a time: 32 MiB of int64, whatever the number of prompts.
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of the first scorer minus mean of the second over the same pairs; ``ci95`` is None for a single prompt."""

    difference: float
    ci95: Interval | None
    n_pairs: int
    n_prompts: int

    def __str__(self) -> str:
        bounds = "no interval" if self.ci95 is None else f"95% {interval(self.ci95, '+.3f')}"
        return f"{self.difference:+.3f} ({bounds}, {self.n_pairs:,} pairs of {self.n_prompts:,} prompts)"


def resampled_means(values: Floats, prompts: Ints, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Means over pairs of ``resamples`` samples of prompts drawn with replacement: float64 [resamples, n_columns].

    values: float64 [n_pairs, n_columns]; the columns share every resample, which makes their differences paired.
    prompts: int64 [n_pairs], equal for pairs of one prompt.
    """
    _, cluster = np.unique(prompts, return_inverse=True)
    n_prompts = int(cluster.max()) + 1
    # A mean over pairs is a ratio of two sums over prompts, so the sums per prompt are all that resampling needs.
    sums = np.zeros((n_prompts, values.shape[1] + 1))
    np.add.at(sums, cluster, np.column_stack([values, np.ones(len(values))]))
    generator = np.random.default_rng(seed)
    totals = np.empty((resamples, sums.shape[1]))
    step = max(1, _BLOCK // n_prompts)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(n_prompts, size=(rows, n_prompts)) + n_prompts * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n_prompts).reshape(rows, n_prompts)
        totals[start : start + rows] = times @ sums
    means: Floats = totals[:, :-1] / totals[:, -1:]
    return means


def bootstrap_intervals(
    values: Floats, prompts: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval] | list[None]:
    """A 95% percentile interval of each column's mean; None for every column when there is only one prompt.

    values: float64 [n_pairs, n_columns]. prompts: int64 [n_pairs].

    Bias, tolerated because it is small from about 50 prompts on: the percentile interval is too narrow by a factor of
    about sqrt((n - 1) / n) for n prompts and is not corrected for skew; the ratio of sums is biased by O(1 / n) when
    prompts differ in their number of pairs; where every pair is right the width is 0, although the true accuracy may be
    below 1.
    """
    if len(np.unique(prompts)) < 2:
        return [None] * values.shape[1]
    low, high = np.quantile(resampled_means(values, prompts, resamples=resamples, seed=seed), [0.025, 0.975], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def paired_difference(
    first: Floats, second: Floats, prompts: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """How much better the first of two scorers is on the same pairs, for instance with and without pre-training.

    first, second: float64 [n_pairs], a value of each pair such as 1, 0.5 or 0 for right, tied or wrong.
    prompts: int64 [n_pairs]. The interval is that of the difference itself; two separate intervals may overlap although
    the difference is certain.

    Raises:
        PolarError: the lengths differ or there are no pairs.
    """
    if not len(first) == len(second) == len(prompts) or not len(first):
        counts = f"{len(first)} and {len(second)} values of {len(prompts)} pairs"
        raise PolarError(f"a paired difference needs two values of every pair and at least one pair: got {counts}")
    values = (first - second)[:, None]
    bounds = bootstrap_intervals(values, prompts, resamples=resamples, seed=seed)[0]
    return PairedDifference(float(values.mean()), bounds, len(first), len(np.unique(prompts)))

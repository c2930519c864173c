"""Confidence intervals by bootstrap over prompts.

Pairs of one prompt share its difficulty and often a candidate, so they are not independent, and resampling pairs would give
intervals that are too narrow. All pairs of a prompt are drawn together instead (Davison and Hinkley 1997, 3.8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polar_rm.errors import PolarError
from polar_rm.reporting.words import interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]

RESAMPLES = 2000


def listed(ci95: Interval | None) -> list[float] | None:
    """An interval as a list, for reports in JSON."""
    return None if ci95 is None else list(ci95)


_Z = 1.959963984540054  # the 97.5th percentile of the normal distribution

# The number of prompt indices that are drawn at a time: 32 MiB of int64 for any number of prompts.
_BLOCK = 1 << 22
_NO_SPREAD = 1e-9  # a smaller difference between quantiles is only rounding


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The mean of the first scorer minus that of the second on the same pairs; ``ci95`` is None for a single prompt."""

    difference: float
    ci95: Interval | None
    n_pairs: int
    n_prompts: int

    def __str__(self) -> str:
        bounds = "no interval" if self.ci95 is None else f"95% {interval(self.ci95, '+.3f')}"
        return f"{self.difference:+.3f} ({bounds}, {self.n_pairs:,} pairs of {self.n_prompts:,} prompts)"


def resampled_means(values: Floats, prompts: Ints, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """The means over pairs in bootstrap resamples of prompts: float64 [resamples, n_columns].

    values: float64 [n_pairs, n_columns]; all columns share every resample, so their differences are paired.
    prompts: int64 [n_pairs], equal for pairs of one prompt.
    """
    _, cluster = np.unique(prompts, return_inverse=True)
    n_prompts = int(cluster.max()) + 1
    # A mean over pairs is a ratio of two sums over prompts, so resampling needs only the sums of each prompt.
    sums = np.zeros((n_prompts, values.shape[1] + 1))
    np.add.at(sums, cluster, np.column_stack([values, np.ones(len(values))]))
    generator = np.random.default_rng(seed)
    totals = np.empty((resamples, sums.shape[1]))
    step = max(1, _BLOCK // n_prompts)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(n_prompts, size=(rows, n_prompts)) + n_prompts * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n_prompts).reshape(rows, n_prompts)
        totals[start : start + rows] = counts @ sums
    means: Floats = totals[:, :-1] / totals[:, -1:]
    return means


def bootstrap_intervals(
    values: Floats,
    prompts: Ints,
    *,
    extremes: tuple[float, float] = (0.0, 1.0),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval] | list[None]:
    """A 95% percentile interval of each column's mean; None for every column if there is only one prompt.

    values: float64 [n_pairs, n_columns]. prompts: int64 [n_pairs]. extremes: the minimum and maximum of a pair's value.

    The interval has a bias, which is small with at least about 50 prompts. It is too narrow by a factor of about
    sqrt((n - 1) / n) for n prompts, and is not corrected for skew. The ratio of sums is biased by O(1 / n) if prompts differ in
    their number of pairs. If all prompts agree, resamples have no spread: see :func:`agreeing_interval`.
    """
    if len(np.unique(prompts)) < 2:
        return [None] * values.shape[1]
    means = resampled_means(values, prompts, resamples=resamples, seed=seed)
    return percentile_intervals(means, len(np.unique(prompts)), [extremes] * values.shape[1])


def statistic_interval(
    columns: Floats,
    prompts: Ints,
    statistic: Callable[[Floats], Floats],
    *,
    extremes: tuple[float, float] = (0.0, 1.0),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, Interval | None]:
    """A function of several means over pairs, such as a ratio of two, and its 95% interval (see :func:`bootstrap_intervals`).

    The interval is None for a single prompt. columns: float64 [n_pairs, n_columns]. statistic: maps means, float64
    [n, n_columns], to values, float64 [n]. extremes: the minimum and maximum of these values.
    """
    value = float(statistic(columns.mean(axis=0)[None])[0])
    n_prompts = len(np.unique(prompts))
    if n_prompts < 2:
        return value, None
    means = resampled_means(columns, prompts, resamples=resamples, seed=seed)
    return value, percentile_intervals(statistic(means)[:, None], n_prompts, [extremes])[0]


def percentile_intervals(means: Floats, n_prompts: int, extremes: Sequence[tuple[float, float]]) -> list[Interval]:
    """95% intervals of resampled means, float64 [resamples, n_columns]. extremes: minimum and maximum of each column's values."""
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return [
        (left, right) if right - left > _NO_SPREAD else agreeing_interval(left, n_prompts, bounds)
        for left, right, bounds in zip(low.tolist(), high.tolist(), extremes, strict=True)
    ]


def agreeing_interval(mean: float, n_prompts: int, extremes: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """The 95% interval of a mean on which all ``n_prompts`` prompts agree, for example if six of six are correct.

    A share u = z^2 / (n + z^2) of all prompts may differ although none of the n prompts does, and their worst value is an
    extreme. For an accuracy of 0 or 1 this is Wilson's interval (Wilson 1927): [0.61, 1] for six of six.
    """
    unseen = _Z**2 / (n_prompts + _Z**2)
    low, high = ((1 - unseen) * mean + unseen * extreme for extreme in extremes)
    return low, high


def paired_difference(
    first: Floats, second: Floats, prompts: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """The mean of the first scorer minus that of the second on the same pairs, for instance with and without pre-training.

    first, second: float64 [n_pairs], a value of each pair such as 1, 0.5 or 0 for correct, tied or wrong.
    prompts: int64 [n_pairs]. The interval is that of the paired difference; two separate intervals may overlap although the
    difference is significant.

    Raises:
        PolarError: the lengths differ or there are no pairs.
    """
    if not len(first) == len(second) == len(prompts) or not len(first):
        counts = f"{len(first)} and {len(second)} values of {len(prompts)} pairs"
        raise PolarError(f"a paired difference needs two values of every pair and at least one pair, not {counts}")
    values = (first - second)[:, None]
    bounds = bootstrap_intervals(values, prompts, extremes=(-1.0, 1.0), resamples=resamples, seed=seed)[0]
    return PairedDifference(float(values.mean()), bounds, len(first), len(np.unique(prompts)))

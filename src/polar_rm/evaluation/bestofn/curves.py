"""From golds and scores of samples to curves over n, and to the figures that sum a curve up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polar_rm.evaluation.best_of import pick_probabilities
from polar_rm.evaluation.statistics import Floats, Interval, percentile_intervals

# Differences of means below this come from rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class GroupCurves:
    """What picking by score yields in each group: expected values of the top-scored of n samples, exact over all subsets.

    gold, proxy: float64 [n_groups, max_n]; column n - 1 is for n samples. NaN where a group has fewer than n samples.
    """

    gold: Floats
    proxy: Floats


def group_curves(scores: Sequence[Floats], golds: Sequence[Floats], proxies: Sequence[Floats], max_n: int) -> GroupCurves:
    """Curves of all groups. scores: what is picked by; golds, proxies: what is averaged; a value for each sample of a group."""
    gold, proxy = (np.full((len(golds), max_n), np.nan) for _ in range(2))
    for group, (own, worth, standardised) in enumerate(zip(scores, golds, proxies, strict=True)):
        largest = min(max_n, len(own))
        picked = pick_probabilities(own, range(1, largest + 1))
        gold[group, :largest], proxy[group, :largest] = picked @ worth, picked @ standardised
    return GroupCurves(gold, proxy)


def standardise(values: Sequence[Floats]) -> tuple[list[Floats], float, float]:
    """z-scores over the samples of all groups together, and the mean and standard deviation; all 0 where there is no spread."""
    together = np.concatenate(values)
    mean, deviation = float(together.mean()), float(together.std())
    if deviation <= _ROUNDING * max(1.0, abs(mean)):
        return [np.zeros(len(each)) for each in values], mean, 0.0
    return [(each - mean) / deviation for each in values], mean, deviation


def over_optimisation(gold: Floats, proxy: Floats, oracle: Floats, kl: Floats) -> tuple[Floats, Floats]:
    """Two areas over the divergence in nats: between proxy and gold, and below gold; float64 [k] each.

    gold, proxy, oracle: mean curves, float64 [k, max_n]. kl: float64 [max_n]. Curves are taken as gains over n = 1. The proxy's
    gain is divided by its last value: what it promises ends at 1. The gold's gain is divided by the last gain of an oracle, which
    picks by gold: it ends at 1 if all that was there to gain is reached. NaN where proxy or oracle gain nothing.

    The first area over the second is gamma of Kim et al. 2025 (arXiv 2505.12763), with exact curves. They fit
    R(d) = d (alpha - beta d) of Gao et al. 2023 to curves of samples.
    """
    gains = [curve - curve[:, :1] for curve in (gold, proxy, oracle)]
    by = [np.where(curve[:, -1:] > _ROUNDING, curve[:, -1:], np.nan) for curve in gains]
    promised, reached = gains[1] / by[1], gains[0] / by[2]
    return _area(np.abs(promised - reached), kl), _area(reached, kl)


def _area(curves: Floats, x: Floats) -> Floats:
    """By the trapezoidal rule, which numpy calls by two names."""
    area: Floats = ((curves[:, 1:] + curves[:, :-1]) / 2 * np.diff(x)).sum(axis=1)
    return area


def peak_of(gold: Floats) -> int:
    """The n at which a mean curve, float64 [max_n], is highest; of equal ones the smallest."""
    return int(np.flatnonzero(gold >= gold.max() - _ROUNDING)[0]) + 1


def peak_interval(resampled: Floats) -> tuple[int, int]:
    """95% of the resampled curves, float64 [resamples, max_n], have their peak between these two n."""
    peaks = np.sort([peak_of(curve) for curve in resampled])
    low, high = np.quantile(peaks, [0.025, 0.975], method="nearest")
    return int(low), int(high)


def interval_of(values: Floats, n_prompts: int, extremes: tuple[float, float]) -> Interval | None:
    """The 95% interval out of resampled values, float64 [resamples]; None where one of them is not a number."""
    if n_prompts < 2 or not np.isfinite(values).all():
        return None
    return percentile_intervals(values[:, None], n_prompts, [extremes])[0]

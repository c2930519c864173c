"""From a table of samples and the scores of contenders to points, curves and figures with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from polar_rm.evaluation.accuracy import differences_of
from polar_rm.evaluation.best_of import kl_of_best_of
from polar_rm.evaluation.bestofn.curves import (
    GroupCurves,
    group_curves,
    interval_of,
    over_optimisation,
    peak_interval,
    peak_of,
    standardise,
)
from polar_rm.evaluation.bestofn.report import ContenderCurve, Estimate, Figures, Point
from polar_rm.evaluation.bestofn.samples import SampleTable
from polar_rm.evaluation.report import Difference
from polar_rm.evaluation.statistics import Floats, Interval, Ints, listed, percentile_intervals, resampled_means


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of a report."""

    points: list[Point]
    contenders: dict[str, ContenderCurve]
    differences: list[Difference]
    n_complete: int


def sizes_up_to(max_n: int) -> list[int]:
    """The n of the points: powers of two, and ``max_n``."""
    return [n for n in (2**power for power in range(max_n.bit_length())) if n < max_n] + [max_n]


def measure(table: SampleTable, scores: Mapping[str, Floats], max_n: int, *, resamples: int, seed: int) -> Measured:
    """All numbers. scores: of each contender, float64 [n_rows]. max_n: at least one group has so many samples."""
    curves = _Curves(table, scores, max_n, resamples, seed)
    points, estimates = curves.points()
    figures, differences, n_complete = curves.figures()
    contenders: dict[str, ContenderCurve] = {
        name: {
            "gold": gold,
            "proxy": proxy,
            "proxy_mean": curves.scales[name][0],
            "proxy_deviation": curves.scales[name][1],
            **figures[name],
        }
        for name, (gold, proxy) in estimates.items()
    }
    return Measured(points, contenders, differences, n_complete)


class _Curves:
    """The curves of all groups."""

    def __init__(self, table: SampleTable, scores: Mapping[str, Floats], max_n: int, resamples: int, seed: int) -> None:
        self._prompts, self._max_n, self._resamples, self._seed = table.prompts, max_n, resamples, seed
        golds = table.samples(table.golds)
        self._range = float(table.golds.min()), float(table.golds.max())
        self._random = np.array([each.mean() for each in golds])
        self._oracle = group_curves(golds, golds, golds, max_n).gold
        self._curves: dict[str, GroupCurves] = {}
        self._proxy_ranges: list[tuple[float, float]] = []
        self.scales: dict[str, tuple[float, float]] = {}
        for name, values in scores.items():
            own = table.samples(values)
            standardised, *scale = standardise(own)
            self._curves[name] = group_curves(own, golds, standardised, max_n)
            self._proxy_ranges.append((float(min(map(np.min, standardised))), float(max(map(np.max, standardised)))))
            self.scales[name] = scale[0], scale[1]

    def _groups_with(self, n: int) -> Ints:
        return np.flatnonzero(~np.isnan(self._oracle[:, n - 1]))

    def points(self) -> tuple[list[Point], dict[str, tuple[list[Estimate], list[Estimate]]]]:
        """The points, and the (gold, proxy) of each contender at each of them."""
        sizes, points = sizes_up_to(self._max_n), []
        estimates: dict[str, tuple[list[Estimate], list[Estimate]]] = {name: ([], []) for name in self._curves}
        for n, kl in zip(sizes, kl_of_best_of(sizes).tolist(), strict=True):
            rows = self._groups_with(n)
            golds = [self._random[rows], self._oracle[rows, n - 1], *(each.gold[rows, n - 1] for each in self._curves.values())]
            proxies = [each.proxy[rows, n - 1] for each in self._curves.values()]
            extremes = [self._range] * len(golds) + self._proxy_ranges
            random, oracle, *found = self._estimates([*golds, *proxies], rows, extremes)
            n_prompts = len(np.unique(self._prompts[rows]))
            points.append(Point(n=n, kl=kl, n_prompts=n_prompts, random=random, oracle=oracle))
            for (gold, proxy), own_gold, own_proxy in zip(
                estimates.values(), found[: len(self._curves)], found[len(self._curves) :], strict=True
            ):
                gold.append(own_gold)
                proxy.append(own_proxy)
        return points, estimates

    def _estimates(self, columns: Sequence[Floats], rows: Ints, extremes: Sequence[tuple[float, float]]) -> list[Estimate]:
        prompts, values = self._prompts[rows], np.column_stack(columns)
        intervals: Sequence[Interval | None] = [None] * len(columns)
        if (n_prompts := len(np.unique(prompts))) > 1:
            means = resampled_means(values, prompts, resamples=self._resamples, seed=self._seed)
            intervals = percentile_intervals(means, n_prompts, extremes)
        means = values.mean(axis=0)
        return [estimate(value, ci95) for value, ci95 in zip(means.tolist(), intervals, strict=True)]

    def figures(self) -> tuple[dict[str, Figures], list[Difference], int]:
        """The figures of each contender, the differences between contenders, and the number of prompts that they rest on."""
        rows = self._groups_with(self._max_n)
        prompts, last = self._prompts[rows], self._max_n - 1
        n_prompts = len(np.unique(prompts))
        found: dict[str, Figures] = {}
        for name, curves in self._curves.items():
            columns = np.hstack([self._random[rows, None], self._oracle[rows], curves.gold[rows], curves.proxy[rows]])
            # Row 0 is the estimate; the others are drawn with the same prompts for each contender.
            means = columns.mean(axis=0)[None]
            if n_prompts > 1:
                means = np.vstack([means, resampled_means(columns, prompts, resamples=self._resamples, seed=self._seed)])
            found[name] = self._figures_of(means, n_prompts)
        values = {name: curves.gold[rows, last] for name, curves in self._curves.items()}
        _, differences = differences_of(values, prompts, resamples=self._resamples, seed=self._seed, extremes=self._range)
        return found, differences, n_prompts

    def _figures_of(self, means: Floats, n_prompts: int) -> Figures:
        """The figures of one contender.

        means: random, oracle, gold and proxy, as estimated and then as resampled: float64 [1 + resamples, 1 + 3 max_n].
        """
        random, oracle, gold, proxy = np.split(means, [1, 1 + self._max_n, 1 + 2 * self._max_n], axis=1)
        low, high = self._range
        peak, width, kl = peak_of(gold[0]), high - low, kl_of_best_of(range(1, self._max_n + 1))

        def of(values: Floats, extremes: tuple[float, float]) -> Estimate:
            return estimate(float(values[0]), interval_of(values[1:], n_prompts, extremes))

        area, reached = over_optimisation(gold, proxy, oracle, kl)
        gamma = np.divide(area, reached, out=np.full(len(area), np.nan), where=reached > 0)
        widest = max(1.0, float(np.nan_to_num(gamma[0])))
        return {
            "gain": of(gold[:, -1] - random[:, 0], (-width, width)),
            "regret": of(oracle[:, -1] - gold[:, -1], (0.0, width)),
            "peak": {"n": peak, "ci95": list(peak_interval(gold[1:])) if n_prompts > 1 else None},
            "drop": of(gold[:, peak - 1] - gold[:, -1], (-width, width)) if peak < self._max_n else estimate(0.0, None),
            "area": of(area, (0.0, float(kl[-1]))) if np.isfinite(area[0]) else None,
            "gamma": of(gamma, (0.0, widest)) if np.isfinite(gamma[0]) else None,
        }


def estimate(value: float, ci95: Interval | None) -> Estimate:
    """An estimate as reports hold it."""
    return {"value": value, "ci95": listed(ci95)}

"""The points of a fit: finished runs with their losses on the same held-out comparisons, and which of them a law takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from polar_rm.errors import PolarError
from polar_rm.evaluation.statistics import Floats, Ints
from polar_rm.scaling.laws import LawForm
from polar_rm.scaling.results import Losses, Result

MIN_LEVELS = 3
"""Sizes, budgets or values of compute that a law needs."""

_MAX_CORRELATION = 0.999  # of the logarithms of parameters and tokens: beyond it nothing tells their exponents apart


@dataclass(frozen=True, slots=True)
class Points:
    """The runs of one split.

    results: of the runs, none of which diverged. losses: mean loss of each comparison, [n_comparisons, n_runs]. pairs: ordered
    pairs of each comparison. prompts: numbers of prompts, from 0.
    """

    results: list[Result]
    losses: Floats
    pairs: Ints
    prompts: Ints

    @property
    def means(self) -> Floats:
        """The loss of every run: the mean over pairs, [n_runs]."""
        means: Floats = (self.losses * self.pairs[:, None]).sum(axis=0) / self.pairs.sum()
        return means

    def inputs(self, form: LawForm, counted: Literal["non_embedding", "total"]) -> Floats:
        """What a law is a function of, for every run, [n_runs, inputs]. counted: the parameters that N counts."""
        columns = {
            "parameters": [each.non_embedding if counted == "non_embedding" else each.parameters for each in self.results],
            "tokens": [each.tokens for each in self.results],
            "flops": [each.flops for each in self.results],
        }
        return np.array([columns[name] for name in form.inputs], np.float64).T


def collect(results: Sequence[Result], losses: Mapping[str, Losses]) -> Points:
    """The points of one split. losses: name of a run -> its losses.

    Raises:
        PolarError: two runs were evaluated on different comparisons.
    """
    first = losses[results[0].name]
    for result in results[1:]:
        other = losses[result.name]
        same = len(first.losses) == len(other.losses) and bool((first.prompts == other.prompts).all())
        if not same or not np.array_equal(first.comparisons, other.comparisons) or not np.array_equal(first.pairs, other.pairs):
            raise PolarError(f"{result.name} was evaluated on other comparisons than {results[0].name}")
    _, prompts = np.unique(first.prompts.astype(str), return_inverse=True)
    columns = np.column_stack([losses[result.name].losses for result in results])
    return Points(list(results), columns, first.pairs, prompts.astype(np.int64))


def chosen(form: LawForm, points: Points, which: Literal["frontier", "all"]) -> list[int]:
    """The runs that a law is fitted to, as indices.

    The joint laws take all runs. For the others ``frontier`` means the longest runs of each size, or the runs of sizes and
    budgets that no other with as little compute is better than (by the mean over seeds).

    Raises:
        PolarError: they have fewer than three sizes, budgets or values of compute, or fewer points than the law needs.
    """
    everything = list(range(len(points.results)))
    if which == "all" or len(form.inputs) > 1:
        indices = everything
    elif form.law == "parameters":
        longest = {size: max(each.tokens for each in points.results if each.size == size) for size in _sizes(points)}
        budgets = {(each.size, each.budget) for each in points.results if each.tokens == longest[each.size]}
        indices = [i for i in everything if (points.results[i].size, points.results[i].budget) in budgets]
    else:
        indices = _undominated(points)
    _check(form, [points.results[i] for i in indices], which)
    return indices


def _undominated(points: Points) -> list[int]:
    means = points.means
    cells: dict[tuple[str, str], list[int]] = {}
    for index, result in enumerate(points.results):
        cells.setdefault((result.size, result.budget), []).append(index)
    by_compute = sorted(cells.values(), key=lambda cell: np.mean([points.results[i].flops for i in cell]))
    kept: list[int] = []
    lowest = float("inf")
    for cell in by_compute:
        if (loss := float(means[cell].mean())) < lowest:
            lowest = loss
            kept += cell
    return sorted(kept)


def _check(form: LawForm, results: Sequence[Result], which: str) -> None:
    levels = {
        "parameters": ("sizes", len({each.size for each in results})),
        "tokens": ("budgets", len({each.budget for each in results})),
        "flops": ("values of compute", len({(each.size, each.budget) for each in results})),
    }
    more = "; fit.points=all takes all runs" if form.law == "compute" and which == "frontier" else ""
    for name in form.inputs:
        what, count = levels[name]
        if count < MIN_LEVELS:
            raise PolarError(
                f"the law {form.law!r} needs {MIN_LEVELS} {what}, there are {count}{more}; or leave it out of fit.laws"
            )
    if len(results) < form.min_points:
        raise PolarError(f"the law {form.law!r} needs {form.min_points} runs, there are {len(results)}; leave it out of fit.laws")
    if len(form.inputs) > 1:
        logs = np.log([[each.non_embedding, each.tokens] for each in results])
        if np.corrcoef(logs.T)[0, 1] > _MAX_CORRELATION:
            raise PolarError(f"the law {form.law!r} needs budgets that differ within sizes; leave it out of fit.laws")


def _sizes(points: Points) -> list[str]:
    return list(dict.fromkeys(each.size for each in points.results))

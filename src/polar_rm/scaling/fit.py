"""``polar scaling fit``: laws, intervals and extrapolations on every held-out split of a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polar_rm.common import provenance
from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.evaluation.statistics import Floats, listed
from polar_rm.scaling.config import FitConfig, ScalingConfig
from polar_rm.scaling.grid import Learning
from polar_rm.scaling.intervals import Estimate, Fitted, fit_with_intervals, resampled_losses
from polar_rm.scaling.laws import FORMS, LawForm, r_squared, undetermined
from polar_rm.scaling.learning_rate import Picked
from polar_rm.scaling.points import Points, chosen, collect
from polar_rm.scaling.results import Result, read_losses
from polar_rm.scaling.state import stored_grid

SCHEMA = "polar-rm/scaling-fit/1"

_CURVE = 24  # points of a plotted curve


@dataclass(frozen=True, slots=True)
class LawFit:
    """A law fitted to runs of one split.

    indices: of the points it was fitted to. x: their inputs, [n, inputs]. asked: what the first predictions are of. curve: inputs
    of the other predictions, for a plot of laws with one input, [m]; empty for the others.
    """

    fitted: Fitted
    indices: list[int]
    x: Floats
    asked: list[dict[str, float]]
    curve: Floats


@dataclass(frozen=True, slots=True)
class ScalingFit:
    """The fits: split -> points, and split -> laws. report: the same as JSON values."""

    points: dict[str, Points]
    laws: dict[str, list[LawFit]]
    report: dict[str, Any]


def fit_grid(config: ScalingConfig, *, progress: Progress = silent) -> ScalingFit:
    """Fit all laws to the finished runs of a grid. Runs that diverged or are missing are left out and named.

    Raises:
        PolarError: there are too few sizes or budgets, or runs were evaluated on different comparisons.
        Damaged: a result is not what was written.
    """
    grid = stored_grid(config)
    results = grid.results()
    picked = grid.picked(results)
    runs = [run for run in grid.runs(results) if run.purpose == "grid"]
    finished = [results[run.name] for run in runs if run.name in results]
    usable = [result for result in finished if not result.diverged]
    if not usable:
        raise PolarError(f"{config.output}: no run of the grid has finished; polar scaling run trains them")
    folder = config.output / "runs"
    points = {
        split: collect(usable, {each.name: read_losses(folder / each.name, split) for each in usable})
        for split in config.eval_splits
    }
    fits = {split: fit_points(each, config.fit, progress=progress, split=split) for split, each in points.items()}
    missing = [run.name for run in runs if run.name not in results]
    report = _report(config, points, fits, picked)
    report["diverged"] = [{"name": name, "reason": each.diverged} for name, each in results.items() if each.diverged]
    report["missing"] = missing
    report["warnings"] = [
        *_bounds(fits),
        *_warnings(config, usable, points, picked, len(missing), [each.name for each in finished if each.diverged]),
    ]
    return ScalingFit(points, fits, report)


def fit_points(points: Points, settings: FitConfig, *, progress: Progress = silent, split: str = "") -> list[LawFit]:
    """Fit all laws of the settings to the points of one split; errors as of :func:`polar_rm.scaling.points.chosen`."""
    selections = {law: chosen(FORMS[law], points, settings.points) for law in settings.laws}
    resampled = resampled_losses(points.losses, points.pairs, points.prompts, resamples=settings.resamples)
    fits = []
    for done, (law, indices) in enumerate(selections.items(), 1):
        form = FORMS[law]
        x = points.inputs(form, settings.parameters)[indices]
        asked = _asked(form, settings)
        at = np.array([[each[name] for name in form.inputs] for each in asked]).reshape(-1, len(form.inputs))
        curve = np.empty(0)
        if len(form.inputs) == 1:
            curve = np.geomspace(x.min(), max(x.max(), at.max(initial=0.0)), _CURVE)
            at = np.concatenate([at, curve[:, None]])
        samples = None if resampled is None else resampled[:, indices]
        fitted = fit_with_intervals(form, x, points.means[indices], samples, at, huber=settings.huber)
        fits.append(LawFit(fitted, indices, x, asked, curve))
        progress(f"fitting {split}", done, len(selections), law)
    return fits


def _asked(form: LawForm, settings: FitConfig) -> list[dict[str, float]]:
    """The predictions that a law can make: those that have all its inputs."""
    asked = [each.model_dump(exclude_none=True) for each in settings.predict]
    return [each for each in asked if set(form.inputs) <= each.keys()]


def _report(
    config: ScalingConfig,
    points: Mapping[str, Points],
    fits: Mapping[str, Sequence[LawFit]],
    picked: Mapping[Learning, Picked | None],
) -> dict[str, Any]:
    first = next(iter(points.values()))
    losses = {split: each.means for split, each in points.items()}
    runs = [
        {
            **{key: value for key, value in asdict(result).items() if key not in ("evaluation", "origin", "diverged")},
            "loss": {split: float(means[index]) for split, means in losses.items()},
            "git": result.origin.get("git"),
        }
        for index, result in enumerate(first.results)
    ]
    rates = [
        {"size": size, "budget": budget, **(asdict(pick) if pick else {"lr": None, "how": "all runs diverged"})}
        for (size, budget), pick in picked.items()
    ]
    return {
        "schema": SCHEMA,
        "output": str(config.output),
        "settings": config.fit.model_dump(mode="json"),
        "runs": runs,
        "learning_rates": rates,
        "splits": {
            split: {
                "comparisons": len(points[split].pairs),
                "pairs": int(points[split].pairs.sum()),
                "prompts": len(set(points[split].prompts.tolist())),
                "laws": {each.fitted.form.law: law_report(each, points[split]) for each in laws},
            }
            for split, laws in fits.items()
        },
        **provenance.versions(),
    }


def law_report(fit: LawFit, points: Points) -> dict[str, Any]:
    """A law as JSON values. residuals: logarithm of the measured loss over the fitted one."""
    fitted, form = fit.fitted, fit.fitted.form
    losses = points.means[fit.indices]
    residuals = np.log(losses / fitted.fitted)
    names = [points.results[index].name for index in fit.indices]
    highest = {name: float(column.max()) for name, column in zip(form.inputs, fit.x.T, strict=True)}
    return {
        "formula": form.formula,
        "parameters": {name: _estimate(each) for name, each in zip(form.names, fitted.estimates, strict=True)},
        "r_squared": r_squared(losses, fitted.fitted),
        "residual_deviation": float(np.sqrt(np.square(residuals).mean())),
        "residuals": dict(zip(names, residuals.tolist(), strict=True)),
        "most_influential": names[int(np.argmax(fitted.influence))],
        "predictions": [
            {**asked, **_estimate(each), "times_beyond": max(asked[name] / highest[name] for name in form.inputs)}
            for asked, each in zip(fit.asked, fitted.predictions, strict=False)  # then come those of the curve
        ],
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "ci95_prompts": listed(estimate.prompts),
        "ci95_runs": listed(estimate.runs),
    }


def _bounds(fits: Mapping[str, Sequence[LawFit]]) -> Iterator[str]:
    for split, laws in fits.items():
        for each in laws:
            if names := undetermined(each.fitted.form, each.fitted.values):
                law = each.fitted.form.law
                yield f"{split}: the runs do not determine {', '.join(names)} of {law}, which the fit left at a bound"


def _warnings(
    config: ScalingConfig,
    usable: Sequence[Result],
    points: Mapping[str, Points],
    picked: Mapping[Learning, Picked | None],
    n_missing: int,
    diverged: Sequence[str],
) -> list[str]:
    """What a reader of the laws has to know."""
    lines = []
    if n_missing:
        lines.append(f"{n_missing} runs of the grid are missing: the laws are of the {len(usable)} that have finished")
    if diverged:
        lines.append(f"{len(diverged)} runs of the grid diverged and were left out: {', '.join(diverged)}")
    for (size, budget), pick in picked.items():
        if pick is None:
            lines.append(f"all runs that tune the learning rate of {size} at {budget} diverged")
        elif not pick.is_inside:
            lines.append(f"learning rate of {size} ({pick.lr:.4g}, tuned at {budget}): {pick.how}")
    if repeated := [each.name for each in usable if each.epochs > 1]:
        lines.append(f"{len(repeated)} runs repeat data (more than one epoch), the first is {repeated[0]}")
    for split, each in points.items():
        flat = [each.results[i].name for i in np.flatnonzero(each.means > math.log(2) - config.fit.plateau)]
        if flat:
            lines.append(f"{split}: {len(flat)} runs have not left the plateau at ln 2, the first is {flat[0]}")
    sources = {(each.origin.get("git") or {}).get("commit") for each in usable}
    if len(sources) > 1:
        lines.append(f"the runs were trained by {len(sources)} versions of the code")
    return lines

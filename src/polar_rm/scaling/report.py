"""The fits of a grid as tables for the terminal and as a plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.text import Text

from polar_rm.reporting.plots import Curve, LawPanel, laws_figure, save_figure
from polar_rm.reporting.tables import Table
from polar_rm.reporting.words import interval
from polar_rm.scaling.fit import LawFit, ScalingFit
from polar_rm.scaling.intervals import Estimate
from polar_rm.scaling.laws import predict
from polar_rm.scaling.points import Points

_AXES = {"parameters": "parameters N", "flops": "compute C (FLOPs)", "tokens": "tokens D"}


def render(fit: ScalingFit) -> Group:
    """The laws, the predictions, what was left out, and the warnings, for the terminal."""
    report = fit.report
    parts: list[Any] = [Text(line) for line in _summary(report)]
    for split in report["splits"]:
        parts += [laws_table(report, split).rich(), *map(Text, _formulas(report, split))]
        parts += [*(table.rich() for table in _predictions(report, split))]
    parts += [Text(f"diverged, left out: {each['name']}: {each['reason']}", style="yellow") for each in report["diverged"]]
    parts += [Text(f"warning: {line}", style="yellow") for line in report["warnings"]]
    return Group(*parts)


def _summary(report: dict[str, Any]) -> Iterator[str]:
    settings = report["settings"]
    yield f"{len(report['runs'])} runs, {len(report['diverged'])} diverged, {len(report['missing'])} missing"
    counted = "without the embedding" if settings["parameters"] == "non_embedding" else "with the embedding"
    taken = {
        "frontier": "`parameters` of the longest runs of each size, `compute` of the compute-efficient frontier",
        "all": "`parameters` and `compute` of all runs",
    }
    yield f"N counts parameters {counted}; {taken[settings['points']]}; joint laws of all runs"


def _formulas(report: dict[str, Any], split: str) -> Iterator[str]:
    for name, law in report["splits"][split]["laws"].items():
        yield f"{name}: {law['formula']}, R2 {law['r_squared']:.4f}, {len(law['residuals'])} runs"


def laws_table(report: dict[str, Any], split: str) -> Table:
    """A row for each parameter of each law on one split."""
    rows = []
    for name, law in report["splits"][split]["laws"].items():
        for index, (parameter, estimate) in enumerate(law["parameters"].items()):
            bounds = [interval(estimate[key], ".3g", missing="one prompt") for key in ("ci95_prompts", "ci95_runs")]
            rows.append(["" if index else name, parameter, f"{estimate['value']:.4g}", *bounds])
    facts = report["splits"][split]
    title = f"{split}: {facts['pairs']:,} pairs of {facts['prompts']:,} prompts"
    return Table(title, ["law", "parameter", "value", "95% by prompts", "95% by runs"], rows)


def _predictions(report: dict[str, Any], split: str) -> Iterator[Table]:
    rows = []
    for name, law in report["splits"][split]["laws"].items():
        for each in law["predictions"]:
            at = ", ".join(f"{key} {each[key]:.3g}" for key in ("parameters", "tokens", "flops") if key in each)
            bounds = [interval(each[key], ".4f", missing="one prompt") for key in ("ci95_prompts", "ci95_runs")]
            rows.append([f"{name} at {at}", f"{each['value']:.4f}", *bounds, f"{each['times_beyond']:.3g}x"])
    if rows:
        header = ["prediction", "loss", "95% by prompts", "95% by runs", "of the largest measured"]
        yield Table(f"{split}: extrapolation", header, rows)


def write_plot(path: str | Path, fit: ScalingFit) -> None:
    """Draw all laws into a PNG or SVG file, a row of panels for each split.

    Raises:
        PolarError: another suffix, or the file can't be written.
    """
    rows = [[_panel(split, law, fit.points[split]) for law in laws] for split, laws in fit.laws.items()]
    save_figure(laws_figure(rows), path)


def _panel(split: str, law: LawFit, points: Points) -> LawPanel:
    form, values = law.fitted.form, law.fitted.values
    axis = form.inputs[-1]
    x, losses = law.x[:, -1], points.means[law.indices]
    sizes = np.array([points.results[index].size for index in law.indices])
    by_size = {size: (x[sizes == size].tolist(), losses[sizes == size].tolist()) for size in dict.fromkeys(sizes.tolist())}
    curves = {}
    if len(law.curve):
        estimates = law.fitted.predictions[len(law.asked) :]
        bands = [_band(each) for each in estimates]
        curves[""] = Curve(law.curve.tolist(), [each.value for each in estimates], *map(list, zip(*bands, strict=True)))
    else:
        for size in by_size:
            of_size = law.x[sizes == size]
            tokens = np.geomspace(of_size[:, -1].min(), of_size[:, -1].max(), 24)
            inputs = np.column_stack([np.full(len(tokens), of_size[0, 0]), tokens])
            curves[size] = Curve(tokens.tolist(), predict(form, values, inputs).tolist())
    return LawPanel(f"{split}: {form.formula}", _AXES[axis], by_size, curves)


def _band(estimate: Estimate) -> tuple[float, float]:
    """The wider of both intervals on each side."""
    bounds = [each for each in (estimate.prompts, estimate.runs) if each is not None]
    return min((low for low, _ in bounds), default=estimate.value), max((high for _, high in bounds), default=estimate.value)

"""Curves over the steps of a training run, one small panel for each quantity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polar_rm.reporting.plots import COLOURS, MARKERS, Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class StepPanel:
    """One quantity. curves: name -> curve over steps; a name has one colour in all panels. limits: values of horizontal lines.
    marked: points (step, value) that are circled. points: whether the values are marked, as there are few."""

    title: str
    curves: Mapping[str, Curve]
    limits: Sequence[float] = ()
    marked: Sequence[tuple[float, float]] = field(default_factory=list)
    points: bool = False


def steps_figure(panels: Sequence[StepPanel]) -> Figure:
    """Plot panels of curves over training steps, three in a row."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(panels) / _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for panel, axes in zip(panels, grid, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(panel.title, loc="left", fontsize="medium", parse_math=False)
        for name, curve in panel.curves.items():
            number = names.index(name)
            colour = COLOURS[number % len(COLOURS)]
            marker = MARKERS[number % len(MARKERS)] if panel.points or len(curve.x) == 1 else None
            axes.plot(curve.x, curve.y, color=colour, marker=marker, markersize=4, linewidth=1.2, label=name)
            if len(curve.low):
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15)
        for limit in panel.limits:
            axes.axhline(limit, color="grey", linestyle="--", linewidth=1)
        if panel.marked:
            axes.plot(*zip(*panel.marked, strict=True), "o", color=COLOURS[4], markersize=9, fillstyle="none", label="limit left")
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if len(panel.curves) + bool(panel.marked) < 2:
            continue
        for text in axes.legend(fontsize="small", frameon=False).get_texts():
            text.set_parse_math(False)
    return figure

"""Plots as SVG text for HTML pages, or as PNG and SVG files. They use no display and no global state of matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polar_rm.common.extras import require
from polar_rm.common.files import check_target, write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from polar_rm.reporting.measures import Measure

PLOT_SUFFIXES = (".png", ".svg")

# Okabe and Ito's palette, whose colours colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")

_MAX_ROWS = 40  # of an accuracy plot; more rows are not readable


def require_plots(what: str) -> None:
    """Check that plots can be drawn, before the work that ends with one: matplotlib is imported only where something is drawn.

    what: what draws, for the message.

    Raises:
        PolarError: matplotlib is not installed.
    """
    require("evaluate", what, "matplotlib")


def check_plot(path: str | Path) -> None:
    """Check that a plot can be drawn into a file, before the work.

    Raises:
        PolarError: matplotlib is not installed, the suffix is none of ``PLOT_SUFFIXES``, or the file can't be written.
    """
    require_plots(f"the plot {path}")
    check_target(path, PLOT_SUFFIXES)


def plot_loss_curves(histories: Mapping[str, Sequence[tuple[int, float]]], *, title: str = "") -> str:
    """Bradley-Terry loss by step, as SVG. histories: label -> [(step, loss in nats)].

    A line marks ln 2, the loss of chance. Curves of more than ten steps are drawn twice: every step faintly, and over them the
    mean of the last five steps, or of the last twentieth of all where that is more.
    """
    figure, axes = _figure(7.0, 3.6, title)
    for (label, history), colour in zip(histories.items(), _repeat(COLOURS, len(histories)), strict=True):
        steps = np.array([step for step, _ in history])
        losses = np.array([loss for _, loss in history], np.float64)
        width = max(5, len(losses) // 20) if len(losses) > 10 else 1
        if width > 1:
            axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
        smooth = np.convolve(losses, np.ones(width) / width, "valid") if len(losses) else losses
        axes.plot(steps[width - 1 :], smooth, color=colour, label=label, marker="o" if len(losses) == 1 else None)
    axes.axhline(math.log(2), color="grey", linestyle=":", linewidth=1, label="ln 2 (chance)")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per pair)")
    _legend(axes)
    return _svg(figure)


def plot_score_distributions(scores: Mapping[str, Sequence[float]], *, title: str = "") -> str:
    """Histograms of raw scores over shared bins, as SVG. scores: label (such as ``same policy``) -> finite scores."""
    figure, axes = _figure(7.0, 3.6, title)
    present = {label: np.asarray(values, np.float64) for label, values in scores.items() if len(values)}
    if present:
        # As many bins as the smallest set supports; with too many bins its bars would show no shape.
        count = min(40, max(5, int(math.sqrt(min(map(len, present.values()))) * 2)))
        edges = np.histogram_bin_edges(np.concatenate(list(present.values())), count)
        for (label, values), colour in zip(present.items(), _repeat(COLOURS, len(present)), strict=True):
            weights = np.full(len(values), 1 / len(values))
            median = float(np.median(values))
            label = f"{label} (n = {len(values):,}, median {median:.2f})"
            axes.hist(values, edges.tolist(), weights=weights, color=colour, alpha=0.45, label=label)
            axes.axvline(median, color=colour, linewidth=1.5)
        _legend(axes)
    axes.set_xlabel("score")
    axes.set_ylabel("share of candidates")
    return _svg(figure)


def plot_accuracy(rows: Mapping[str, Mapping[str, Measure]], *, title: str = "") -> str:
    """Pairwise accuracies with their 95% intervals, as SVG. rows: label -> series (a scorer) -> measure."""
    return _svg(accuracy_figure(rows, title=title))


def accuracy_figure(rows: Mapping[str, Mapping[str, Measure]], *, title: str = "") -> Figure:
    """The figure of :func:`plot_accuracy`: a line per row, a marker per scorer, a dotted line for chance; at most 40 rows."""
    shown = dict(list(rows.items())[-_MAX_ROWS:])
    if len(shown) < len(rows):
        title = f"{title} (the last {len(shown)} of {len(rows)} groups)".strip()
    series = list(dict.fromkeys(name for row in shown.values() for name in row))
    figure, axes = _figure(7.0, 1.4 + len(shown) * max(0.3, 0.14 * len(series)), title)
    lowest = 0.45
    for index, name in enumerate(series):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        heights, values, errors = [], [], []
        for height, row in enumerate(shown.values()):
            if name in row:
                accuracy = row[name]["accuracy"]
                low, high = row[name]["ci95"] or (accuracy, accuracy)
                heights.append(height + 0.7 * ((index + 0.5) / len(series) - 0.5))
                values.append(accuracy)
                # A percentile interval need not contain the estimate itself, and matplotlib refuses negative lengths.
                errors.append((max(0.0, accuracy - low), max(0.0, high - accuracy)))
                lowest = min(lowest, low - 0.03)
        bars = np.array(errors).T
        axes.errorbar(values, heights, xerr=bars, fmt=marker, color=colour, label=name, capsize=2, markersize=5)
    axes.axvline(0.5, color="grey", linestyle=":", linewidth=1)
    axes.set_xlim(lowest, 1.01)
    # Labels come from data and may contain "$", which would start a formula.
    axes.set_yticks(range(len(shown)), labels=[_shorten(label) for label in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("pairwise accuracy, 95% interval")
    axes.grid(axis="x", alpha=0.3)
    _legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def interval_figure(
    rows: Mapping[str, tuple[float, Sequence[float], float, str]], kinds: Mapping[str, str], *, title: str = "", x: str = ""
) -> Figure:
    """Plot a line per row: a value with its interval, and the threshold that it is compared with.

    rows: label -> (value, [low, high], threshold, kind). kinds: kind -> its colour, ``good``, ``bad``, ``open`` or ``other``.
    """
    figure, axes = _figure(7.0, 1.2 + 0.3 * len(rows), title)
    for kind, colour in kinds.items():
        of_kind = [(height, *row) for height, row in enumerate(rows.values()) if row[3] == kind]
        if of_kind:
            heights, values, intervals, _, _ = zip(*of_kind, strict=True)
            errors = [(max(0.0, v - low), max(0.0, high - v)) for v, (low, high) in zip(values, intervals, strict=True)]
            number = ("other", "open", "good", "bad").index(colour)
            shade, bars = (*COLOURS[:3], COLOURS[4])[number], np.array(errors).T
            axes.errorbar(values, heights, xerr=bars, fmt=MARKERS[number], color=shade, label=kind, capsize=2, markersize=5)
    axes.plot([row[2] for row in rows.values()], range(len(rows)), "|", color="black", markersize=14, label="threshold")
    axes.set_yticks(range(len(rows)), labels=[_shorten(label) for label in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(x)
    axes.grid(axis="x", alpha=0.3)
    _legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


Band = tuple[Sequence[float], Sequence[float], Sequence[float]]
"""The values of a curve, and the lower and upper bounds of their intervals."""


def curves_figure(
    ticks: Mapping[str, float],
    panels: Mapping[str, Mapping[str, Band]],
    bounds: Mapping[str, Mapping[str, Band]],
    *,
    x: str,
) -> Figure:
    """Plot curves with intervals over shared positions, in panels side by side.

    ticks: label -> position on the x axis. panels: label of the y axis -> name -> curve; a name has one colour in all panels.
    bounds: further curves of a panel, dashed and without intervals.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(panels), 4.0), layout="constrained")
    positions = list(ticks.values())
    for axes, (label, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for index, (name, (values, low, high)) in enumerate(curves.items()):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            axes.plot(positions, values, color=colour, marker=marker, markersize=4, label=name)
            axes.fill_between(positions, low, high, color=colour, alpha=0.15)
        for index, (name, (values, _, _)) in enumerate(bounds.get(label, {}).items()):
            axes.plot(positions, values, color="grey", linestyle=("--", ":")[index % 2], label=name)
        axes.spines[["top", "right"]].set_visible(False)
        # The first positions lie close together.
        shown = [i for i, each in enumerate(positions) if i == 0 or each - positions[i - 1] > 0.08 * positions[-1]]
        axes.set_xticks([positions[i] for i in shown], labels=[list(ticks)[i] for i in shown], fontsize="small")
        axes.set_xlabel(x)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        _legend(axes)
    return figure


def figure_svg(figure: Figure) -> str:
    """A figure as SVG for an HTML page."""
    return _svg(figure)


def plot_lengths(quantiles: Mapping[str, Sequence[float]], *, title: str = "") -> str:
    """Text lengths on a logarithmic axis, as SVG. quantiles: label -> the 5th, 25th, 50th, 75th and 95th percentile."""
    shown = dict(list(quantiles.items())[:_MAX_ROWS])
    if len(shown) < len(quantiles):
        title = f"{title} (the first {len(shown)} of {len(quantiles)})".strip()
    figure, axes = _figure(7.0, 1.2 + 0.22 * len(shown), title)
    rows = np.arange(len(shown))
    low, lower, middle, upper, high = np.maximum(np.array(list(shown.values()), np.float64).T, 1)
    axes.hlines(rows, low, high, color="grey", linewidth=1, label="5% to 95%")
    axes.hlines(rows, lower, upper, color=COLOURS[0], linewidth=6, alpha=0.6, label="25% to 75%")
    axes.plot(middle, rows, "|", color="black", markersize=9, label="median")
    axes.set_xscale("log")
    axes.set_yticks(rows, labels=[_shorten(label) for label in shown], fontsize="small", parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("length in characters")
    axes.grid(axis="x", alpha=0.3)
    _legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure)


def plot_matrix(labels: Sequence[str], matrix: NDArray[np.float64], *, x: str, y: str, title: str = "") -> str:
    """A heat map with a logarithmic colour scale, as SVG. matrix: values >= 0 [n, n], rows along ``y``; zeros stay white."""
    from matplotlib.colors import LogNorm

    side = 3.0 + 0.16 * len(labels)
    figure, axes = _figure(side + 0.8, side, title)
    positive = np.ma.masked_less_equal(matrix, 0)
    image = axes.imshow(positive, cmap="viridis", norm=LogNorm(1, max(2.0, float(matrix.max(initial=0)))))
    names = [_shorten(label, 28) for label in labels]
    axes.set_xticks(range(len(labels)), labels=names, rotation=90, fontsize="x-small", parse_math=False)
    axes.set_yticks(range(len(labels)), labels=names, fontsize="x-small", parse_math=False)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    figure.colorbar(image, ax=axes, shrink=0.7, label="pairs")
    return _svg(figure)


def plot_reliability(before: Mapping[str, Any], after: Mapping[str, Any], *, title: str = "") -> str:
    """The reliability diagram of :func:`calibration_figure` alone, as SVG."""
    figure, axes = _figure(5.0, 3.8, title)
    _draw_reliability(axes, before, after)
    return _svg(figure)


def calibration_figure(
    before: Mapping[str, Any], after: Mapping[str, Any], abstention: Sequence[Mapping[str, Any]], *, title: str = ""
) -> Figure:
    """Plot the reliability before and after calibration, and the accuracy of the most certain pairs.

    before, after: ``confidence`` and ``accuracy`` of each bin, and the calibration ``error``. abstention: rows of ``coverage``,
    ``accuracy`` and its 95% interval ``ci95``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        left.set_title(title, loc="left", fontsize="medium", parse_math=False)
    _draw_reliability(left, before, after)
    coverages = [100 * row["coverage"] for row in abstention]
    right.plot(coverages, [row["accuracy"] for row in abstention], color=COLOURS[0], marker="o", label="accuracy")
    low, high = zip(*(row["ci95"] for row in abstention), strict=True)
    right.fill_between(coverages, low, high, color=COLOURS[0], alpha=0.2, label="95% interval")
    right.invert_xaxis()
    right.set_xlabel("most certain pairs that are kept, %")
    right.set_ylabel("pairwise accuracy")
    right.grid(alpha=0.3)
    _legend(right)
    return figure


def _draw_reliability(axes: Axes, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    axes.plot([0.5, 1], [0.5, 1], color="grey", linestyle=":", linewidth=1, label="exact")
    for curve, label, colour, marker in ((before, "before", COLOURS[1], "s"), (after, "after", COLOURS[0], "o")):
        label = f"{label} (error {curve['error']:.3f})"
        axes.plot(curve["confidence"], curve["accuracy"], color=colour, marker=marker, markersize=4, label=label)
    axes.set_xlabel("probability of the likelier candidate")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.3)
    _legend(axes)


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve with its 95% band, all of one length. low, high: empty where there is no band."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class LawPanel:
    """Losses against parameters, tokens or compute, and a law.

    points: series -> (x, loss). curves: series, or ``""`` for all -> curve.
    """

    title: str
    x: str
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    curves: Mapping[str, Curve]


def laws_figure(rows: Sequence[Sequence[LawPanel]]) -> Figure:
    """Plot power laws on logarithmic axes: a row of panels for each set of evaluation data."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(4.6 * columns, 3.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for panels, row in zip(rows, grid, strict=True):
        for axes in row[len(panels) :]:
            axes.set_axis_off()
        for panel, axes in zip(panels, row, strict=False):
            _draw_law(axes, panel)
    return figure


def _draw_law(axes: Axes, panel: LawPanel) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(panel.title, loc="left", fontsize="medium", parse_math=False)
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(panel.points)}
    for index, (name, (x, losses)) in enumerate(panel.points.items()):
        axes.plot(x, losses, MARKERS[index % len(MARKERS)], color=colours[name], markersize=5, label=name)
    for name, curve in panel.curves.items():
        colour = colours.get(name, "black")
        axes.plot(curve.x, curve.y, color=colour, linewidth=1)
        if len(curve.low):
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(panel.x)
    axes.set_ylabel("loss (nats per pair)")
    axes.grid(alpha=0.3, which="both")
    _legend(axes)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG or SVG file, by the suffix, atomically.

    Raises:
        PolarError: the suffix is neither of the two, or the file can't be written.
    """
    check_target(path, PLOT_SUFFIXES)
    write_file(path, _render(figure, Path(path).suffix.lower().removeprefix(".")))


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    # matplotlib takes most of a second to import, which a command without plots should not pay.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, loc="left", fontsize="medium", parse_math=False)
    return figure, axes


def _legend(axes: Axes, **options: Any) -> None:
    for text in axes.legend(fontsize="small", frameon=False, **options).get_texts():
        text.set_parse_math(False)


def _svg(figure: Figure) -> str:
    """The figure as SVG without the XML prologue, so that it can be part of an HTML page."""
    text = _render(figure, "svg").decode()
    return text[text.index("<svg") :]


def _render(figure: Figure, suffix: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Labels stay text, so that a page can be searched and read aloud. A fixed salt and no date make equal plots equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "polar-rm"}):
        figure.savefig(buffer, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
    return buffer.getvalue()


def _repeat(values: Sequence[str], count: int) -> Iterable[str]:
    return (values[i % len(values)] for i in range(count))


def _shorten(label: str, max_length: int = 48) -> str:
    return label if len(label) <= max_length else f"{label[: max_length // 2 - 1]}…{label[-max_length // 2 :]}"

"""The report of a run as a self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polar_rm.common.files import write_file
from polar_rm.reporting.html import render_page
from polar_rm.reporting.plots import Curve, figure_svg
from polar_rm.reporting.steps import StepPanel, steps_figure
from polar_rm.rft.monitor import COLUMNS

_MAX_CHARACTERS = 4000  # maximum length of a text on the page

_TITLES = {
    "reward": "reward",
    "kl": "KL from the starting policy (nats a token)",
    "length": "tokens of a completion",
    "repetition": "repeated word 4-grams",
    "likeness": "likeness to the reference (F1)",
    "group_std": "spread of rewards within groups",
}


def write_page(path: Path, report: Mapping[str, Any], limits: Mapping[str, list[float]]) -> None:
    """Write the page. limits: absolute limits of the monitor, by quantity, which are drawn.

    Raises:
        PolarError: the file can't be written.
    """
    plots = {name: figure_svg(steps_figure(panels)) for name, panels in _panels(report, limits).items() if panels}
    examples = [_shortened(example) for example in report["examples"]]
    write_file(path, render_page("polar_rm.rft", "report.html.j2", {**report, "examples": examples}, plots))


def _panels(report: Mapping[str, Any], limits: Mapping[str, list[float]]) -> dict[str, list[StepPanel]]:
    training = []
    for name in COLUMNS:
        points = [(row["step"], row[name]) for row in report["curves"] if name in row]
        if points:
            steps, values = zip(*points, strict=True)
            by_step = dict(points)
            left = [event["step"] for event in report["events"] if event["quantity"] == name]
            marked = [(step, by_step[step]) for step in left if step in by_step]
            training.append(StepPanel(_TITLES[name], {"training": Curve(steps, values)}, limits.get(name, []), marked))
    judges = list(dict.fromkeys(name for rows in report["evaluations"].values() for row in rows for name in row["judges"]))
    return {
        "training": training,
        "held_out": [StepPanel(f"held-out: {judge}", _judged(report["evaluations"], judge), points=True) for judge in judges],
    }


def _judged(evaluations: Mapping[str, list[dict[str, Any]]], judge: str) -> dict[str, Curve]:
    """The curve of one judge for each policy. Both begin at the starting policy."""
    curves = {}
    start = evaluations["rft"][0]
    for policy, own in evaluations.items():
        rows = own if policy == "rft" else [start, *own]
        shown = [row for row in rows if judge in row["judges"]]
        steps, values = [row["step"] for row in shown], [row["judges"][judge]["mean"] for row in shown]
        bounds = [row["judges"][judge]["ci95"] for row in shown]
        has_bounds = all(each is not None for each in bounds)
        low, high = ([each[side] for each in bounds] if has_bounds else [] for side in (0, 1))
        curves[policy] = Curve(steps, values, low, high)
    return curves


def _shortened(example: Mapping[str, Any]) -> dict[str, Any]:
    sides = {name: {**side, "text": _short(side["text"])} for name, side in example["sides"].items()}
    return {**example, "prompt": _short(example["prompt"]), "reference": _short(example["reference"]), "sides": sides}


def _short(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS:
        return text
    return f"{text[:_MAX_CHARACTERS]}\n[… {len(text) - _MAX_CHARACTERS:,} more characters]"

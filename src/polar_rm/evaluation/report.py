"""The result of an evaluation as a contract: its schema, its table for the terminal, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict

from rich.console import Group
from rich.table import Table
from rich.text import Text

from polar_rm.common.files import write_json
from polar_rm.reporting.measures import Measure
from polar_rm.reporting.plots import accuracy_figure, save_figure
from polar_rm.reporting.words import interval

SCHEMA: Literal["polar-rm/evaluation/1"] = "polar-rm/evaluation/1"


class BaselineMeasure(Measure):
    """A baseline on the same pairs. It has no loss: the scale of its scores is arbitrary."""

    difference: float  # the model's accuracy minus this one's, paired
    difference_ci95: list[float] | None  # 95% interval of that difference: above 0 means that the model beats it


class GroupReport(Measure):
    """All numbers of one group of pairs."""

    n_pairs: int
    n_prompts: int  # prompts with at least one pair; the bootstrap's unit
    loss: float  # mean over pairs of -log sigmoid(better - worse), nats; ln 2 = 0.693 for a scorer that knows nothing
    baselines: dict[str, BaselineMeasure]


class DataFile(TypedDict):
    """A file that was evaluated. rows: comparisons read from it, refused ones not counted."""

    path: str
    sha256: str
    rows: int


class ReferenceReport(TypedDict):
    """What the scorers were given as reference."""

    mode: Literal["given", "empty", "shuffled"]
    reference_equals_candidate: int  # comparisons whose reference is a copy, or nearly, of a candidate: should be 0


class EvaluationReport(GroupReport):
    """Numbers over all pairs, and what they are about. A comparison weighs as many pairs as its ranks order."""

    schema: Literal["polar-rm/evaluation/1"]
    by: dict[str, GroupReport]  # every value of the metadata key asked for, in order of appearance; {} when none was
    encoder_hash: str | None  # names the function from text to token ids; None for a scorer without one
    model: str | None  # the folder or name of what was evaluated, None if it was not told
    data: list[DataFile]  # [] for comparisons that did not come from files
    reference: ReferenceReport
    warnings: list[str]  # one line each: what limits the numbers


def write_report(path: str | Path, report: EvaluationReport) -> None:
    """Save as JSON, atomically.

    Raises:
        PolarError: the file can't be written.
    """
    write_json(path, report)


def write_plot(path: str | Path, report: EvaluationReport) -> None:
    """Draw the accuracy of every group with intervals and baselines, as PNG or SVG by the file's suffix, atomically.

    Raises:
        PolarError: another suffix, or the file can't be written.
    """
    save_figure(accuracy_figure(accuracy_rows(report), title=report["model"] or ""), path)


def accuracy_rows(report: EvaluationReport) -> dict[str, dict[str, Measure]]:
    """The rows of an accuracy plot: label -> series (``model`` and the baselines) -> measure."""
    groups: dict[str, EvaluationReport | GroupReport] = {**report["by"]}
    groups["all" if "all" not in groups else "all pairs"] = report
    return {
        label: {"model": _measure(group), **{name: _measure(value) for name, value in group["baselines"].items()}}
        for label, group in groups.items()
    }


def render(report: EvaluationReport) -> Group:
    """A readable table with one row per group, followed by the differences to the baselines and the warnings."""
    table = Table(title=f"pairwise accuracy, reference {report['reference']['mode']}", title_justify="left")
    table.add_column("group", overflow="fold")
    for header in ("pairs", "prompts", "accuracy", "95% interval", "loss", *report["baselines"]):
        table.add_column(header, justify="right", no_wrap=True)
    for name, group in report["by"].items():
        table.add_row(Text(name), *_cells(group))
    if report["by"]:
        table.add_section()
    table.add_row("all", *_cells(report), style="bold")
    lines = [
        Text(f"model - {name}: {value['difference']:+.3f} {interval(value['difference_ci95'], '+.3f', missing='-')}")
        for name, value in report["baselines"].items()
    ]
    warnings = [Text(f"warning: {line}", style="yellow") for line in report["warnings"]]
    return Group(table, *lines, *warnings)


def _cells(group: EvaluationReport | GroupReport) -> list[str]:
    cells = [f"{group['n_pairs']:,}", f"{group['n_prompts']:,}", f"{group['accuracy']:.3f}"]
    cells += [interval(group["ci95"], missing="-"), f"{group['loss']:.3f}"]
    return cells + [f"{value['accuracy']:.3f}" for value in group["baselines"].values()]


def _measure(value: EvaluationReport | GroupReport | BaselineMeasure) -> Measure:
    return {"accuracy": value["accuracy"], "ci95": value["ci95"]}

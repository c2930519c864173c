"""The result of an evaluation as a contract: its schema, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict

from polar_rm.common.files import write_json
from polar_rm.evaluation.reference_use import ReferenceUse
from polar_rm.evaluation.references import ReferenceMode
from polar_rm.reporting.measures import Measure
from polar_rm.reporting.plots import accuracy_figure, save_figure

SCHEMA: Literal["polar-rm/evaluation/2"] = "polar-rm/evaluation/2"

Verdict = Literal["first", "second", "undecided"]


class ContenderMeasure(Measure):
    """A contender's numbers on some pairs. ``ci95`` is by bootstrap over prompts, or Wilson's where all prompts agree."""

    ties: int  # pairs with exactly equal scores; each counts half
    loss: (
        float | None
    )  # mean over pairs of -log sigmoid(better - worse), nats; ln 2 for one that knows nothing; None of a baseline


class Difference(TypedDict):
    """The accuracy of one contender minus another's on the same pairs."""

    first: str
    second: str
    difference: float
    ci95: list[float] | None  # of the difference itself, paired by prompts; None: a single prompt
    verdict: Verdict  # who is better: the interval lies on one side of 0


class GroupReport(TypedDict):
    """All numbers of one group of pairs."""

    n_pairs: int
    n_prompts: int  # prompts with at least one pair; the bootstrap's unit
    contenders: dict[str, ContenderMeasure]
    differences: list[Difference]  # of every two contenders, the earlier one first


class ContenderFacts(TypedDict):
    """What a contender is."""

    kind: str  # native, stock, server, stored, baseline or object
    source: str | None  # folder, address or file
    reads_references: bool
    noted: dict[str, int]  # note -> comparisons with a candidate that has it, such as truncated
    facts: dict[str, Any]  # by kind, such as encoder_hash, which names the function from text to token ids


class DataFile(TypedDict):
    """A file that was evaluated. rows: comparisons read from it, refused ones not counted."""

    path: str
    sha256: str
    rows: int


class ReferenceReport(TypedDict):
    """What the contenders were given as reference."""

    mode: ReferenceMode  # with --reference all, that of all numbers but ``use``
    protocols: dict[
        str, int
    ]  # where references came from (gold, own, frontier, sibling; else given) -> comparisons; {} if unused
    use: ReferenceUse | None  # with --reference all: what contenders make of their references
    file: str | None  # where references were added from
    reference_equals_candidate: int  # comparisons whose reference is a copy, or nearly, of a candidate: should be 0


class EvaluationReport(GroupReport):
    """Numbers over all pairs, and what they are about. A comparison weighs as many pairs as its ranks order.

    Version 2: ``contenders`` and ``differences`` in place of the model's own numbers and ``baselines``; new are ``facts``, where
    ``model`` and ``encoder_hash`` went, ``fingerprint`` and ``limit``.
    """

    schema: Literal["polar-rm/evaluation/2"]
    by: dict[str, GroupReport]  # every value of the metadata key asked for, in order of appearance; {} when none was
    facts: dict[str, ContenderFacts]
    data: list[DataFile]  # [] for comparisons that did not come from files
    limit: int | None  # only so many comparisons were taken, the first ones
    reference: ReferenceReport
    fingerprint: str  # of the pairs: reports with the same one are about the same pairs in the same order
    warnings: list[str]  # one line each: what limits the numbers


def write_report(path: str | Path, report: Any) -> None:
    """Save as JSON, atomically.

    Raises:
        PolarError: the file can't be written.
    """
    write_json(path, report)


def write_plot(path: str | Path, report: EvaluationReport) -> None:
    """Draw the accuracy of every contender in every group with intervals, as PNG or SVG by the file's suffix, atomically.

    Raises:
        PolarError: another suffix, or the file can't be written.
    """
    save_figure(accuracy_figure(accuracy_rows(report), title=f"{report['n_pairs']:,} pairs"), path)


def accuracy_rows(report: EvaluationReport) -> dict[str, dict[str, Measure]]:
    """The rows of an accuracy plot: label with the number of pairs -> contender -> measure."""
    groups: dict[str, GroupReport] = {**report["by"]}
    groups["all" if "all" not in groups else "all pairs"] = report
    return {
        f"{label} ({group['n_pairs']:,})": {
            name: {"accuracy": found["accuracy"], "ci95": found["ci95"]} for name, found in group["contenders"].items()
        }
        for label, group in groups.items()
    }

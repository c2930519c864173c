"""The report of an evaluation: its schema and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict

from polar_rm.common.files import write_json
from polar_rm.evaluation.reference_use import ReferenceUse
from polar_rm.evaluation.references import ReferenceMode
from polar_rm.reporting.measures import Measure
from polar_rm.reporting.plots import accuracy_figure, save_figure
from polar_rm.rewards.combining import Combine

SCHEMA: Literal["polar-rm/evaluation/2"] = "polar-rm/evaluation/2"

Verdict = Literal["first", "second", "undecided"]


class ContenderMeasure(Measure):
    """A contender's numbers on some pairs. ``ci95`` is by bootstrap over prompts, or Wilson's interval if all prompts agree."""

    ties: int  # pairs with exactly equal scores; each counts half
    loss: float | None  # mean of -log sigmoid(better - worse) in nats; ln 2 without any skill; None for a baseline


class Difference(TypedDict):
    """The accuracy of one contender minus another's on the same pairs."""

    first: str
    second: str
    difference: float
    ci95: list[float] | None  # interval of the difference, by paired bootstrap over prompts; None for a single prompt
    verdict: Verdict  # the better contender if the interval excludes 0, else undecided


class GroupReport(TypedDict):
    """All numbers of one group of pairs."""

    n_pairs: int
    n_prompts: int  # prompts with at least one pair; the bootstrap's unit
    contenders: dict[str, ContenderMeasure]
    differences: list[Difference]  # of every two contenders, the earlier one first


class ContenderFacts(TypedDict):
    """Facts about a contender."""

    kind: str  # native, stock, server, stored, baseline or object
    source: str | None  # folder, address or file
    reads_references: bool
    noted: dict[str, int]  # note, such as truncated -> number of comparisons with a candidate that has it
    unread: dict[str, int]  # tokens that truncation removed, see :class:`polar_rm.rewards.outcomes.Unread`
    facts: dict[str, Any]  # depends on the kind, such as encoder_hash, which identifies the function from text to token ids


class DataFile(TypedDict):
    """A file that was evaluated. rows: the number of comparisons read from it, without refused ones."""

    path: str
    sha256: str
    rows: int


class ReferenceReport(TypedDict):
    """The references that the contenders got."""

    mode: ReferenceMode  # with --reference all, the mode of all numbers except ``use``
    protocols: dict[str, int]  # origin (gold, own, frontier, sibling, else given) -> number of comparisons; {} if unused
    several: int  # comparisons with more than one reference
    combine: Combine  # how their scores under each became one
    use: ReferenceUse | None  # with --reference all: how contenders use their references
    file: str | None  # the file that references were added from
    reference_equals_candidate: int  # comparisons whose reference is equal, or nearly, to a candidate; should be 0


class EvaluationReport(GroupReport):
    """The numbers over all pairs, and facts about contenders and data. The weight of a comparison is its number of ordered pairs.

    Version 2 has ``contenders`` and ``differences`` instead of the model's numbers and ``baselines``. ``facts`` (with the former
    ``model`` and ``encoder_hash``), ``fingerprint`` and ``limit`` are new.
    """

    schema: Literal["polar-rm/evaluation/2"]
    by: dict[str, GroupReport]  # a report for each value of the metadata key ``by``, in order of appearance; {} without a key
    facts: dict[str, ContenderFacts]
    data: list[DataFile]  # [] for comparisons that did not come from files
    limit: int | None  # the number of first comparisons that were used; None: all
    reference: ReferenceReport
    fingerprint: str  # of the pairs: reports with equal fingerprints have the same pairs in the same order
    warnings: list[str]  # one line for each limitation of the numbers


def write_report(path: str | Path, report: Any) -> None:
    """Save as JSON, atomically.

    Raises:
        PolarError: the file can't be written.
    """
    write_json(path, report)


def write_plot(path: str | Path, report: EvaluationReport) -> None:
    """Draw the accuracy of every contender in every group with intervals, as PNG or SVG by the file's suffix, atomically.

    Raises:
        PolarError: the suffix is another one, or the file can't be written.
    """
    save_figure(accuracy_figure(accuracy_rows(report), title=f"{report['n_pairs']:,} pairs"), path)


def accuracy_rows(report: EvaluationReport) -> dict[str, dict[str, Measure]]:
    """The rows of an accuracy plot: label with the number of pairs -> contender -> measure."""
    groups: dict[str, GroupReport] = {**report["by"]}
    groups["all" if "all" not in groups else "all pairs"] = report
    return {
        f"{label} ({group['n_pairs']:,})": {
            name: {"accuracy": numbers["accuracy"], "ci95": numbers["ci95"]} for name, numbers in group["contenders"].items()
        }
        for label, group in groups.items()
    }

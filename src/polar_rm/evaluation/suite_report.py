"""The report of a published benchmark: its schema, and its table and sentences for the terminal."""

from __future__ import annotations

from typing import Literal, TypedDict

from polar_rm.evaluation.report import ContenderFacts, Difference, ReferenceReport
from polar_rm.evaluation.suites import SUITES
from polar_rm.evaluation.tables import Summary, sentences
from polar_rm.reporting.measures import Measure
from polar_rm.reporting.tables import Table
from polar_rm.reporting.words import interval

SCHEMA: Literal["polar-rm/suite/1"] = "polar-rm/suite/1"


class FigureReport(TypedDict):
    """One figure of one contender."""

    value: float  # as published: a share in 0..1, or Kendall's tau in -1..1
    ci95: list[float] | None  # by bootstrap over prompts within each part of the benchmark; None without outcomes to resample
    n: int  # number of comparisons, or of candidates


class SuiteMeasure(TypedDict):
    """All figures of one contender, the headline first."""

    figures: dict[str, FigureReport]
    ties: int  # exactly equal scores among the pairs that decide


class SuiteReport(TypedDict):
    """Official figures, and facts about benchmark, contenders and data."""

    schema: Literal["polar-rm/suite/1"]
    suite: str
    title: str
    rule: str  # description of the publisher's rule
    source: str
    licence: str  # of the data
    path: str
    sha256: str  # of the file or folder
    suite_references: str  # whether the benchmark itself has references: gold, given or none
    reference: ReferenceReport
    limit: int | None  # the number of first comparisons that were used; None: all
    n_comparisons: int
    headline: str  # name of the first figure
    contenders: dict[str, SuiteMeasure]
    differences: list[Difference]  # differences of the headline between every two contenders, the earlier one first
    facts: dict[str, ContenderFacts]
    fingerprint: str  # of the pairs, as in an evaluation
    warnings: list[str]


_PROTOCOLS = {
    "given": "the references of the benchmark",
    "empty": "no references",
    "shuffled": "references of other prompts",
    "swapped": "a worse answer in place of the reference",
}


def suite_table(report: SuiteReport) -> Table:
    """A row for each figure and a column for each contender; values are percentages, as publishers print them."""
    names = list(report["contenders"])
    figures = list(next(iter(report["contenders"].values()))["figures"])
    rows = []
    for figure in figures:
        values = [report["contenders"][name]["figures"][figure] for name in names]
        rows.append([figure, f"{values[0]['n']:,}", *map(_percent, values)])
    rows.append(["exact ties", "", *(f"{report['contenders'][name]['ties']:,}" for name in names)])
    limit = f", the first {report['limit']:,} comparisons only" if report["limit"] else ""
    return Table(f"{report['title']}{limit}", ["figure", "n", *names], rows)


def summarise_suite(report: SuiteReport) -> Summary:
    """The table, the comparisons of contenders, and the facts that should be quoted with every number of a benchmark."""
    reference = report["reference"]
    protocol = f"those of {reference['file']}" if reference["file"] else _PROTOCOLS[reference["mode"]]
    readers = [name for name, facts in report["facts"].items() if facts["reads_references"]]
    readers = [] if reference["mode"] == "empty" else readers
    comparisons = [f"by {report['headline']}: {line}" for line in sentences(report["differences"], report["facts"])]
    lines = [
        *comparisons,
        f"rule: {report['rule']}",
        f"references: {protocol}; read by {', '.join(readers) or 'no contender'}",
        f"data: {report['source']}; licence {report['licence']}",
    ]
    return Summary([suite_table(report)], lines, report["warnings"])


def list_suites() -> list[tuple[str, str]]:
    """Name and description of every supported benchmark."""
    return [
        (suite.name, f"{suite.title}; references: {suite.references}; licence: {suite.licence}; {suite.source}")
        for suite in SUITES.values()
    ]


def figure_rows(report: SuiteReport) -> dict[str, dict[str, Measure]]:
    """The rows of a plot: figure -> contender -> measure."""
    measures = report["contenders"]
    figures = list(next(iter(measures.values()))["figures"])
    return {
        figure: {
            name: {"accuracy": measure["figures"][figure]["value"], "ci95": measure["figures"][figure]["ci95"]}
            for name, measure in measures.items()
        }
        for figure in reversed(figures)  # a plot with too many rows shows the last ones
    }


def _percent(figure: FigureReport) -> str:
    bounds = interval(figure["ci95"] and [100 * bound for bound in figure["ci95"]], ".1f")
    return f"{100 * figure['value']:.2f} {bounds}".strip()

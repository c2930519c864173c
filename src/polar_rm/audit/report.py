"""The result of an audit as a contract, and as a table."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from rich.console import Group
from rich.text import Text

from polar_rm.evaluation.report import DataFile
from polar_rm.reporting.tables import Table
from polar_rm.reporting.words import interval

SCHEMA: Literal["polar-rm/audit/1"] = "polar-rm/audit/1"

Verdict = Literal["passed", "failed", "undecided", "noted", "not applicable"]
"""passed: none of the interval lies beyond the threshold. failed: all of it does. undecided: the pairs are too few to tell.
noted: as failed, but a property that a contender of this kind may have. not applicable: the question makes no sense here."""


class Finding(TypedDict):
    """What one probe found."""

    probe: str
    measure: str  # in words
    value: float | None  # None where not applicable
    ci95: list[float] | None  # by bootstrap over prompts
    threshold: float
    side: Literal["at least", "at most"]  # where the value should lie
    n_pairs: int
    n_prompts: int
    verdict: Verdict
    sentence: str
    figures: dict[str, float]  # what the measure is made of


class AuditReport(TypedDict):
    """All findings on one contender."""

    schema: Literal["polar-rm/audit/1"]
    contender: str
    kind: str
    source: str | None
    takes_reference: bool
    facts: dict[str, Any]  # such as encoder_hash
    verdict: Literal["passed", "failed", "undecided"]  # failed: one probe at least. undecided: none, but one is open
    findings: list[Finding]
    thresholds: dict[str, float]
    n_comparisons: int
    n_pairs: int
    n_prompts: int
    references: dict[str, int]  # where they came from -> comparisons; {} where none are taken
    data: list[DataFile]  # [] for comparisons that did not come from files
    limit: int | None  # only so many comparisons were taken, the first ones
    seed: int
    fingerprint: str  # of the pairs
    warnings: list[str]


def findings_table(report: AuditReport) -> Table:
    """A row for each probe."""
    rows = []
    for each in report["findings"]:
        sign = "≥" if each["side"] == "at least" else "≤"
        value = "-" if each["value"] is None else f"{each['value']:.3f}"
        bounds = interval(each["ci95"], missing="-")
        rows.append([each["probe"].replace("_", " "), value, bounds, f"{sign} {each['threshold']:g}", each["verdict"]])
    where = f"{report['n_pairs']:,} pairs of {report['n_prompts']:,} prompts"
    limit = f", the first {report['limit']:,} comparisons only" if report["limit"] else ""
    title = f"{report['contender']}: {report['verdict']} ({where}{limit})"
    return Table(title, ["probe", "value", "95% interval", "threshold", "verdict"], rows)


def sentences(report: AuditReport) -> list[str]:
    """What did not pass, in words."""
    told = [each for verdict in ("failed", "noted", "undecided") for each in report["findings"] if each["verdict"] == verdict]
    return [f"{each['verdict']}: {each['sentence']}" for each in told]


def render(report: AuditReport) -> Group:
    """For the terminal."""
    styles = {"failed": "red", "noted": "", "undecided": "yellow"}
    lines = [Text(line, style=styles[line.partition(":")[0]]) for line in sentences(report)]
    warnings = [Text(f"warning: {line}", style="yellow") for line in report["warnings"]]
    return Group(findings_table(report).rich(), *lines, *warnings)

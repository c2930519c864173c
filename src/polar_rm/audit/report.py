"""The report of an audit: its schema, and its table and sentences for the terminal."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from rich.console import Group
from rich.text import Text

from polar_rm.evaluation.report import DataFile
from polar_rm.reporting.tables import Table
from polar_rm.reporting.words import interval

SCHEMA: Literal["polar-rm/audit/1"] = "polar-rm/audit/1"

Verdict = Literal["passed", "failed", "undecided", "noted", "not applicable"]
"""The verdict of a probe.

passed: no part of the interval is beyond the threshold. failed: the whole interval is beyond it. undecided: the interval contains
the threshold, because there are too few pairs. noted: as failed, but a contender of this kind may have this property. not
applicable: the measure is undefined for this contender or these pairs.
"""


class Finding(TypedDict):
    """The result of one probe."""

    probe: str
    measure: str  # description of the measure
    value: float | None  # None where not applicable
    ci95: list[float] | None  # by bootstrap over prompts
    threshold: float
    side: Literal["at least", "at most"]  # the side of the threshold on which the value should be
    n_pairs: int
    n_prompts: int
    verdict: Verdict
    sentence: str
    figures: dict[str, float]  # the numbers that the value is computed from


class AuditReport(TypedDict):
    """All findings on one contender."""

    schema: Literal["polar-rm/audit/1"]
    contender: str
    kind: str
    source: str | None
    takes_reference: bool
    facts: dict[str, Any]  # such as encoder_hash
    verdict: Literal[
        "passed", "failed", "undecided"
    ]  # failed: at least one probe failed. undecided: none failed, and one is undecided or none passed
    findings: list[Finding]
    thresholds: dict[str, float]
    n_comparisons: int
    n_pairs: int
    n_prompts: int
    references: dict[str, int]  # origin of references -> number of comparisons; {} if the contender takes no references
    data: list[DataFile]  # [] for comparisons that did not come from files
    limit: int | None  # the number of first comparisons that were used; None: all
    seed: int
    fingerprint: str  # of the pairs
    warnings: list[str]


def findings_table(report: AuditReport) -> Table:
    """A row for each probe."""
    rows = []
    for finding in report["findings"]:
        threshold = f"{'≥' if finding['side'] == 'at least' else '≤'} {finding['threshold']:g}"
        value = "-" if finding["value"] is None else f"{finding['value']:.3f}"
        bounds = interval(finding["ci95"], missing="-")
        rows.append([finding["probe"].replace("_", " "), value, bounds, threshold, finding["verdict"]])
    pairs = f"{report['n_pairs']:,} pairs of {report['n_prompts']:,} prompts"
    limit = f", the first {report['limit']:,} comparisons only" if report["limit"] else ""
    title = f"{report['contender']}: {report['verdict']} ({pairs}{limit})"
    return Table(title, ["probe", "value", "95% interval", "threshold", "verdict"], rows)


def sentences(report: AuditReport) -> list[str]:
    """A sentence for each probe that did not pass: failed ones first, then noted, undecided and not applicable ones."""
    verdicts = ("failed", "noted", "undecided", "not applicable")
    findings = [finding for verdict in verdicts for finding in report["findings"] if finding["verdict"] == verdict]
    return [f"{finding['verdict']}: {finding['sentence']}" for finding in findings]


def render(report: AuditReport) -> Group:
    """The table, the sentences and the warnings for the terminal."""
    styles = {"failed": "red", "noted": "", "undecided": "yellow", "not applicable": "dim"}
    lines = [Text(line, style=styles[line.partition(":")[0]]) for line in sentences(report)]
    warnings = [Text(f"warning: {line}", style="yellow") for line in report["warnings"]]
    return Group(findings_table(report).rich(), *lines, *warnings)

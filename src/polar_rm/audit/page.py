"""An audit as a plot and as a self-contained page with the findings and with examples of wrong winners."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polar_rm.audit.report import AuditReport, findings_table
from polar_rm.audit.run import AuditResult
from polar_rm.audit.streams import ALTERED
from polar_rm.common.files import write_file
from polar_rm.records import Text, flatten, one_reference
from polar_rm.reporting.html import render_page
from polar_rm.reporting.plots import figure_svg, interval_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES = 3  # maximum number of examples of each probe
_MAX_CHARACTERS = 4000  # maximum length of a text on the page

_COLOURS = {"passed": "good", "failed": "bad", "undecided": "open", "noted": "other"}

# (the altered answer that should win, the one that should lose) of each probe.
_RIVALS = {
    "other_answer": ("better", "other_answer"),
    "halved": ("better", "halved"),
    "looped": ("better", "looped"),
    "empty": ("better", "empty"),
    "copied": ("copied", "noise"),
    "scrambled": ("better", "scrambled"),
    "pasted": ("better", "pasted"),
    "injected": ("better", "injected"),
}


def write_plot(path: str | Path, report: AuditReport) -> None:
    """Draw all findings with intervals and thresholds, as PNG or SVG by the file's suffix, atomically.

    Raises:
        PolarError: the suffix is another one, or the file can't be written.
    """
    save_figure(_figure(report), path)


def _figure(report: AuditReport) -> Figure:
    rows: dict[str, tuple[float, list[float], float, str]] = {}
    for finding in report["findings"]:
        if finding["value"] is not None and finding["ci95"] is not None:
            sign = "≥" if finding["side"] == "at least" else "≤"
            label = f"{finding['probe'].replace('_', ' ')} {sign} {finding['threshold']:g}"
            rows[label] = finding["value"], finding["ci95"], finding["threshold"], finding["verdict"]
    title = f"{report['contender']}: {report['verdict']}"
    return interval_figure(rows, _COLOURS, title=title, x="measure of the probe, 95% interval")


def write_page(path: str | Path, result: AuditResult) -> None:
    """Write the page.

    Raises:
        PolarError: the file can't be written.
    """
    report = result.report
    page: dict[str, Any] = {
        **report,
        "table": findings_table(report),
        "examples": examples(result),
        "name": report["contender"],
    }
    write_file(path, render_page("polar_rm.audit", "page.html.j2", page, {"findings": figure_svg(_figure(report))}))


def examples(result: AuditResult) -> dict[str, list[dict[str, Any]]]:
    """The comparisons in which the wrong answer won with the largest margin: prompt, reference, both texts and scores, by probe.

    Only probes that did not pass have examples. The texts are read again.
    """
    rows_by_probe: dict[str, list[int]] = {}
    for finding in result.report["findings"]:
        if finding["probe"] in _RIVALS and finding["verdict"] in ("failed", "undecided"):
            rows_by_probe[finding["probe"]] = _largest_errors(result, *_RIVALS[finding["probe"]])
    needed = {row for rows in rows_by_probe.values() for row in rows}
    texts = {row: comparison for row, comparison in enumerate(result.streams.altered() if needed else ()) if row in needed}
    examples_by_probe: dict[str, list[dict[str, Any]]] = {}
    for probe, rows in rows_by_probe.items():
        columns = [ALTERED.index(name) for name in _RIVALS[probe]]
        examples_by_probe[probe] = [
            {
                "number": row + 1,
                "prompt": _shortened(texts[row].prompt),
                "reference": _shortened(one_reference(texts[row])),
                "sides": [
                    {
                        "name": ALTERED[column].replace("_", " "),
                        "score": float(result.answers.altered[row, column]),
                        "text": _shortened(texts[row].candidates[column]),
                    }
                    for column in columns
                ],
            }
            for row in rows
        ]
    return examples_by_probe


def _largest_errors(result: AuditResult, first: str, second: str) -> list[int]:
    """The comparisons in which the second answer wins with the largest margin, at most three."""
    margins, rows = result.answers.margins(first, second)
    order = np.argsort(margins, kind="stable")[:_EXAMPLES]
    return [int(rows[index]) for index in order if margins[index] <= 0]


def _shortened(text: Text) -> str:
    flat = flatten(text)
    return (
        flat if len(flat) <= _MAX_CHARACTERS else f"{flat[:_MAX_CHARACTERS]}\n[… {len(flat) - _MAX_CHARACTERS:,} more characters]"
    )

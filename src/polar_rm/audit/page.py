"""An audit as a picture, and on one page that needs nothing else: what was found, and the answers that won and should not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polar_rm.audit.report import AuditReport, findings_table
from polar_rm.audit.run import AuditResult
from polar_rm.audit.streams import ALTERED
from polar_rm.common.files import write_file
from polar_rm.records import Text, flatten
from polar_rm.reporting.html import render_page
from polar_rm.reporting.plots import figure_svg, interval_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXAMPLES = 3  # of each probe
_MAX_CHARACTERS = 4000  # of a text on the page

_COLOURS = {"passed": "good", "failed": "bad", "undecided": "open", "noted": "other"}

# Which altered answer should beat which, by probe.
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
        PolarError: another suffix, or the file can't be written.
    """
    save_figure(_figure(report), path)


def _figure(report: AuditReport) -> Figure:
    rows: dict[str, tuple[float, list[float], float, str]] = {}
    for each in report["findings"]:
        if each["value"] is not None and each["ci95"] is not None:
            label = f"{each['probe'].replace('_', ' ')} {'≥' if each['side'] == 'at least' else '≤'} {each['threshold']:g}"
            rows[label] = each["value"], each["ci95"], each["threshold"], each["verdict"]
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
    """By probe, the comparisons in which the wrong answer won by most: prompt, reference, both texts and scores.

    Only of probes that did not pass; the texts are read anew.
    """
    wanted: dict[str, list[int]] = {}
    for each in result.report["findings"]:
        if each["probe"] in _RIVALS and each["verdict"] in ("failed", "undecided"):
            wanted[each["probe"]] = _worst(result, *_RIVALS[each["probe"]])
    rows = {row for found in wanted.values() for row in found}
    texts = {row: comparison for row, comparison in enumerate(result.streams.altered() if rows else ()) if row in rows}
    shown: dict[str, list[dict[str, Any]]] = {}
    for probe, found in wanted.items():
        columns = [ALTERED.index(name) for name in _RIVALS[probe]]
        shown[probe] = [
            {
                "number": row + 1,
                "prompt": _cut(texts[row].prompt),
                "reference": _cut(texts[row].reference or ""),
                "sides": [
                    {
                        "name": ALTERED[column].replace("_", " "),
                        "score": float(result.answers.altered[row, column]),
                        "text": _cut(texts[row].candidates[column]),
                    }
                    for column in columns
                ],
            }
            for row in found
        ]
    return shown


def _worst(result: AuditResult, first: str, second: str) -> list[int]:
    """The comparisons in which the second answer is ahead by most, at most three."""
    margins, rows = result.answers.margins(first, second)
    order = np.argsort(margins, kind="stable")[:_EXAMPLES]
    return [int(rows[index]) for index in order if margins[index] <= 0]


def _cut(text: Text) -> str:
    flat = flatten(text)
    return (
        flat if len(flat) <= _MAX_CHARACTERS else f"{flat[:_MAX_CHARACTERS]}\n[… {len(flat) - _MAX_CHARACTERS:,} more characters]"
    )

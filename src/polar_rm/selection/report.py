"""The report of a selection: what every rule dropped, scores before and after, and examples at the border."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polar_rm.common.files import write_file
from polar_rm.records import Text, flatten
from polar_rm.selection.config import SelectConfig
from polar_rm.selection.rules import RULES, Selection
from polar_rm.selection.table import Floats, Ints, Table
from polar_rm.selection.writing import Answer

SCHEMA = "polar-rm/selection-report/1"

_MAX_GROUPS = 100  # of the report; the largest ones
_EXAMPLES = 3  # pairs of examples at the border of a rule
_DUPLICATES = 5  # pairs of near duplicates that are shown
_MAX_CHARACTERS = 1500  # of a text on the page
_QUANTILES = (5, 25, 50, 75, 95)


class Examples:
    """Pairs of answers to show: just in and just out for every rule that compares scores, and near duplicates.

    They are chosen by numbers; :meth:`watch` then gets the texts.
    """

    def __init__(self, table: Table, selection: Selection, config: SelectConfig) -> None:
        self._table = table
        self.border = {rule: _border(table, selection, config, rule) for rule in selection.applied if _ranks(rule, selection)}
        self.duplicates = _least_similar(selection)
        self._similarities = selection.similarities
        self._texts: dict[int, dict[str, str]] = {}
        pairs = [pair for each in (*self.border.values(), self.duplicates) for pair in each]
        self.indices: Ints = np.array(sorted({index for pair in pairs for index in pair}), np.int64)
        self._wanted = set(self.indices.tolist())

    def watch(self, answer: Answer) -> None:
        """Keep the texts of an answer if it is an example."""
        if answer.index in self._wanted:
            self._texts[answer.index] = {"prompt": _shortened(answer.row.prompt), "text": _shortened(answer.output)}

    def to_json(self) -> dict[str, Any]:
        """The examples as JSON values."""
        border = {
            rule: [{"just_in": self._example(inside), "just_out": self._example(outside)} for inside, outside in pairs]
            for rule, pairs in self.border.items()
        }
        duplicates = [
            {
                "similarity": float(self._similarities[dropped]),
                "kept": self._example(kept),
                "dropped": self._example(dropped),
            }
            for kept, dropped in self.duplicates
        ]
        return {"border": border, "near_duplicates": duplicates}

    def _example(self, index: int) -> dict[str, Any]:
        group = self._table.group_names[int(self._table.groups[index])]
        named = {"group": group} if group else {}
        return {"score": float(self._table.scores[index]), **named, **self._texts.get(index, {})}


def _ranks(rule: str, selection: Selection) -> bool:
    return rule == "threshold" or rule in selection.cells


def _border(table: Table, selection: Selection, config: SelectConfig, rule: str) -> list[tuple[int, int]]:
    """Pairs (just in, just out) of a rule: the last kept and the first dropped of a cell, the closest pairs first."""
    inside = np.flatnonzero(selection.passed(rule))
    outside = np.flatnonzero(selection.dropped_by == RULES.index(rule))
    values, cells = selection.preference, selection.cells.get(rule, np.zeros(len(table), np.int64))
    if rule == "threshold" and config.uses_probability:
        values = np.argsort(np.argsort(-table.probabilities, kind="stable"))
    inside = inside[np.lexsort((-values[inside], cells[inside]))]
    outside = outside[np.lexsort((values[outside], cells[outside]))]
    if not cells.any():  # a single cell
        return list(zip(inside[:_EXAMPLES].tolist(), outside[:_EXAMPLES].tolist(), strict=False))
    last_in = inside[np.unique(cells[inside], return_index=True)[1]]
    first_out = outside[np.unique(cells[outside], return_index=True)[1]]
    _, left, right = np.intersect1d(cells[last_in], cells[first_out], return_indices=True)
    pairs = list(zip(last_in[left].tolist(), first_out[right].tolist(), strict=True))
    gaps = table.scores[last_in[left]] - table.scores[first_out[right]]
    return [pairs[index] for index in np.argsort(gaps, kind="stable")[:_EXAMPLES]]


def _least_similar(selection: Selection) -> list[tuple[int, int]]:
    """Pairs (kept, dropped) of near duplicates, those nearest to the threshold."""
    dropped = np.flatnonzero(selection.copy_of >= 0)
    dropped = dropped[np.argsort(selection.similarities[dropped], kind="stable")[:_DUPLICATES]]
    return [(int(selection.copy_of[index]), index) for index in dropped.tolist()]


def counts_of(table: Table, selection: Selection) -> list[dict[str, Any]]:
    """For each rule: answers before, dropped, after, and the number of cells in which equal scores were on both sides."""
    rows, before = [], len(table)
    for rule in selection.applied:
        dropped = int((selection.dropped_by == RULES.index(rule)).sum())
        rows.append({"rule": rule, "before": before, "dropped": dropped, "after": before - dropped})
        if rule in selection.cells:
            rows[-1]["ties"] = _ties(table, selection, rule)
        before -= dropped
    return rows


def _ties(table: Table, selection: Selection, rule: str) -> int:
    """Cells in which the worst kept and the best dropped score are equal, so that the tie rule decided."""
    cells = selection.cells[rule]
    size = int(cells.max(initial=-1)) + 1
    lowest, highest = np.full(size, np.inf), np.full(size, -np.inf)
    inside, outside = selection.passed(rule), selection.dropped_by == RULES.index(rule)
    np.minimum.at(lowest, cells[inside], table.scores[inside])
    np.maximum.at(highest, cells[outside], table.scores[outside])
    return int((lowest == highest).sum())


def make_report(
    config: SelectConfig, table: Table, selection: Selection, facts: Sequence[dict[str, Any]], examples: Examples
) -> dict[str, Any]:
    """All numbers of the report as JSON values. facts: of all input files."""
    selected, rejected = selection.selected, selection.rejected
    scores = {"all": table.scores, "selected": table.scores[selected]}
    if config.kind == "pairs":
        scores["rejected"] = table.scores[rejected]
    sizes = np.bincount(table.prompts)
    return {
        "schema": SCHEMA,
        "settings": config.model_dump(mode="json"),
        "counts": {
            "rows": sum(each["rows"] for each in facts),
            "refused": sum(each["refused"] for each in facts),
            "candidates": len(table),
            "prompts": table.n_prompts,
            "prompts_selected": len(np.unique(table.prompts[selected])),
            "selected": len(selected),
        },
        "candidates_per_prompt": _quantiles(sizes.astype(np.float64)),
        "rules": counts_of(table, selection),
        "groups": _groups(table, selection) if config.group_by else {},
        "n_groups": len(table.group_names) if config.group_by else 0,
        "scores": {name: _distribution(values) for name, values in scores.items()},
        "lengths": {"all": _quantiles(table.lengths), "selected": _quantiles(table.lengths[selected])},
        "examples": examples.to_json(),
        "warnings": warnings_of(config, table, selection, facts),
    }


def warnings_of(config: SelectConfig, table: Table, selection: Selection, facts: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each reason to look at the selection again."""
    lines = []
    across = {
        "threshold": config.threshold is not None and config.threshold.of == "score",
        "top_share": config.top_share is not None and config.top_share.within != "prompt",
        "quotas": config.quotas is not None,
    }
    named = [name for name, used in across.items() if used]
    if named and {name for each in facts for name in each["score_names"]} == {"reward"}:
        lines.append(
            f"{', '.join(named)} compared raw rewards of different prompts, whose differences mean nothing; score with the "
            "transform anchored or probability"
        )
    if config.best_of and (alone := int((np.bincount(table.prompts) == 1).sum())):
        lines.append(f"{alone:,} of {table.n_prompts:,} prompts have one answer, so nothing was picked there")
    if selection.cut:
        lines.append(
            f"{selection.cut:,} answers are similar to so many others that they were compared with 512 of these; near duplicates "
            "may be left"
        )
    if refused := sum(each["refused"] for each in facts):
        lines.append(f"{refused:,} bad rows are left out, see {config.output / 'refused.jsonl'} of the run")
    return lines + list(dict.fromkeys(line for each in facts for line in each["warnings"]))


def _groups(table: Table, selection: Selection) -> dict[str, dict[str, Any]]:
    """The counts of the largest groups: candidates, selected, and how many each rule dropped."""
    n_groups = len(table.group_names)
    sizes = np.bincount(table.groups, minlength=n_groups)
    chosen = np.bincount(table.groups[selection.selected], minlength=n_groups)
    dropped = {
        rule: np.bincount(table.groups[selection.dropped_by == RULES.index(rule)], minlength=n_groups)
        for rule in selection.applied
    }
    order = sorted(range(n_groups), key=lambda number: (-sizes[number], table.group_names[number]))
    return {
        table.group_names[number]: {
            "candidates": int(sizes[number]),
            "selected": int(chosen[number]),
            "dropped": {rule: int(counts[number]) for rule, counts in dropped.items()},
        }
        for number in order[:_MAX_GROUPS]
    }


def _distribution(values: Floats) -> dict[str, Any]:
    if not len(values):
        return {"n": 0, "mean": None, "std": None, "quantiles": None}
    return {"n": len(values), "mean": float(values.mean()), "std": float(values.std()), "quantiles": _quantiles(values)}


def _quantiles(values: Floats | Ints) -> dict[str, float] | None:
    """Minimum, the percentiles 5, 25, 50, 75 and 95, and maximum; None without values."""
    if not len(values):
        return None
    names = ["min", *map(str, _QUANTILES), "max"]
    return dict(zip(names, np.percentile(values, [0, *_QUANTILES, 100]).tolist(), strict=True))


def _shortened(text: Text) -> str:
    flat = flatten(text)
    more = len(flat) - _MAX_CHARACTERS
    return flat if more <= 0 else f"{flat[:_MAX_CHARACTERS]}\n[… {more:,} more characters]"


def write_html(path: Path, report: dict[str, Any], table: Table, selection: Selection) -> None:
    """Write the report as a self-contained page.

    Raises:
        PolarError: the file can't be written.
    """
    from polar_rm.reporting.html import render_page
    from polar_rm.reporting.plots import plot_score_distributions

    scores: dict[str, Any] = {"all": table.scores, "selected": table.scores[selection.selected]}
    if len(selection.rejected):
        scores["rejected"] = table.scores[selection.rejected]
    plots = {"scores": plot_score_distributions(scores)}
    write_file(path, render_page("polar_rm.selection", "report.html.j2", report, plots))


def summary(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The counts as (name, value), for the terminal."""
    counts = report["counts"]
    lines = [("answers", f"{counts['candidates']:,} to {counts['prompts']:,} prompts")]
    lines += [(rule["rule"].replace("_", " "), rule_line(rule)) for rule in report["rules"]]
    what = "pairs" if report["settings"]["kind"] == "pairs" else "answers"
    return [*lines, ("selected", f"{counts['selected']:,} {what} to {counts['prompts_selected']:,} prompts")]


def rule_line(rule: dict[str, Any]) -> str:
    """The counts of a rule in a line."""
    ties = f" ({rule['ties']:,} decided by the tie rule)" if rule.get("ties") else ""
    return f"{rule['dropped']:,} dropped, {rule['after']:,} left{ties}"

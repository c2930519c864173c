"""The mistakes of contenders on one page that needs nothing else: confident ones first, both answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polar_rm.common.files import write_file
from polar_rm.evaluation.groups import group_of
from polar_rm.evaluation.rows import PairRow, Scored, pair_rows
from polar_rm.evaluation.tables import Summary
from polar_rm.records import Text
from polar_rm.reporting.html import render_page

MAX_ROWS = 500
_MAX_CHARACTERS = 8000  # of a text on the page


def write_page(path: str | Path, result: Scored, summary: Summary, *, by: str | None = None, max_rows: int = MAX_ROWS) -> int:
    """Write the page and return how many pairs it shows: at most ``max_rows``, whatever the number of pairs.

    summary: what stands above the pairs. by: metadata key whose value is shown and can be filtered by.

    Raises:
        PolarError: the file can't be written.
    """
    chosen = choose(result, max_rows)
    order = {index: position for position, index in enumerate(chosen)}
    rows = sorted((_shown(row, by) for row in pair_rows(result, set(chosen))), key=lambda row: order[row["index"]])
    page: dict[str, Any] = {
        "summary": summary,
        "rows": rows,
        "names": list(result.scores.scores),
        "groups": sorted({row["group"] for row in rows}) if by else [],
        "by": by,
        "n_pairs": len(result.scores.pairs),
    }
    write_file(path, render_page("polar_rm.evaluation", "page.html.j2", page, {}))
    return len(rows)


def choose(result: Scored, count: int) -> list[int]:
    """Which pairs to show: the models' mistakes in turn, each model's largest margins first, then what is right by least.

    Indices of pairs, in this order; memory grows with the number of pairs alone.
    """
    models = result.scores.models or list(result.scores.scores)
    orders = [_ranking(result.scores.margins(name), count) for name in models]
    mistakes = [order[margins <= 0] for order, margins in orders]
    others = [order[margins > 0] for order, margins in orders]
    chosen: dict[int, None] = {}
    for part in (mistakes, others):
        for turn in range(max(map(len, part), default=0)):
            for each in part:
                if turn < len(each) and len(chosen) < count:
                    chosen.setdefault(int(each[turn]))
    return list(chosen)


def _ranking(margins: Any, count: int) -> tuple[Any, Any]:
    """The ``count`` smallest margins in order, and their indices."""
    order = np.argpartition(margins, count - 1)[:count] if count < len(margins) else np.arange(len(margins))
    order = order[np.argsort(margins[order], kind="stable")]
    return order, margins[order]


def _shown(row: PairRow, by: str | None) -> dict[str, Any]:
    comparison = row.comparison
    return {
        "index": row.index,
        "number": row.number,
        "group": group_of(comparison, by),
        "prompt": _cut(comparison.prompt),
        "reference": _cut(comparison.reference or ""),
        "better": _cut(comparison.candidates[row.better]),
        "worse": _cut(comparison.candidates[row.worse]),
        "opinions": row.opinions,
        "metadata": {str(key): _short(value) for key, value in comparison.metadata.items()},
    }


def _cut(text: Text) -> Sequence[dict[str, str]]:
    """Parts {role, content} of a text, cut in all to what a page can hold; the last part says how much was left out."""
    parts = [("", text)] if isinstance(text, str) else [(message["role"], message["content"]) for message in text]
    shown, left = [], _MAX_CHARACTERS
    for role, content in parts:
        shown.append({"role": role, "content": content[:left]})
        left -= len(content[:left])
    lost = sum(len(content) for _, content in parts) - (_MAX_CHARACTERS - left)
    if lost:
        shown.append({"role": "", "content": f"[… {lost:,} more characters; --pairs FILE has them]"})
    return [part for part in shown if part["content"] or part["role"]]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"

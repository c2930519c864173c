"""A self-contained page with the mistakes of contenders: confident mistakes first, both answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polar_rm.common.files import write_file
from polar_rm.evaluation.groups import group_of
from polar_rm.evaluation.pairs import PairScores
from polar_rm.evaluation.rows import PairRow, Scored, pair_rows
from polar_rm.evaluation.tables import Summary
from polar_rm.records import Text, references_of
from polar_rm.reporting.html import render_page

MAX_ROWS = 500
_MAX_CHARACTERS = 8000  # maximum length of a text on the page


def write_page(path: str | Path, result: Scored, summary: Summary, *, by: str | None = None, max_rows: int = MAX_ROWS) -> int:
    """Write the page and return the number of pairs that it shows, at most ``max_rows``.

    summary: shown above the pairs. by: metadata key whose values are shown and can be selected.

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
        "models": models_of(result.scores),
        "groups": sorted({row["group"] for row in rows}) if by else [],
        "by": by,
        "n_pairs": len(result.scores.pairs),
    }
    write_file(path, render_page("polar_rm.evaluation", "page.html.j2", page, {}))
    return len(rows)


def choose(result: Scored, count: int) -> list[int]:
    """The indices of the pairs to show: the mistakes of the models in turn, then the correct pairs with the smallest margins.

    The mistakes of a model are ordered by the size of their margins, largest first. Memory grows only with the number of pairs.
    """
    models = models_of(result.scores)
    orders = [_ranking(result.scores.margins(name), count) for name in models]
    mistakes = [order[margins <= 0] for order, margins in orders]
    others = [order[margins > 0] for order, margins in orders]
    chosen: dict[int, None] = {}
    for part in (mistakes, others):
        for turn in range(max(map(len, part), default=0)):
            for indices in part:
                if turn < len(indices) and len(chosen) < count:
                    chosen.setdefault(int(indices[turn]))
    return list(chosen)


def models_of(scores: PairScores) -> list[str]:
    """The contenders that are no baselines; all of them where there are only baselines."""
    return list(scores.models or scores.scores)


def _ranking(margins: Any, count: int) -> tuple[Any, Any]:
    """The indices of the ``count`` smallest margins, in order, and these margins."""
    order = np.argpartition(margins, count - 1)[:count] if count < len(margins) else np.arange(len(margins))
    order = order[np.argsort(margins[order], kind="stable")]
    return order, margins[order]


def _shown(row: PairRow, by: str | None) -> dict[str, Any]:
    comparison = row.comparison
    return {
        "index": row.index,
        "number": row.number,
        "group": group_of(comparison, by),
        "prompt": _shortened(comparison.prompt),
        "references": [_shortened(reference) for reference in references_of(comparison) if reference],
        "better": _shortened(comparison.candidates[row.better]),
        "worse": _shortened(comparison.candidates[row.worse]),
        "opinions": row.opinions,
        "metadata": {str(key): _short(value) for key, value in comparison.metadata.items()},
    }


def _shortened(text: Text) -> Sequence[dict[str, str]]:
    """The parts {role, content} of a text, together of at most ``_MAX_CHARACTERS``. The last part has the number of characters
    that were left out."""
    parts = [("", text)] if isinstance(text, str) else [(message["role"], message["content"]) for message in text]
    shown, remaining = [], _MAX_CHARACTERS
    for role, content in parts:
        shown.append({"role": role, "content": content[:remaining]})
        remaining -= len(content[:remaining])
    n_left_out = sum(len(content) for _, content in parts) - (_MAX_CHARACTERS - remaining)
    if n_left_out:
        shown.append({"role": "", "content": f"[… {n_left_out:,} more characters; --pairs FILE has them]"})
    return [part for part in shown if part["content"] or part["role"]]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"

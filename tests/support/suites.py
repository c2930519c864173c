"""Synthetic files in the schemas of published benchmarks, and their scores."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.evaluation.suites import Judged, SuiteResult, find_suite
from polar_rm.records import Comparison


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as publishers do: Parquet, a JSON array, or JSON lines, plain or compressed, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def grid(text: str, steps: int = 4) -> float:
    """A pseudo-random score of a text, with few distinct values, so that ties occur."""
    return hashlib.sha256(text.encode()).digest()[0] % steps / 2


def judge(comparisons: Iterable[Comparison], score: Callable[[str], float] = grid) -> list[Judged]:
    """Score each candidate by its text alone."""
    return [Judged(each, tuple(float(score(text)) for text in each.candidates)) for each in comparisons]


def measured(name: str, path: Path, score: Callable[[str], float] = grid) -> tuple[dict[str, float], SuiteResult]:
    """Return the figures' values by name, and the result."""
    suite = find_suite(name)
    result = suite.measure(judge(suite.read(path), score))
    values = {figure.name: figure.value for figure in result.figures}
    assert len(values) == len(result.figures)
    return values, result

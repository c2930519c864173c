"""A row for each pair, with its texts and the scores of all contenders, for error analysis."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

from polar_rm.common.files import atomic_file, check_target
from polar_rm.common.json import dump_json
from polar_rm.evaluation.pairs import PairScores
from polar_rm.records import Comparison, Text, to_cell

PAIR_SUFFIXES = (".jsonl", ".parquet", ".csv")

_ROW_GROUP = 1024  # the number of rows of a Parquet file that are in memory together


@dataclass(frozen=True, slots=True)
class Opinion:
    """The scores of one contender on a pair.

    right: 1 if the better candidate scores higher, 0.5 for a tie, else 0. notes: notes on both candidates, such as ``worse:
    truncated``.
    """

    better_score: float
    worse_score: float
    margin: float
    right: float
    notes: list[str]


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair with its texts.

    index: index of the pair, from 0. number: number of its comparison, from 1. better, worse: indices of its candidates, from 0.
    """

    index: int
    number: int
    comparison: Comparison
    better: int
    worse: int
    opinions: dict[str, Opinion]


class Scored(Protocol):
    """A result with scores and the texts that were scored."""

    @property
    def scores(self) -> PairScores:
        """The scores of all contenders."""
        ...

    @property
    def read(self) -> Callable[[], Iterable[Comparison]]:
        """A function that returns the comparisons as the contenders got them."""
        ...


def pair_rows(result: Scored, indices: set[int] | None = None) -> Iterator[PairRow]:
    """The pairs in the order of the data, which are read again. indices: the pairs to yield; None: all pairs."""
    index = 0
    for number, comparison in enumerate(result.read(), 1):
        for better, worse in comparison.pairs():
            if indices is None or index in indices:
                opinions = {name: opinion(result.scores, name, index) for name in result.scores.scores}
                yield PairRow(index, number, comparison, better, worse, opinions)
            index += 1


def opinion(scores: PairScores, name: str, index: int) -> Opinion:
    """The scores of one contender on one pair."""
    contender = scores.scores[name]
    candidates = {"better": int(scores.pairs.better[index]), "worse": int(scores.pairs.worse[index])}
    better, worse = (float(contender.values[candidate]) for candidate in candidates.values())
    notes = [f"{side}: {note}" for side, candidate in candidates.items() for note in contender.notes_of(candidate)]
    return Opinion(better, worse, better - worse, 1.0 if better > worse else 0.5 if better == worse else 0.0, notes)


def write_pairs(path: str | Path, result: Scored) -> int:
    """Write all pairs as JSONL, Parquet or CSV by the suffix, in constant memory; returns their number.

    Columns: comparison (from 1), prompt, reference, better, worse; NAME.better_score, NAME.worse_score, NAME.margin, NAME.right
    and NAME.notes of every contender; metadata. In tables messages and metadata are JSON text, and notes are joined by "; ".

    Raises:
        PolarError: the suffix is another one, or the file can't be written.
    """
    check_target(path, PAIR_SUFFIXES)
    suffix, names = Path(path).suffix.lower(), list(result.scores.scores)
    rows = (_row(row, is_table=suffix != ".jsonl") for row in pair_rows(result))
    with atomic_file(path) as file:
        match suffix:
            case ".parquet":
                return _write_parquet(file, rows, names)
            case ".csv":
                return _write_csv(file, rows)
        return sum(1 for row in rows if file.write(dump_json(row).encode() + b"\n"))


def _row(row: PairRow, is_table: bool) -> dict[str, Any]:
    comparison = row.comparison

    def text(value: Text | None) -> Any:
        return to_cell(value) if is_table else value

    columns: dict[str, Any] = {
        "comparison": row.number,
        "prompt": text(comparison.prompt),
        "reference": _reference(comparison, is_table),
        "better": text(comparison.candidates[row.better]),
        "worse": text(comparison.candidates[row.worse]),
    }
    for name, scores in row.opinions.items():
        columns |= {f"{name}.{field}": getattr(scores, field) for field in ("better_score", "worse_score", "margin", "right")}
        columns[f"{name}.notes"] = "; ".join(scores.notes) if is_table else scores.notes
    columns["metadata"] = dump_json(comparison.metadata) if is_table else comparison.metadata
    return columns


def _reference(comparison: Comparison, is_table: bool) -> Any:
    """The reference as it is in the data; several as a list, in tables as JSON text."""
    reference = comparison.reference
    if isinstance(reference, tuple):
        return dump_json(reference) if is_table else list(reference)
    return to_cell(reference) if is_table else reference


def _write_csv(file: IO[bytes], rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    wrapper = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="", write_through=True)
    writer: Any = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(wrapper, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
        count += 1
    wrapper.detach()
    return count


def _write_parquet(file: IO[bytes], rows: Iterator[dict[str, Any]], names: Sequence[str]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = {"comparison": pa.int64(), **dict.fromkeys(("prompt", "reference", "better", "worse"), pa.string())}
    for name in names:
        fields |= {f"{name}.{field}": pa.float64() for field in ("better_score", "worse_score", "margin", "right")}
        fields[f"{name}.notes"] = pa.string()
    schema = pa.schema({**fields, "metadata": pa.string()})
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count

"""Records out of files and ``datasets`` objects, one at a time: memory does not grow with the input."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.common.json import dump_json
from polar_rm.errors import BadRow, PolarError
from polar_rm.records.fields import Refused
from polar_rm.records.rows import (
    to_comparison,
    to_item,
    to_prompt,
    to_prompt_text,
    to_referenced_prompt,
    to_string,
    to_trajectory,
)
from polar_rm.records.types import Comparison, ScoreItem, Text, Trajectory, Wrapper

T = TypeVar("T")

Source = str | Path | Iterable[str | Path] | Iterable[Mapping[str, Any]]
"""A file, a folder, a glob pattern, several of them, a ``datasets`` object or any iterable of rows."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

_BATCH_ROWS = 256  # rows of a Parquet file in memory at once


@dataclass(slots=True)
class OnBadRow:
    """What to do with a row that is no record.

    mode: ``error`` raises :class:`BadRow`; ``skip`` writes {path, row, field, expected, content} to ``side_file`` and goes on.
    count: rows refused so far. The side file is begun anew by the first of them.
    """

    mode: Literal["error", "skip"] = "error"
    side_file: str | Path | None = None
    count: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("error", "skip"):
            raise PolarError(f"unknown treatment of bad rows {self.mode!r}; known: error, skip")
        if self.mode == "skip" and self.side_file is None:
            raise PolarError("bad rows can only be skipped into a side file: nothing may vanish")

    def refuse(self, error: BadRow, content: Any) -> None:
        """Raises ``error``, or notes it with the row's content."""
        if self.mode == "error" or self.side_file is None:
            raise error
        row = {"path": error.path, "row": error.row, "field": error.field, "expected": error.expected}
        with open(self.side_file, "w" if self.count == 0 else "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(dump_json(row | {"content": content}) + "\n")
        self.count += 1


def read_comparisons(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[Comparison]:
    """Comparisons, from rows as :func:`to_comparison` takes them.

    Raises:
        BadRow: names file, row, field and what was expected (unless it is skipped). PolarError: the file can't be read, holds
            no rows, or is of an unknown kind.
    """
    return (record for _, record in _read(source, to_comparison, on_bad_row))


def read_numbered_comparisons(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[tuple[int, Comparison]]:
    """Comparisons with their row numbers, which have gaps where bad rows were skipped."""
    return _read(source, to_comparison, on_bad_row)


def read_items(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[ScoreItem]:
    """Items to score; errors as in :func:`read_comparisons`."""
    return (record for _, record in _read(source, to_item, on_bad_row))


def read_numbered_items(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[tuple[int, ScoreItem]]:
    """Items with their row numbers, which have gaps where bad rows were skipped."""
    return _read(source, to_item, on_bad_row)


def read_trajectories(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[Trajectory]:
    """Trajectories; errors as in :func:`read_comparisons`."""
    return (record for _, record in _read(source, to_trajectory, on_bad_row))


def read_numbered_trajectories(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[tuple[int, Trajectory]]:
    """Trajectories with their row numbers, which have gaps where bad rows were skipped."""
    return _read(source, to_trajectory, on_bad_row)


def read_prompt_texts(source: Source) -> Iterator[Text]:
    """The prompts of any rows that have one, such as comparisons or items."""
    return (prompt for _, prompt in _read(source, to_prompt_text, None))


def read_prompts(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[tuple[str, Text]]:
    """Prompt ids and prompts, from rows {prompt_id, prompt}; an id that comes twice is refused, further columns are left out."""
    seen: set[str] = set()

    def convert(row: Mapping[str, Any], is_cell: bool) -> tuple[str, Text]:
        prompt_id, prompt = to_prompt(row, is_cell)
        if prompt_id in seen:
            raise Refused("prompt_id", f"an id of its own, but a row before has {prompt_id!r}")
        seen.add(prompt_id)
        return prompt_id, prompt

    return (record for _, record in _read(source, convert, on_bad_row))


def read_referenced_prompts(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[tuple[Text, Text, Wrapper | None]]:
    """Prompts with reference and wrapper of each, None where the row has no wrapper; errors as in :func:`read_comparisons`."""
    return (record for _, record in _read(source, to_referenced_prompt, on_bad_row))


def read_texts(source: Source, column: str, on_bad_row: OnBadRow | None = None) -> Iterator[str]:
    """The strings of one column; errors as in :func:`read_comparisons`."""
    return (text for _, text in _read(source, lambda row, _: to_string(row, column), on_bad_row))


def find_files(source: str | Path) -> list[Path]:
    """The data files that a path means: itself, those under a folder, or those that match a pattern; sorted.

    Raises:
        PolarError: there are none, or the file's suffix is unknown.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
        if not found:
            raise PolarError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file")
        return found
    if not path.exists():
        found = sorted(Path(name) for name in glob(str(source), recursive=True))
        if not found:
            raise PolarError(f"{path}: no such file or folder")
        return [file for each in found for file in find_files(each)]
    if not path.name.endswith(SUFFIXES):
        raise PolarError(f"{path}: unknown kind of file; known: {', '.join(SUFFIXES)}")
    return [path]


def _read(
    source: Source, convert: Callable[[Mapping[str, Any], bool], T], on_bad_row: OnBadRow | None
) -> Iterator[tuple[int, T]]:
    bad = on_bad_row or OnBadRow()
    for name, is_cell, rows in _tables(source):
        number = 0
        for number, content in rows:
            try:
                if isinstance(content, _Unreadable):
                    raise Refused("", content.expected)
                if not isinstance(content, Mapping):
                    raise Refused("", "an object with named fields")
                record = convert(content, is_cell)
            except Refused as error:
                content = content.content if isinstance(content, _Unreadable) else content
                bad.refuse(BadRow(name, number, error.field, error.expected), content)
            else:
                yield number, record
        if number == 0:
            raise PolarError(f"{name}: it is empty: there are no rows")


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """A line that is no row at all."""

    expected: str
    content: str


_Rows = Iterator[tuple[int, Any]]


def _tables(source: Source) -> Iterator[tuple[str, bool, _Rows]]:
    """Name, whether columns have one type each, and numbered rows of every file or object."""
    if isinstance(source, (str, Path)):
        for file in find_files(source):
            is_parquet = file.name.endswith(".parquet")
            yield str(file), is_parquet, _parquet_rows(file) if is_parquet else _json_rows(file)
        return
    name = type(source).__name__
    if isinstance(source, Mapping):
        raise PolarError(f"rows were expected, but this {name} maps names to {', '.join(map(str, source))}; pass one of them")
    if isinstance(source, (list, tuple)) and source and all(isinstance(each, (str, Path)) for each in source):
        for each in source:
            yield from _tables(each)
        return
    is_cell = type(source).__module__.startswith("datasets.")
    yield name, is_cell, enumerate(source, 1)


def _json_rows(path: Path) -> _Rows:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield number, _json_row(line)
    except (OSError, EOFError, zlib.error) as error:
        raise PolarError(f"{path}: unreadable after line {number}: {error}") from error


def _json_row(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        expected = f"UTF-8 text, but byte {error.start + 1} of the line is not"
    except json.JSONDecodeError as error:
        expected = f"one JSON object a line, but at column {error.colno}: {error.msg}"
    except RecursionError:
        expected = "JSON, but it is nested too deeply"
    except ValueError:
        expected = f"integers of at most {sys.get_int_max_str_digits():,} digits"
    return _Unreadable(expected, line.decode("utf-8", "backslashreplace").rstrip("\n"))


def _parquet_rows(path: Path) -> _Rows:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow)
            for batch in file.iter_batches(_BATCH_ROWS):
                for row in _batch_rows(path, number, batch):
                    number += 1
                    yield number, row
    except (OSError, pa.ArrowException) as error:
        raise PolarError(f"{path}: not a complete Parquet file (after row {number}): {_first_line(error)}") from error
    except UnicodeDecodeError as error:
        raise PolarError(f"{path}: the name of a column can't be read: {error}") from error


def _check_columns(path: Path, schema: pa.Schema) -> None:
    names = schema.names
    for i, name in enumerate(names):
        if name in names[:i]:
            raise PolarError(f"{path}: two columns have the name {name!r}")


def _batch_rows(path: Path, before: int, batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except (ArithmeticError, LookupError, ValueError, pa.ArrowException) as error:  # such as a date after the year 9999
        rows = f"rows {before + 1} to {before + batch.num_rows}"
        raise PolarError(f"{path}: a value in {rows} can't be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

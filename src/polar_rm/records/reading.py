"""Readers of records from files and ``datasets`` objects, one at a time: memory does not grow with the input."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.errors import BadRow, PolarError
from polar_rm.records.bad_rows import OnBadRow
from polar_rm.records.finding import find_files, suffix_of
from polar_rm.records.lines import Rows, Unreadable, csv_rows, json_line_rows, json_rows
from polar_rm.records.parts import FilePart
from polar_rm.records.rows import (
    RowRules,
    to_comparison,
    to_item,
    to_prompt,
    to_prompt_text,
    to_referenced_prompt,
    to_string,
    to_trajectory,
)
from polar_rm.records.types import Comparison, ScoreItem, Text, Trajectory, Wrapper
from polar_rm.records.values import InvalidRecord

T = TypeVar("T")
_Convert = Callable[[Mapping[str, Any], RowRules], T]
_log = logging.getLogger("polar_rm.records")

Source = str | Path | FilePart | Iterable[str | Path] | Iterable[Mapping[str, Any]]
"""A file, a folder, a glob pattern, several of them, a part of a file, a ``datasets`` object or any iterable of rows."""


def read_comparisons(
    source: Source, on_bad_row: OnBadRow | None = None, *, several_references: bool = False
) -> Iterator[Comparison]:
    """Read comparisons from rows as :func:`to_comparison` accepts them.

    several_references: accept rows with a list ``references``, which the caller must be able to use.

    Raises:
        BadRow: names file, row, field and what was expected, unless bad rows are skipped.
        PolarError: the file can't be read, holds no rows, or is of an unknown kind.
    """
    convert = partial(_comparison, several_references)
    return (record for _, record in read_rows(source, convert, on_bad_row))


def _comparison(several_references: bool, row: Mapping[str, Any], rules: RowRules) -> Comparison:
    return to_comparison(row, rules=rules, several_references=several_references)


def read_numbered_comparisons(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[tuple[int, Comparison]]:
    """Read comparisons with their row numbers, which have gaps where bad rows are skipped."""
    return read_rows(source, lambda row, rules: to_comparison(row, rules=rules), on_bad_row)


def read_items(source: Source, on_bad_row: OnBadRow | None = None, *, several_references: bool = False) -> Iterator[ScoreItem]:
    """Read items to score; errors as in :func:`read_comparisons`."""
    return (record for _, record in read_numbered_items(source, on_bad_row, several_references=several_references))


def read_numbered_items(
    source: Source, on_bad_row: OnBadRow | None = None, *, several_references: bool = False
) -> Iterator[tuple[int, ScoreItem]]:
    """Read items with their row numbers, which have gaps where bad rows are skipped."""
    convert = partial(_item, several_references)
    return read_rows(source, convert, on_bad_row)


def _item(several_references: bool, row: Mapping[str, Any], rules: RowRules) -> ScoreItem:
    return to_item(row, rules=rules, several_references=several_references)


def count_rows(file: str | Path) -> int | None:
    """Roughly how many rows a file has, where that is cheap: lines of JSON lines, or the footer of Parquet. None elsewhere."""
    suffix = suffix_of(Path(file))
    if suffix in (".jsonl", ".ndjson"):
        with Path(file).open("rb") as opened:
            return sum(block.count(b"\n") for block in iter(lambda: opened.read(1 << 20), b""))
    if suffix == ".parquet":
        try:
            return int(pq.read_metadata(file).num_rows)
        except (OSError, pa.ArrowException):  # whoever reads the rows says what is wrong
            return None
    return None


def read_trajectories(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[Trajectory]:
    """Read trajectories; errors as in :func:`read_comparisons`."""
    return (record for _, record in read_rows(source, lambda row, rules: to_trajectory(row, rules=rules), on_bad_row))


def read_numbered_trajectories(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[tuple[int, Trajectory]]:
    """Read trajectories with their row numbers, which have gaps where bad rows are skipped."""
    return read_rows(source, lambda row, rules: to_trajectory(row, rules=rules), on_bad_row)


def read_prompt_texts(source: Source) -> Iterator[Text]:
    """Read the prompts of any rows that have one, such as comparisons or items."""
    return (prompt for _, prompt in read_rows(source, lambda row, rules: to_prompt_text(row, rules=rules), None))


def read_prompts(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[tuple[str, Text]]:
    """Read prompt ids and prompts from rows {prompt_id, prompt}; other columns are ignored.

    A row with an id that an earlier row has is a bad row.
    """
    seen: set[str] = set()

    def convert(row: Mapping[str, Any], rules: RowRules) -> tuple[str, Text]:
        prompt_id, prompt = to_prompt(row, rules=rules)
        if prompt_id in seen:
            raise InvalidRecord("prompt_id", f"a unique id, but an earlier row has {prompt_id!r}, too")
        seen.add(prompt_id)
        return prompt_id, prompt

    return (record for _, record in read_rows(source, convert, on_bad_row))


def read_referenced_prompts(source: Source, on_bad_row: OnBadRow | None = None) -> Iterator[tuple[Text, Text, Wrapper | None]]:
    """Read prompts with their references and wrappers; a wrapper is None where the row has none. Errors as in
    :func:`read_comparisons`."""
    return (record for _, record in read_rows(source, lambda row, rules: to_referenced_prompt(row, rules=rules), on_bad_row))


def read_texts(source: Source, column: str, on_bad_row: OnBadRow | None = None) -> Iterator[str]:
    """Read the strings of one column; errors as in :func:`read_comparisons`."""
    return (text for _, text in read_rows(source, lambda row, _: to_string(row, column), on_bad_row))


def read_rows(source: Source, convert: _Convert[T], on_bad_row: OnBadRow | None = None) -> Iterator[tuple[int, T]]:
    """Read the rows of a file with another schema than ours: yield each row's number and the result of ``convert``.

    convert: gets the row and the rules for reading it, and raises :class:`InvalidRecord` for an invalid row. Errors as in
    :func:`read_comparisons`.
    """
    bad = on_bad_row or OnBadRow()
    for name, is_cell, rows in _tables(source):
        number = 0
        notes: list[str] = []
        rules = RowRules(is_cell, bad.strip_prompt, notes)
        for number, content in rows:
            try:
                if isinstance(content, Unreadable):
                    raise InvalidRecord("", content.expected)
                if not isinstance(content, Mapping):
                    raise InvalidRecord("", "an object with named fields")
                record = convert(content, rules)
            except InvalidRecord as error:
                content = content.content if isinstance(content, Unreadable) else content
                bad.refuse(BadRow(name, number, error.field, error.expected), content)
            else:
                if notes:
                    bad.note(name, number, notes)
                yield number, record
            notes.clear()
        if number == 0 and not (isinstance(source, FilePart) and source.is_slice):
            raise PolarError(f"{name}: it is empty: there are no rows")
    if on_bad_row is None:  # otherwise the caller reports the warnings
        for warning in bad.warnings():
            _log.warning("%s", warning)


def _tables(source: Source) -> Iterator[tuple[str, bool, Rows]]:
    """(name, whether its rows are rows of a table, numbered rows) of every file or object."""
    if isinstance(source, (str, Path)):
        for file in find_files(source):
            suffix = suffix_of(file)
            yield str(file), suffix not in _JSON, _rows_of(file, suffix)
        return
    if isinstance(source, FilePart):
        suffix = suffix_of(source.path)
        yield str(source.path), suffix not in _JSON, _rows_of_part(source, suffix)
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


_JSON = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".json")


def _rows_of_part(part: FilePart, suffix: str) -> Rows:
    if not part.is_slice:
        return _rows_of(part.path, suffix)
    if suffix == ".parquet":
        from polar_rm.records.tables import parquet_rows

        return parquet_rows(part.path, part.start, part.stop)
    return json_line_rows(part.path, part.start, part.stop, part.first_row)


def _rows_of(file: Path, suffix: str) -> Rows:
    match suffix:
        case ".json":
            return json_rows(file)
        case ".csv" | ".tsv":
            return csv_rows(file, "," if suffix == ".csv" else "\t")
        case ".parquet" | ".arrow" | ".feather":
            from polar_rm.records.tables import arrow_rows, parquet_rows  # pyarrow takes long to load

            return parquet_rows(file) if suffix == ".parquet" else arrow_rows(file)
    return json_line_rows(file)

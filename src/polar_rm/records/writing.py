"""The writer of record files. It writes atomically: a reader sees the whole file or none."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import IO

from polar_rm.common.files import atomic_file
from polar_rm.common.json import dump_json
from polar_rm.errors import BadRow, PolarError
from polar_rm.records.rows import to_row
from polar_rm.records.types import Record
from polar_rm.records.values import InvalidRecord

WRITTEN = (".jsonl", ".jsonl.gz", ".parquet")
"""Suffixes of files that can be written."""


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write records of one kind as JSONL (also ``.jsonl.gz``) or Parquet, by the suffix; returns their number.

    The records read back equal, except for values in messages and metadata that JSON can't express: those come back as
    :func:`dump_json` writes them. In Parquet messages and metadata are JSON text.

    Raises:
        BadRow: the reader of such records would refuse a record.
        PolarError: there are no records, they are of two kinds, the suffix is unknown, or the disk is full.
    """
    path = Path(path)
    if not path.name.endswith(WRITTEN):
        raise PolarError(f"{path}: unknown kind of file; known: {', '.join(WRITTEN)}")
    iterator = iter(records)
    first = next(iterator, None)
    if first is None:
        raise PolarError(f"{path}: there are no records to write")
    rows = _rows(path, type(first), chain([first], iterator))
    with atomic_file(path) as file:
        return _write_table(file, rows, type(first)) if path.suffix == ".parquet" else _write_lines(file, rows, path)


def _rows(path: Path, kind: type, records: Iterable[Record]) -> Iterator[dict[str, object]]:
    for number, record in enumerate(records, 1):
        if type(record) is not kind:
            raise PolarError(f"{path}: record {number} is a {type(record).__name__}, but the first is a {kind.__name__}")
        try:
            yield to_row(record)
        except InvalidRecord as error:
            raise BadRow(str(path), number, error.field, error.expected) from None


def _write_lines(file: IO[bytes], rows: Iterator[dict[str, object]], path: Path) -> int:
    count = 0
    # The gzip header holds neither time nor name, so that equal records make equal files.
    with gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.suffix == ".gz" else nullcontext(file) as sink:
        for row in rows:
            sink.write(dump_json(row).encode() + b"\n")
            count += 1
    return count


def _write_table(file: IO[bytes], rows: Iterator[dict[str, object]], kind: type[Record]) -> int:
    from polar_rm.records.tables import write_table  # pyarrow takes long to load

    return write_table(file, rows, kind)

"""Readers of Parquet, Arrow and Feather files, a few rows at a time, and the writer of Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.common.text import first_line
from polar_rm.errors import PolarError
from polar_rm.records.cells import to_cells
from polar_rm.records.lines import Rows, check_names
from polar_rm.records.types import Comparison, Record, ReferencedPrompt, ScoreItem, Trajectory
from polar_rm.records.values import MAX_TEXT_CHARACTERS as MAX_ROW_BYTES

_BATCH_ROWS = 256  # the maximum number of rows in memory
_BATCH_BYTES = 64 << 20  # uncompressed, on average over a file
# Bytes of a dictionary page, which holds the distinct values of a column. Writers end it at about 1 MiB, give or take a thousand
# values.
_USUAL_DICTIONARY = 16 << 20
_REPEATED_BYTES = 2 << 30  # of a batch in which every row has the longest value of its dictionaries
_MAX_DICTIONARY = 512 << 20
_ROW_GROUP = 4096  # rows

_SCHEMAS: dict[type, pa.Schema] = {
    Comparison: pa.schema(
        {
            "prompt": pa.string(),
            "reference": pa.string(),
            "candidates": pa.list_(pa.string()),
            "ranks": pa.list_(pa.int64()),
            "wrapper": pa.string(),
            "metadata": pa.string(),
        }
    ),
    ScoreItem: pa.schema(dict.fromkeys(["prompt", "reference", "output", "wrapper", "metadata"], pa.string())),
    ReferencedPrompt: pa.schema(dict.fromkeys(["prompt", "reference", "wrapper", "metadata"], pa.string())),
    Trajectory: pa.schema(
        {
            "source": pa.string(),
            "prompt_id": pa.string(),
            "prompt": pa.string(),
            "policy": pa.string(),
            "sample_id": pa.int64(),
            "text": pa.string(),
            "temperature": pa.float64(),
            "top_p": pa.float64(),
            "top_k": pa.int64(),
            "seed": pa.int64(),
            "finish_reason": pa.string(),
            "n_tokens": pa.int64(),
            "metadata": pa.string(),
        }
    ),
}


def parquet_rows(path: Path, start: int = 0, stop: int | None = None) -> Rows:
    """Read a Parquet file. start, stop: the rows to read, counted from 0; by default all.

    Raises:
        PolarError: the file is not complete, two columns have the same name, Python can't represent a value, or the rows need
            more memory than rows of text do.
    """
    number = 0
    with _explained(path, "Parquet", lambda: number):
        with pq.ParquetFile(path) as file:
            check_names(path, file.schema_arrow.names)
            n_rows, dictionaries = _batch_size(path, file.metadata)
            groups, number = _row_groups(file.metadata, start, stop)
        with pq.ParquetFile(path, read_dictionary=dictionaries) as file:
            for batch in file.iter_batches(n_rows, row_groups=groups):
                skipped = min(max(0, start - number), batch.num_rows)
                number += skipped
                batch = batch.slice(skipped, None if stop is None else max(0, stop - number))
                for row in _batch_rows(path, number, batch):
                    number += 1
                    yield number, row
                if number == stop:
                    return


def _row_groups(metadata: pq.FileMetaData, start: int, stop: int | None) -> tuple[list[int], int]:
    """The row groups with some of the rows from ``start`` to ``stop``, and the number of rows before the first of them."""
    ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], dtype=np.int64).tolist()
    begins = [0, *ends[:-1]]
    groups = [
        i for i, (begin, end) in enumerate(zip(begins, ends, strict=False)) if end > start and (stop is None or begin < stop)
    ]
    return groups, begins[groups[0]] if groups else 0


def arrow_rows(path: Path) -> Rows:
    """Read an Arrow file or stream, such as those that ``datasets`` saves, or a Feather file of version 2.

    Raises:
        PolarError: as in :func:`parquet_rows`.
    """
    number = 0
    with _explained(path, "Arrow", lambda: number), pa.OSFile(str(path)) as file:
        for batch in _arrow_batches(file):
            if number == 0:
                check_names(path, batch.schema.names)
            n_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * max(1, batch.num_rows) // max(1, batch.nbytes)))
            for start in range(0, batch.num_rows, n_rows):
                for row in _batch_rows(path, number, batch.slice(start, n_rows)):
                    number += 1
                    yield number, row


def _arrow_batches(file: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    if file.read(6) == b"ARROW1":
        file.seek(0)
        with pa.ipc.open_file(file) as reader:
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        file.seek(0)
        with pa.ipc.open_stream(file) as stream:
            yield from stream


def _batch_size(path: Path, metadata: pq.FileMetaData) -> tuple[int, list[str]]:
    """The number of rows in a batch, and the columns to read as dictionary arrays.

    A long text that many rows repeat is stored once in the file, so that a few of its bytes could become gigabytes in memory.
    """
    per_row = repeated = 0
    large: dict[str, int] = {}
    with path.open("rb") as file:
        for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
            per_row = max(per_row, group.total_byte_size // max(1, group.num_rows))
            usual = 0
            for column in (group.column(i) for i in range(group.num_columns)):
                if column.physical_type == "BYTE_ARRAY" and column.dictionary_page_offset is not None:
                    file.seek(column.dictionary_page_offset)
                    size = _page_size(file.read(32))
                    if size > _USUAL_DICTIONARY:
                        large[column.path_in_schema] = max(size, large.get(column.path_in_schema, 0))
                    else:
                        usual += size
            repeated = max(repeated, usual)
    if per_row > MAX_ROW_BYTES:
        raise PolarError(f"{path}: its rows have {per_row:,} bytes on average; at most {MAX_ROW_BYTES:,} are read")
    for name, size in large.items():
        maximum = MAX_ROW_BYTES if "." in name else _MAX_DICTIONARY  # columns in lists are not read as dictionary arrays
        if size > maximum:
            raise PolarError(f"{path}: the distinct values of column {name} have {size:,} bytes; at most {maximum:,} are read")
    n_rows = min(_BATCH_ROWS, _BATCH_BYTES // max(1, per_row), _REPEATED_BYTES // max(1, repeated))
    return 1 if any("." in name for name in large) else max(1, n_rows), [name for name in large if "." not in name]


def _page_size(header: bytes) -> int:
    """Uncompressed bytes of a Parquet page, from its header.

    The header is in Thrift's compact protocol: field 1 is the kind, field 2 the size. Both are 32-bit integers, stored as zigzag
    varints after a byte 0x15.
    """
    position = 0
    values: list[int] = []
    while len(values) < 2 and position < len(header) and header[position] == 0x15:
        position, value, shift = position + 1, 0, 0
        while position < len(header):
            byte = header[position]
            position, value, shift = position + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        values.append(value >> 1)
    return values[1] if len(values) == 2 else 0


def _batch_rows(path: Path, before: int, batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        if not any(pa.types.is_dictionary(kind) for kind in batch.schema.types):
            return batch.to_pylist()  # type: ignore[no-any-return]
        columns = [_values(column) for column in batch.columns]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]
    except (ArithmeticError, LookupError, ValueError, pa.ArrowException) as error:  # such as a date after the year 9999
        rows = f"rows {before + 1} to {before + batch.num_rows}"
        raise PolarError(f"{path}: a value in {rows} can't be read: {first_line(error)}") from error


def _values(column: pa.Array) -> list[Any]:
    """A column's values. Each value of a dictionary is one Python object, however many rows repeat it."""
    if not pa.types.is_dictionary(column.type):
        return column.to_pylist()  # type: ignore[no-any-return]
    indices = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    used, inverse = np.unique(indices, return_inverse=True)
    values = [None if index < 0 else column.dictionary[index].as_py() for index in used.tolist()]
    return [values[i] for i in inverse.tolist()]


@contextmanager
def _explained(path: Path, kind: str, number: Callable[[], int]) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise PolarError(f"{path}: not a complete {kind} file (after row {number()}): {first_line(error)}") from error
    except UnicodeDecodeError as error:
        raise PolarError(f"{path}: the name of a column can't be read: {error}") from error


def write_table(file: IO[bytes], rows: Iterator[dict[str, object]], kind: type[Record]) -> int:
    """Write rows from :func:`to_row`, of one kind of record, as Parquet; returns their number."""
    schema = _SCHEMAS[kind]
    count = 0
    group = [to_cells(row) for row in islice(rows, _ROW_GROUP)]
    if any("references" in row for row in group):
        schema = schema.append(pa.field("references", pa.list_(pa.string())))
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group:
            if unknown := set().union(*group) - set(schema.names):
                # The schema of a Parquet file is fixed by its first rows, and a column that it lacks would be lost.
                raise PolarError(
                    f"the first rows have no column {min(unknown)!r}, but later ones have: write JSON lines (.jsonl)"
                )
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
            group = [to_cells(row) for row in islice(rows, _ROW_GROUP)]
    return count

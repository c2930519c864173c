"""The first pass of a build: it distributes the rows of a part over buckets by a hash of the prompt id.

So all rows of a prompt are in one bucket. Whole columns are checked at once; only rows that look bad are checked one by one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polar_rm.common.text import first_line
from polar_rm.corpus.job import Job, Part
from polar_rm.corpus.parts import write_part
from polar_rm.corpus.results import PartResult
from polar_rm.errors import BadRow, PolarError
from polar_rm.records import (
    InvalidRecord,
    OnBadRow,
    parsed,
    read_numbered_trajectories,
    to_cell,
    to_prompt_text,
    to_row,
    to_trajectory,
)

_TEXTS = ("source", "prompt_id", "prompt", "policy", "text")
_OPTIONAL = {"finish_reason": pa.string(), "n_tokens": pa.int64(), "dup_count": pa.int64()}
_NUMBERS = ("n_tokens", "dup_count")
_MAX_COUNT = 2**53  # a float represents every integer up to it
_LINEAGE = ("family", "checkpoint_of", "wrapper")

SCHEMA = pa.schema(
    {"part": pa.int32(), "row": pa.int64(), "hash": pa.uint64(), **dict.fromkeys(_TEXTS, pa.string()), **_OPTIONAL}
)

_BATCH_ROWS = 2048


def partition(job: Job, number: int) -> None:
    """Write ``parts/NUMBER.arrow`` and ``parts/NUMBER.json``, see :func:`polar_rm.corpus.parts.write_part`.

    Raises:
        PolarError: the file holds no trajectories.
        BadRow: a row is not a trajectory, and bad rows are not skipped.
    """
    result = PartResult(job.parts[number].name, lineage={name: {} for name in _LINEAGE})
    patterns = job.config.policies
    write_part(job, number, SCHEMA, result, lambda part, bad: trajectory_tables(part, number, bad, result, patterns))


def trajectory_tables(part: Part, number: int, bad: OnBadRow, result: PartResult, patterns: Sequence[str]) -> Iterator[pa.Table]:
    """Read a part's trajectories of the selected policies as tables of ``SCHEMA``, and count them in the result.

    number: of the part. patterns: names or patterns of the policies.

    Raises:
        PolarError: the file holds no trajectories, or is damaged.
        BadRow: a row is not a trajectory, and bad rows are not skipped.
    """
    if part.row_groups is not None:
        tables = _parquet_tables(part, bad, result)
    elif part.is_slice and not result.lines:  # the part lies within a very long line
        tables = iter(())
    else:
        tables = _json_tables(part.path, bad, result)
    for table in tables:
        n_read = table.num_rows
        selected = [name for name in table["policy"].unique().to_pylist() if any(fnmatchcase(name, each) for each in patterns)]
        table = table.filter(pc.is_in(table["policy"], pa.array(selected, pa.string())))
        result.unselected += n_read - table.num_rows
        if table.num_rows:
            result.rows += table.num_rows
            for count in pc.value_counts(table["policy"]).to_pylist():
                result.policies[count["values"]] = result.policies.get(count["values"], 0) + count["counts"]
            table = table.append_column("part", pa.repeat(pa.scalar(number, pa.int32()), table.num_rows))
            yield table.append_column("hash", _hash(table["prompt_id"])).select(SCHEMA.names).cast(SCHEMA)


def _hash(ids: pa.ChunkedArray) -> pa.Array:
    """The first eight bytes of a hash of each id. Each distinct id is hashed once, because neighbouring rows often share it."""
    encoded = ids.combine_chunks().dictionary_encode()
    each = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) for name in encoded.dictionary.to_pylist()]
    return pa.array(np.array(each, np.uint64)[encoded.indices.to_numpy()])


# ------------------------------------------------------------------------------------------------------------- Parquet


def parquet_columns(path: Path, schema: pa.Schema) -> list[str]:
    """The columns to read from a table of trajectories.

    Raises:
        PolarError: a column is missing or has another type.
    """
    required = [*_TEXTS, "sample_id"]
    if missing := [name for name in required if name not in schema.names]:
        columns = f"the column {missing[0]} is" if len(missing) == 1 else f"the columns {', '.join(missing)} are"
        raise PolarError(f"{path}: it holds no trajectories: {columns} missing")
    for name in required:
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_integer(kind) if name == "sample_id" else is_text(kind)):
            raise PolarError(f"{path}: the column {name} holds {kind}, not {'integers' if name == 'sample_id' else 'text'}")
    for name, expected in _OPTIONAL.items():
        kind = schema.field(name).type if name in schema.names else expected
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        wants_text = pa.types.is_string(expected)
        if not (
            pa.types.is_null(kind) or (is_text(kind) if wants_text else pa.types.is_integer(kind) or pa.types.is_floating(kind))
        ):
            raise PolarError(f"{path}: the column {name} holds {kind}, not {'text' if wants_text else 'integers'}")
    return [*required, *(name for name in (*_OPTIONAL, *_LINEAGE, "metadata") if name in schema.names)]


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, perhaps as a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _parquet_tables(part: Part, bad: OnBadRow, result: PartResult) -> Iterator[pa.Table]:
    row = part.first_row
    try:
        # Row groups are streamed in batches: some writers put a million rows into one group.
        with pq.ParquetFile(part.path, pre_buffer=False, buffer_size=1 << 20) as file:
            columns = parquet_columns(part.path, file.schema_arrow)
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=list(part.row_groups or ()), columns=columns):
                table = pa.Table.from_batches([batch])
                table = table.append_column("row", pa.array(np.arange(row, row + len(table))))
                row += len(table)
                yield _checked(part.path, table, bad, result)
    except (OSError, pa.ArrowException) as error:
        raise PolarError(f"{part.path}: not a complete Parquet file (after row {row - 1}): {first_line(error)}") from error


def _checked(path: Path, table: pa.Table, bad: OnBadRow, result: PartResult) -> pa.Table:
    """The table without bad rows, with columns of the types in ``SCHEMA``."""
    suspicious = np.zeros(len(table), bool)
    for name in (*_TEXTS, "sample_id"):
        suspicious |= table[name].is_null().to_numpy()
        if name != "sample_id":
            suspicious |= _not_utf8(table[name])
    for name in set(_NUMBERS) & set(table.column_names):
        suspicious |= _out_of_range(table[name])
    for index in np.flatnonzero(suspicious).tolist():
        content = {name: cell_value(table[name][index]) for name in table.column_names if name != "row"}
        try:
            to_trajectory({name: value for name, value in content.items() if name not in _NUMBERS}, is_cell=True)
            _check_numbers(content.get("n_tokens"), content.get("dup_count"))
        except InvalidRecord as error:
            bad.refuse(BadRow(str(path), table["row"][index].as_py(), error.field, error.expected), content)
    if suspicious.any():
        table = table.filter(pa.array(~suspicious))
    columns = {name: table[name].cast(pa.string()) for name in _TEXTS} | {"row": table["row"]}
    for name, kind in _OPTIONAL.items():
        column = table[name] if name in table.column_names else pa.nulls(len(table), kind)
        columns[name] = _converted(column, kind)
    _add_lineage(table, result)
    return _with_prompts(path, pa.table(columns), bad)


def _not_utf8(column: pa.ChunkedArray) -> Any:
    """bool [rows]: strings that are not UTF-8; a Parquet file may hold any bytes."""
    try:
        column.validate(full=True)
        return np.zeros(len(column), bool)
    except pa.ArrowInvalid:
        return np.array([isinstance(cell_value(value), bytes) for value in column])


def _out_of_range(column: pa.ChunkedArray) -> Any:
    """bool [rows]: numbers that :func:`_check_numbers` refuses."""
    if pa.types.is_null(column.type):
        return np.zeros(len(column), bool)
    values = column.cast(pa.float64(), safe=False)
    wrong = pc.and_(pc.is_finite(values), pc.or_(pc.less(values, 0.0), pc.greater(values, float(_MAX_COUNT))))
    return pc.fill_null(wrong, False).to_numpy()


def _check_numbers(*values: Any) -> None:
    """Raise InvalidRecord for an impossible count of tokens or copies. Values that are not numbers are ignored."""
    for name, value in zip(_NUMBERS, values, strict=True):
        if isinstance(value, int | float) and (isinstance(value, bool) or not 0 <= value <= _MAX_COUNT):
            raise InvalidRecord(name, f"a number from 0 to 2^53, not {json.dumps(value)}")


def cell_value(scalar: pa.Scalar) -> Any:
    """The value of a table's cell; bytes for a string that is not UTF-8."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return bytes(scalar.as_buffer())


def _converted(column: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    """The column in another type. Floats become integers; NaN, which data frames write for missing numbers, becomes null."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
    return column.cast(kind, safe=False)


def _with_prompts(path: Path, table: pa.Table, bad: OnBadRow) -> pa.Table:
    """The table with prompts that are messages, or look like messages, in the form in which we write them."""
    may_be_messages = pc.match_substring_regex(table["prompt"], r"^\s*\[")
    if not pc.any(may_be_messages).as_py():
        return table
    normalised: dict[str, str | InvalidRecord] = {}
    for cell in table["prompt"].filter(may_be_messages).unique().to_pylist():
        try:
            normalised[cell] = str(to_cell(to_prompt_text({"prompt": cell}, is_cell=True)))
        except InvalidRecord as error:
            normalised[cell] = error
    prompts: list[str] = []
    kept = np.ones(len(table), bool)
    for index, cell in enumerate(table["prompt"].to_pylist()):
        value = normalised.get(cell, cell)
        if isinstance(value, InvalidRecord):
            row = table.slice(index, 1).to_pylist()[0]
            bad.refuse(BadRow(str(path), row.pop("row"), value.field, value.expected), row)
            kept[index], value = False, ""
        prompts.append(value)
    table = table.set_column(table.column_names.index("prompt"), "prompt", pa.array(prompts, pa.string()))
    return table.filter(pa.array(kept))


def _add_lineage(table: pa.Table, result: PartResult) -> None:
    """Collect the rows' facts about their policies, from columns or else from the metadata."""
    columns = [name for name in (*_LINEAGE, "metadata") if name in table.column_names]
    if columns:
        seen: set[tuple[str, ...]] = set()
        for policy, *cells in zip(*(table[name].to_pylist() for name in ("policy", *columns)), strict=True):
            row = {name: cell for name, cell in zip(columns, cells, strict=True) if cell is not None}
            metadata = row.pop("metadata", None)
            key = policy, *map(str, row.items()), str(metadata)
            if key not in seen:
                seen.add(key)
                metadata = parsed(metadata) if isinstance(metadata, str) else metadata
                _add_facts(policy, {**(metadata if isinstance(metadata, dict) else {}), **row}, result)


def _add_facts(policy: str, row: dict[str, Any], result: PartResult) -> None:
    for name, values in result.lineage.items():
        if isinstance(row.get(name), str) and row[name] not in values.setdefault(policy, []):
            values[policy].append(row[name])


# --------------------------------------------------------------------------------------------------------------- JSONL


def _json_tables(path: Path, bad: OnBadRow, result: PartResult) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    for number, record in read_numbered_trajectories(path, bad):
        copies = record.metadata.get("dup_count")
        try:
            _check_numbers(record.n_tokens, copies)
        except InvalidRecord as error:
            bad.refuse(BadRow(str(path), number, error.field, error.expected), to_row(record))
            continue
        _add_facts(record.policy, record.metadata, result)
        row: dict[str, Any] = {name: getattr(record, name) for name in (*_TEXTS, "finish_reason", "n_tokens")}
        row |= {"row": number, "prompt": to_cell(record.prompt), "dup_count": copies if isinstance(copies, int) else None}
        rows.append(row)
        if len(rows) == _BATCH_ROWS:
            yield _from_rows(rows)
            rows = []
    if rows:
        yield _from_rows(rows)


def _from_rows(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, pa.schema([SCHEMA.field(name) for name in SCHEMA.names if name not in ("part", "hash")]))

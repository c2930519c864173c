"""The first pass over texts: it cleans the texts of a part and distributes them over buckets by a hash of the text.

So copies of a text are in one bucket. Copies differ at most in case and white space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.common.iteration import windows
from polar_rm.common.text import first_line
from polar_rm.corpus.cleaning import clean_all
from polar_rm.corpus.config import Continuations
from polar_rm.corpus.continuations import first_characters
from polar_rm.corpus.counts import Tally
from polar_rm.corpus.job import Job, Part
from polar_rm.corpus.partition import cell_value, is_text, trajectory_tables
from polar_rm.corpus.parts import write_part
from polar_rm.corpus.results import PartResult
from polar_rm.errors import BadRow, PolarError
from polar_rm.records import PLAIN_SUFFIXES, InvalidRecord, OnBadRow, from_cell, is_held_out, prompt_key, read_rows
from polar_rm.records.fields import Fields
from polar_rm.sampling.prompts import passages

SCHEMA = pa.schema(
    {
        "part": pa.int32(),
        "row": pa.int64(),
        "hash": pa.uint64(),
        "id": pa.string(),
        "source": pa.string(),
        "held_out": pa.bool_(),
        "text": pa.string(),
    }
)
"""hash: of seed and id; it is the order of the ring. id: a hash of the text, which copies share. source: null if unknown."""

_BATCH_ROWS = 512
_PASSAGE_CHARACTERS = 4000  # the least for a passage of a plain file, where the settings don't say how much of a text is used
_TRAJECTORY = {"prompt_id", "policy", "sample_id"}


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    text: str
    source: str | None
    finish_reason: str | None = None
    prompt: str | None = None  # as a cell


def partition_texts(job: Job, number: int) -> None:
    """Write ``parts/NUMBER.arrow`` and ``parts/NUMBER.json``, see :func:`polar_rm.corpus.parts.write_part`.

    Raises:
        PolarError: the file holds no texts.
        BadRow: a row has no text, and bad rows are not skipped.
    """
    tally = Tally()
    result = PartResult(job.parts[number].name, counts=tally.counts, examples=tally.examples)

    def tables(part: Part, bad: OnBadRow) -> Iterator[pa.Table]:
        for rows in windows(_rows(job, part, number, bad, result), _BATCH_ROWS):
            table = pa.Table.from_pylist(list(_cleaned(job, number, rows, tally)), SCHEMA)
            if table.num_rows:
                yield table

    write_part(job, number, SCHEMA, result, tables)


def text_columns(path: Path, schema: pa.Schema, column: str) -> list[str]:
    """The columns to read from a table of texts.

    Raises:
        PolarError: the column with the text is missing or has another type, or the table holds trajectories.
    """
    if column not in schema.names:
        raise PolarError(
            f"{path}: it holds no texts: the column {column!r} is missing; pairing.column names another one of "
            f"{', '.join(schema.names[:20])}"
        )
    if column == "text" and set(schema.names) >= _TRAJECTORY:
        raise PolarError(f"{path}: it holds trajectories, which pairing.rows=trajectories reads")
    for name in (column, "source"):
        if name in schema.names and not is_text(kind := schema.field(name).type) and not pa.types.is_null(kind):
            raise PolarError(f"{path}: the column {name} holds {kind}, not text")
    return list(dict.fromkeys(name for name in (column, "source") if name in schema.names))


def _rows(job: Job, part: Part, number: int, bad: OnBadRow, result: PartResult) -> Iterator[_Row]:
    pairing = job.config.of_continuations
    if pairing.rows == "trajectories":
        for table in trajectory_tables(part, number, bad, result, job.config.policies):
            names = ("row", "text", "source", "finish_reason", "prompt")
            yield from map(_Row, *(table[name].to_pylist() for name in names))
        return
    for row in _text_rows(pairing, part, bad, result):
        result.rows += 1
        yield row


def _text_rows(pairing: Continuations, part: Part, bad: OnBadRow, result: PartResult) -> Iterator[_Row]:
    def convert(row: Mapping[str, Any]) -> tuple[str, str | None]:
        if pairing.column == "text" and row.keys() >= _TRAJECTORY:
            raise InvalidRecord("", "a text, but the row is a trajectory, which pairing.rows=trajectories reads")
        take = Fields(row, is_cell=True)
        text, source = take.string(pairing.column), take.optional(take.string, "source")
        if pairing.hard and not source:
            raise InvalidRecord("source", "the source of the text, as pairing.hard=same_source compares texts of one source")
        return text, source

    if part.row_groups is not None:
        for number, content in _parquet_rows(part, pairing.column):
            try:
                yield _Row(number, *convert(content))
            except InvalidRecord as error:
                bad.refuse(BadRow(str(part.path), number, error.field, error.expected), content)
    elif part.path.suffix.lower() in PLAIN_SUFFIXES:
        texts = passages(part.path, pairing.max_characters or _PASSAGE_CHARACTERS, bad)
        yield from (_Row(number, text, part.path.name) for number, text in enumerate(texts, 1))
    elif not part.is_slice or result.lines:  # otherwise the part lies within a very long line
        for number, (text, source) in read_rows(part.path, lambda row, _: convert(row), bad):
            yield _Row(number, text, source)


def _parquet_rows(part: Part, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    number = part.first_row - 1
    try:
        with pq.ParquetFile(part.path, pre_buffer=False, buffer_size=1 << 20) as file:
            columns = text_columns(part.path, file.schema_arrow, column)
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=list(part.row_groups or ()), columns=columns):
                for index in range(batch.num_rows):
                    number += 1
                    yield number, {name: cell_value(batch[name][index]) for name in columns}
    except (OSError, pa.ArrowException) as error:
        raise PolarError(f"{part.path}: not a complete Parquet file (after row {number}): {first_line(error)}") from error


def _cleaned(job: Job, number: int, rows: list[_Row], tally: Tally) -> Iterator[dict[str, Any]]:
    """The rows of ``SCHEMA`` for texts that are not empty."""
    config, limit = job.config, job.config.of_continuations.max_characters
    cleaned = clean_all([row.text for row in rows], [row.finish_reason for row in rows], config.cleaning)
    for row, result in zip(rows, cleaned, strict=True):
        tally.add("texts", "rows")
        text = result.text.strip()
        if not text:
            tally.add("texts", "empty")
            continue
        if limit is not None and len(text) > limit:
            tally.add("texts", "cut")
            text = first_characters(text, limit)
            if not text:
                tally.add("texts", "without_border")
                continue
        text_id = hashlib.blake2b(prompt_key(text).encode(), digest_size=16).hexdigest()
        tally.add_cleaning(row.text, result.text, result.removed, text_id, row.source or "")
        digest = hashlib.blake2b(f"{config.seed} {text_id}".encode(), digest_size=8).digest()
        yield {
            "part": number,
            "row": row.number,
            "hash": int.from_bytes(digest),
            "id": text_id,
            "source": row.source or None,
            "held_out": _is_held_out(row, text, config.splits.prompts, config.seed),
            "text": text,
        }


def _is_held_out(row: _Row, text: str, fraction: float, seed: int) -> bool:
    """Whether a text is held out. Trajectories of a prompt are held out together, as in a corpus of policies with this seed."""
    if not fraction:
        return False
    return is_held_out(text, fraction, seed=seed) if row.prompt is None else _is_prompt_held_out(row.prompt, fraction, seed)


@lru_cache(256)  # neighbouring rows often share their prompt
def _is_prompt_held_out(cell: str, fraction: float, seed: int) -> bool:
    return is_held_out(from_cell(cell), fraction, seed=seed)

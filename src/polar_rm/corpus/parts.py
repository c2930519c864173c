"""Parts of the input, and their rows in buckets: what the first passes of all kinds of corpora share.

A first pass reads the rows of a part and distributes them over buckets by their hashes. A part becomes one Arrow file with a
record batch for every bucket and 32 MiB of input, and a bucket reads only its own batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from polar_rm.common.files import full_disk_named
from polar_rm.corpus.job import Job, Part
from polar_rm.corpus.results import PartResult, save_result
from polar_rm.errors import BadRow
from polar_rm.records import OnBadRow

_CHUNK = 32 << 20  # bytes


def write_part(
    job: Job, number: int, schema: pa.Schema, result: PartResult, tables: Callable[[Part, OnBadRow], Iterable[pa.Table]]
) -> None:
    """Write ``parts/NUMBER.arrow`` and, when it is complete, ``parts/NUMBER.json`` with the result.

    ``parts/NUMBER.npy`` has the bucket of each record batch: int32 [batches]. tables: reads a part, whose path may be that of a
    copy of its lines, and yields tables of ``schema``, which has ``hash`` (uint64).

    Raises:
        BadRow: a row is bad, and bad rows are not skipped.
    """
    part, target = job.parts[number], job.path("parts", number, ".arrow")
    target.parent.mkdir(parents=True, exist_ok=True)
    bad = OnBadRow("skip" if job.skip_bad_rows else "error", job.path("parts", number, ".refused.jsonl"))
    buckets: list[int] = []
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        _as_file(part, target.with_suffix(".jsonl"), result) as source,
        pa.OSFile(str(target), "wb") as file,
        pa.ipc.new_file(file, schema, options=options) as writer,
    ):
        for chunk in _chunks(tables(replace(part, path=source), bad)):
            for bucket, batch in _by_bucket(chunk, job.n_buckets):
                writer.write_batch(batch)
                buckets.append(bucket)
    np.save(target.with_suffix(".npy"), np.array(buckets, np.int32))
    result.refused = bad.count
    save_result(target.with_suffix(".json"), result)


def read_bucket(job: Job, number: int, schema: pa.Schema) -> pa.Table:
    """The rows of a bucket from all parts, in the order of the input."""
    batches = []
    for part in range(len(job.parts)):
        path = job.path("parts", part, ".json")
        indices = np.flatnonzero(np.load(path.with_suffix(".npy")) == number).tolist()
        if indices:
            with pa.OSFile(str(path.with_suffix(".arrow"))) as file, pa.ipc.open_file(file) as reader:
                batches += [reader.get_batch(index) for index in indices]
    return pa.Table.from_batches(batches, schema)


@contextmanager
def _as_file(part: Part, temporary: Path, result: PartResult) -> Iterator[Path]:
    """A file with the part's rows: the input itself, or a copy of the part's lines.

    Readers need files, and copying takes a hundredth of the time of parsing. Rows are numbered within the copy. If a bad row
    stops the build, the lines before the part are counted here; otherwise the numbers are corrected after all parts are read.

    Raises:
        BadRow: has the number of the row in the input.
    """
    if not part.is_slice:
        yield part.path
        return
    try:
        with full_disk_named(temporary), part.path.open("rb") as file, temporary.open("wb") as copy:
            _seek_line(file, part.start)
            result.lines = _copy_lines(file, copy, part.stop)
        yield temporary
    except BadRow as error:
        lines_before = _lines_before(part.path, part.start)
        raise BadRow(str(part.path), lines_before + error.row, error.field, error.expected) from None
    finally:
        temporary.unlink(missing_ok=True)


def _seek_line(file: IO[bytes], start: int) -> None:
    """Move to the first line that begins at ``start`` or later."""
    if start:
        file.seek(start - 1)
        for _ in _line(file):
            pass


def _copy_lines(file: IO[bytes], copy: IO[bytes], stop: int | None) -> int:
    """Copy the lines that begin before byte ``stop``, from the current line on; returns their number."""
    count, position = 0, file.tell()
    while stop is None or position < stop:
        line_start = position
        for piece in _line(file):
            copy.write(piece)
            position += len(piece)
        if position == line_start:
            break
        count += 1
    return count


def _line(file: IO[bytes]) -> Iterator[bytes]:
    """The next line in pieces of at most 1 MiB; no piece at the end of the file."""
    while piece := file.readline(1 << 20):
        yield piece
        if piece.endswith(b"\n"):
            return


def _lines_before(path: Path, start: int) -> int:
    """The number of lines that begin before byte ``start`` > 0: the first line, and one for each newline before."""
    count, remaining = 1, start - 1
    with path.open("rb") as file:
        while remaining and (block := file.read(min(remaining, 1 << 20))):
            count += block.count(b"\n")
            remaining -= len(block)
    return count


def bucket_of(hashes: np.ndarray[Any, np.dtype[np.uint64]], n_buckets: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The buckets of hashes.

    A bucket is a range of hashes, so that consecutive buckets have the prompts in an order that does not depend on their number.
    """
    return ((hashes >> np.uint64(32)) * np.uint64(n_buckets) >> np.uint64(32)).astype(np.int64)


def _by_bucket(table: pa.Table, n_buckets: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    buckets = bucket_of(table["hash"].to_numpy(), n_buckets)
    order = np.argsort(buckets, kind="stable")
    table = table.take(order)
    present, starts = np.unique(buckets[order], return_index=True)
    for bucket, start, end in zip(present, starts, [*starts[1:], len(order)], strict=True):
        [batch] = table.slice(start, end - start).combine_chunks().to_batches()
        yield int(bucket), batch


def _chunks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    chunk: list[pa.Table] = []
    for table in tables:
        chunk.append(table)
        if sum(each.nbytes for each in chunk) >= _CHUNK:
            yield pa.concat_tables(chunk)
            chunk = []
    if chunk:
        yield pa.concat_tables(chunk)

"""Parts of files that can be read alone, so that many processes read one large file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.errors import PolarError
from polar_rm.records.finding import suffix_of

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class FilePart:
    """Consecutive rows of a file.

    start, stop: a range of bytes, at whose ends lines begin, in JSON lines; a range of rows, counted from 0, in Parquet. A stop
    of None is the end. first_row: the number of the first row in its file, counted from 1. n_bytes: its size, uncompressed in
    Parquet.
    """

    path: Path
    start: int = 0
    stop: int | None = None
    first_row: int = 1
    n_bytes: int = 0

    @property
    def is_slice(self) -> bool:
        """Whether the part is not the whole file."""
        return self.start > 0 or self.stop is not None


def divide_file(path: Path, part_bytes: int) -> tuple[str, list[FilePart]]:
    """The SHA-256 of a file, and its parts of about ``part_bytes`` each, in order.

    Plain JSON lines are divided at lines and Parquet by rows. Other files are one part: nothing but reading tells where their
    rows begin. The parts depend on the content and ``part_bytes`` alone.

    Raises:
        PolarError: the file can't be read.
    """
    suffix = suffix_of(path)
    try:
        if suffix in (".jsonl", ".ndjson"):
            return _divide_lines(path, part_bytes)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
    except OSError as error:
        raise PolarError(f"{path}: {error.strerror}") from error
    return digest, _divide_parquet(path, part_bytes, size) if suffix == ".parquet" else [FilePart(path, n_bytes=size)]


def _divide_lines(path: Path, part_bytes: int) -> tuple[str, list[FilePart]]:
    """One pass over the file computes the hash, finds the lines' beginnings and counts the lines before them."""
    digest = hashlib.sha256()
    cuts = [(0, 1)]  # byte and number of the first line of each part
    position = 0
    line = 1
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            counted = 0  # bytes of the block whose newlines are in ``line``
            while cuts[-1][0] + part_bytes <= position + len(block):
                # The first line that begins at the wanted byte or later; a part ends in the block in which a line ends.
                newline = block.find(b"\n", max(0, cuts[-1][0] + part_bytes - position - 1, counted))
                if newline < 0:
                    break
                line += block.count(b"\n", counted, newline + 1)
                counted = newline + 1
                cuts.append((position + counted, line))
            line += block.count(b"\n", counted)
            position += len(block)
    if len(cuts) > 1 and cuts[-1][0] == position:  # the last line ends where a part would begin
        cuts.pop()
    ends = [start for start, _ in cuts[1:]]
    parts = [
        FilePart(path, start, stop, first, (position if stop is None else stop) - start)
        for (start, first), stop in zip(cuts, [*ends, None], strict=True)
    ]
    return digest.hexdigest(), parts


def _divide_parquet(path: Path, part_bytes: int, size: int) -> list[FilePart]:
    try:
        metadata = pq.read_metadata(path)
        n_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    except (OSError, pa.ArrowException):  # whoever reads the rows says what is wrong
        return [FilePart(path, n_bytes=size)]
    n_parts = min(max(1, -(-n_bytes // part_bytes)), max(1, metadata.num_rows))
    cuts = [metadata.num_rows * i // n_parts for i in range(n_parts + 1)]
    if n_parts == 1:
        return [FilePart(path, n_bytes=n_bytes)]
    return [FilePart(path, a, b, a + 1, n_bytes // n_parts) for a, b in pairwise(cuts)]

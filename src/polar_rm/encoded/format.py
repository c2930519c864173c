"""The files of an encoded corpus.

``shards/NNNNNN.arrow`` holds trees as Arrow record batches of :data:`ROWS_PER_BATCH` with flat buffers of tokens: ``tokens`` are
a tree's ids, its prefix and then its branches; ``lengths`` the number of ids of the prefix and of each branch. ``numbers.bin``
holds a row of :data:`NUMBERS` for every comparison of all shards. ``manifest.json`` is the index, and is written last.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from polar_rm.encoding.tree import PrefixTree

SCHEMA_NAME = "polar-rm/encoded/1"
"""The ``schema`` of the index and of ``settings.json``."""

ROWS_PER_BATCH = 512
"""Comparisons of a record batch, which are also tokenised together. All batches of a shard but the last one are full."""

SCHEMA = pa.schema(
    {
        "tokens": pa.list_(pa.int32()),
        "lengths": pa.list_(pa.int32()),
        "ranks": pa.list_(pa.int32()),
        "truncated": pa.bool_(),
    }
)

NUMBERS = ("tokens", "candidates", "pairs", "winners", "checksum")
"""The columns of ``numbers.bin``, little-endian uint32 [n, 5].

tokens: of the tree, with the shared prefix counted once. pairs: ordered pairs. winners: candidates that beat another one.
checksum: CRC-32 of the row's tokens, lengths and ranks, which every reader compares.
"""

NUMBER = np.dtype("<u4")
NUMBERS_FILE = "numbers.bin"
SHARDS = "shards"


def shard_name(number: int) -> str:
    """The file of a shard, relative to the folder."""
    return f"{SHARDS}/{number:06d}.arrow"


def work_path(folder: Path, number: int, suffix: str) -> Path:
    """A file about a finished shard, until the index is written."""
    return folder / "work" / f"{number:06d}{suffix}"


def to_batch(trees: Sequence[PrefixTree]) -> pa.RecordBatch:
    """Trees as a record batch of :data:`SCHEMA`."""
    tokens = [[*tree.prefix, *chain.from_iterable(tree.branches)] for tree in trees]
    lengths = [[len(tree.prefix), *map(len, tree.branches)] for tree in trees]
    columns = [_lists(tokens), _lists(lengths), _lists([tree.ranks for tree in trees])]
    return pa.RecordBatch.from_arrays([*columns, pa.array([bool(tree.truncation) for tree in trees])], schema=SCHEMA)


def _lists(rows: Sequence[Sequence[int]]) -> pa.ListArray:
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


class Rows:
    """The rows of a record batch as views of its buffers, without a copy."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._columns = [(column.offsets.to_numpy(), column.values.to_numpy()) for column in batch.columns[:3]]
        self._truncated = batch.column(3)

    def __len__(self) -> int:
        return len(self._truncated)

    def arrays(self, row: int) -> list[np.ndarray]:
        """Tokens, lengths and ranks of one row, int32."""
        return [values[offsets[row] : offsets[row + 1]] for offsets, values in self._columns]

    def tree(self, row: int) -> PrefixTree:
        """The tree of one row."""
        tokens, lengths, ranks = (array.tolist() for array in self.arrays(row))
        branches, start = [], lengths[0]
        for length in lengths[1:]:
            branches.append(tokens[start : start + length])
            start += length
        return PrefixTree(tokens[: lengths[0]], branches, tuple(ranks))

    def numbers(self) -> np.ndarray:
        """The rows of ``numbers.bin``, uint32 [rows, 5]."""
        return np.array([_numbers(*self.arrays(row)) for row in range(len(self))], NUMBER).reshape(-1, len(NUMBERS))

    def separate(self, row: int) -> tuple[int, int]:
        """Tokens of the candidates as separate sequences: their sum, and those of the longest."""
        _, lengths, _ = self.arrays(row)
        return int(lengths[0]) * (len(lengths) - 1) + int(lengths[1:].sum()), int(lengths[0] + lengths[1:].max())

    def n_truncated(self) -> int:
        """How many rows are truncated."""
        return int(self._truncated.true_count)


def checksum(arrays: Sequence[np.ndarray]) -> int:
    """CRC-32 of a row's arrays (see :meth:`Rows.arrays`)."""
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array, "<i4").data, value)
    return value


def _numbers(tokens: np.ndarray, lengths: np.ndarray, ranks: np.ndarray) -> tuple[int, ...]:
    beaten = ranks[:, None] < ranks[None]
    return len(tokens), len(ranks), int(beaten.sum()), int(beaten.any(axis=1).sum()), checksum((tokens, lengths, ranks))

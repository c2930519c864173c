"""Random access to an encoded corpus. Opening one reads its index, and costs per shard, not per comparison."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polar_rm.common.checksums import FileFacts, check_files, read_sealed
from polar_rm.common.files import read_json
from polar_rm.common.manifests import NAME
from polar_rm.encoded.format import NUMBER, NUMBERS, NUMBERS_FILE, ROWS_PER_BATCH, SCHEMA_NAME, Rows, checksum
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import Damaged, PolarError

_OPEN_SHARDS = 256  # each takes a file descriptor


@dataclass(frozen=True)
class CorpusStats:
    """Statistics of encoded data for the plan of a run.

    tokens: computed tokens, with shared prefixes counted once; separate_tokens: without sharing. longest: tokens of the longest
    tree. longest_sequence: tokens of the longest prefix with one branch, which is the number of positions needed.
    """

    comparisons: int
    pairs: int
    candidates: int
    tokens: int
    separate_tokens: int
    truncated: int
    longest: int
    longest_sequence: int


class EncodedCorpus:
    """An encoded corpus.

    digest: of the index, so that two ranks can tell that they opened the same. encoder: hash of the encoder. reference: ``given``
    or ``empty``. inputs: path of every file that was read -> SHA-256, computed before it was read. rejected, side_file: the
    number of skipped bad rows, and the file that holds them. notes: see :class:`~polar_rm.records.OnBadRow`.
    """

    def __init__(self, folder: Path) -> None:
        """Open a corpus by its index alone.

        Raises:
            Damaged: the index or the file of the trees' numbers is missing, or not what was written.
        """
        self.folder = folder
        index = read_sealed(folder / NAME)
        if index.get("schema") != SCHEMA_NAME:
            raise PolarError(f"{folder}: it is no encoded corpus that this version reads (schema {index.get('schema')!r})")
        self.digest: str = index["digest"]
        self.encoder: str = index["settings"]["encoder"]
        self.reference: str = index["settings"]["reference"]
        self.inputs: dict[str, str] = index["inputs"]
        self.rejected: int = index["rejected"]
        self.side_file: str | None = index["side_file"]
        self.notes = {text: (int(count), str(first)) for text, (count, first) in index["notes"].items()}
        self.stats = CorpusStats(**index["stats"])
        self.files: dict[str, FileFacts] = {entry["file"]: entry for entry in index["files"]}
        shards = [entry for entry in index["files"] if entry["file"] != NUMBERS_FILE]
        self._shards: list[str] = [entry["file"] for entry in shards]
        self._starts = _starts([entry["comparisons"] for entry in shards])
        self._names = [name for name, _ in index["sources"]]
        self._source_starts = _starts([count for _, count in index["sources"]])
        self._lengths: list[tuple[int, int]] = index["lengths"]
        check_files(folder, {NUMBERS_FILE: self.files[NUMBERS_FILE]})
        shape = (self.stats.comparisons, len(NUMBERS))
        if self.files[NUMBERS_FILE]["bytes"] != NUMBER.itemsize * shape[0] * shape[1] or sum(
            entry["comparisons"] for entry in shards
        ) != len(self):
            raise Damaged(f"{folder / NAME}: its counts of comparisons contradict each other; encode again")
        self.numbers: np.ndarray = np.memmap(folder / NUMBERS_FILE, NUMBER, "r", shape=shape)
        self._rows = lru_cache(_OPEN_SHARDS)(self._open)  # the shards that were read last

    def __len__(self) -> int:
        return self.stats.comparisons

    def __getitem__(self, index: int) -> PrefixTree:
        """The tree of a comparison, int ids.

        Raises:
            Damaged: its shard is missing or truncated, or the row is not what was written.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect_right(self._starts, index) - 1
        batch, row = divmod(int(index) - self._starts[shard], ROWS_PER_BATCH)
        try:
            rows = Rows(self._rows(shard).get_batch(batch))
            wrong = len(rows) <= row or checksum(rows.arrays(row)) != self.numbers[index, -1]
        except (pa.ArrowException, OSError, IndexError, ValueError):
            wrong = True
        if wrong:
            self.check_shard(shard)
            raise Damaged(
                f"{self.folder / self._shards[shard]}: comparison {index - self._starts[shard] + 1} is not what was written (its "
                "checksum differs); polar encode --verify with the same config encodes damaged shards again"
            )
        return rows.tree(row)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each tree, uint32 [n]; a view of a memory-mapped file."""
        return self.numbers[:, 0]

    @property
    def shards(self) -> list[str]:
        """The names of all shards in order, relative to the folder."""
        return self._shards

    def n_longer(self, tokens: int) -> int:
        """How many trees have more tokens, from the index alone."""
        return sum(count for length, count in self._lengths if length > tokens)

    def describe(self, index: int) -> str:
        """The file and number of a comparison, for error messages."""
        source = bisect_right(self._source_starts, index) - 1
        return f"{self._names[source]}: comparison {index - self._source_starts[source] + 1}"

    def check_shard(self, shard: int, *, full: bool = False) -> None:
        """Check the size of a shard. full: compare its content by SHA-256, too.

        Raises:
            Damaged: the file is missing or not what was written.
        """
        name = self._shards[shard]
        check_files(self.folder, {name: self.files[name]}, full=full)

    def _open(self, shard: int) -> pa.ipc.RecordBatchFileReader:
        self.check_shard(shard)
        return pa.ipc.open_file(pa.memory_map(str(self.folder / self._shards[shard])))


def is_encoded(path: Path) -> bool:
    """Whether a path is the folder of an encoded corpus, finished or not."""
    for name in (NAME, "settings.json"):
        if (path / name).is_file():
            try:
                return str(read_json(path / name).get("schema", "")).startswith(SCHEMA_NAME.rpartition("/")[0])
            except PolarError:  # a file of another program
                return False
    return False


def check_sizes(corpus: EncodedCorpus) -> None:
    """Check that all shards exist with their sizes; that takes some microseconds for each.

    Raises:
        Damaged: names the first one that does not.
    """
    check_files(corpus.folder, corpus.files)


def _starts(counts: list[int]) -> list[int]:
    starts: list[int] = np.cumsum([0, *counts], dtype=np.int64)[:-1].tolist()
    return starts


def open_corpus(folder: Path, *, encoder: str | None = None, unfinished: str = "run the same command again") -> EncodedCorpus:
    """Open a finished corpus.

    encoder: the hash that its encoder must have. unfinished: what to do with an unfinished one, for the message.

    Raises:
        Damaged: see :class:`EncodedCorpus`.
        PolarError: the encoding has not finished, or another encoder made the corpus.
    """
    if not (folder / NAME).exists() and is_encoded(folder):
        raise PolarError(f"{folder}: polar encode has not finished here (no {NAME}); {unfinished}")
    corpus = EncodedCorpus(folder)
    if encoder is not None and corpus.encoder != encoder:
        raise PolarError(
            f"{folder}: it was encoded by another encoder (hash {corpus.encoder}) than the model's (hash {encoder}); encode it "
            "with this model"
        )
    return corpus


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a finished corpus, as the index holds them."""
    settings: dict[str, Any] = read_sealed(folder / NAME)["settings"]
    return settings

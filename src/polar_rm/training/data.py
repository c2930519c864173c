"""Comparisons encoded once into a memory-mapped Arrow file, so that memory does not grow with the corpus."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from polar_rm.common.files import read_json, sha256, write_json
from polar_rm.common.iteration import windows
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import PolarError
from polar_rm.records import OnBadRow, read_comparisons

_ROWS_PER_BATCH = 512  # of the Arrow file; also how many comparisons are tokenised together

_SCHEMA = pa.schema(
    {
        "prefix": pa.list_(pa.int32()),
        "branches": pa.list_(pa.list_(pa.int32())),
        "ranks": pa.list_(pa.int32()),
        "truncated": pa.bool_(),
    }
)


@dataclass(frozen=True)
class CorpusStats:
    """What the plan of a run says about its data. Tokens are those computed, with shared prefixes counted once.

    longest: tokens of a whole tree. longest_sequence: of a prefix and one branch, which is how far positions go.
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
    """Random access to encoded comparisons. ``lengths``: int32 [n], tokens of each tree."""

    def __init__(self, path: Path, sources: Sequence[tuple[str, int]], digest: str) -> None:
        self.path = path
        self.digest = digest
        self._names = [name for name, _ in sources]
        self._starts = np.cumsum([0] + [count for _, count in sources])[:-1].tolist()
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        columns = [self._columns(self._reader.get_batch(i)) for i in range(self._reader.num_record_batches)]
        self.lengths: np.ndarray = np.concatenate([lengths for lengths, _, _ in columns])
        comparisons, pairs, candidates, tokens, separate, truncated = np.sum([sums for _, _, sums in columns], axis=0).tolist()
        longest, longest_sequence = int(self.lengths.max()), max(each for _, each, _ in columns)
        self.stats = CorpusStats(comparisons, pairs, candidates, tokens, separate, truncated, longest, longest_sequence)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> PrefixTree:
        batch, row = divmod(int(index), _ROWS_PER_BATCH)
        values = self._reader.get_batch(batch).slice(row, 1).to_pylist()[0]
        return PrefixTree(values["prefix"], values["branches"], tuple(values["ranks"]))

    def describe(self, index: int) -> str:
        """Where a comparison came from, for error messages."""
        source = bisect_right(self._starts, index) - 1
        return f"{self._names[source]}: comparison {index - self._starts[source] + 1}"

    @staticmethod
    def _columns(batch: pa.RecordBatch) -> tuple[np.ndarray, int, list[int]]:
        prefix = _list_lengths(batch["prefix"])
        per_tree = batch["branches"].offsets.to_numpy()
        branches = _list_lengths(batch["branches"].values)
        own = np.add.reduceat(branches, per_tree[:-1])
        ranks = batch["ranks"].values.to_numpy()
        pairs = sum(int((tree[:, None] < tree[None]).sum()) for tree in np.split(ranks, per_tree[1:-1]))
        lengths = prefix + own
        longest = int((prefix + np.maximum.reduceat(branches, per_tree[:-1])).max())
        separate = int((prefix * np.diff(per_tree)).sum() + own.sum())
        truncated = batch["truncated"].to_numpy(zero_copy_only=False).sum()
        return lengths, longest, [len(lengths), pairs, len(ranks), int(lengths.sum()), separate, int(truncated)]


def encode_corpus(
    paths: Sequence[Path],
    encoder: Encoder,
    folder: Path,
    *,
    on_bad_row: OnBadRow | None = None,
    empty_reference: bool = False,
    progress: Callable[[int], None] = lambda n: None,
) -> EncodedCorpus:
    """Encode files of comparisons into ``folder``, or open what an earlier run with the same input and encoder left there.

    on_bad_row: its count and side file are afterwards those of the encoding, be it an earlier run's. empty_reference: train
    without references (the paper's "w/o reference" ablation). progress: called with comparisons done.

    Raises:
        BadRow: a row is no comparison (unless it is skipped). PolarError: an earlier run skipped bad rows that this one must not
            skip; a file holds no comparisons, or a comparison has no reference.
    """
    inputs = [sha256(path) for path in paths]
    digest = hashlib.sha256(json.dumps([inputs, encoder.hash, empty_reference]).encode()).hexdigest()[:16]
    target = folder / f"{digest}.arrow"
    index = target.with_suffix(".index.json")
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        counts = _encode(paths, encoder, target, on_bad_row, empty_reference, progress)
        sources = [[str(path), count] for path, count in zip(paths, counts, strict=True)]
        rejected, side_file = (on_bad_row.count, on_bad_row.side_file) if on_bad_row else (0, None)
        write_json(index, {"sources": sources, "rejected": rejected, "side_file": side_file})
    saved = read_json(index)
    if saved["rejected"] and (on_bad_row is None or on_bad_row.mode == "error"):
        raise PolarError(
            f"{', '.join(map(str, paths))}: an earlier run skipped {saved['rejected']} bad rows, see {saved['side_file']}; mend "
            "them, or go on without them by data.on_bad_row=skip"
        )
    if on_bad_row:
        on_bad_row.count, on_bad_row.side_file = saved["rejected"], saved["side_file"]
    return EncodedCorpus(target, saved["sources"], digest)


def _encode(
    paths: Sequence[Path],
    encoder: Encoder,
    target: Path,
    on_bad_row: OnBadRow | None,
    empty_reference: bool,
    progress: Callable[[int], None],
) -> list[int]:
    counts = [0] * len(paths)
    trees: list[PrefixTree] = []
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        # Every batch but the last is full, across files too, so that an index is found by division.
        for number, path in enumerate(paths):
            for window in windows(read_comparisons(path, on_bad_row), _ROWS_PER_BATCH):
                if empty_reference:
                    window = [replace(comparison, reference="") for comparison in window]
                for offset, comparison in enumerate(window):
                    if comparison.reference is None:
                        raise PolarError(
                            f"{path}: comparison {counts[number] + offset + 1} has no reference; "
                            "data.reference=empty trains without references"
                        )
                trees += encoder.encode_many(window)
                counts[number] += len(window)
                while len(trees) >= _ROWS_PER_BATCH:
                    writer.write_batch(_batch(trees[:_ROWS_PER_BATCH]))
                    trees = trees[_ROWS_PER_BATCH:]
                progress(sum(counts))
        if trees:
            writer.write_batch(_batch(trees))
    if not sum(counts):
        raise PolarError(f"{', '.join(map(str, paths))}: no comparisons")
    return counts


def _batch(trees: Sequence[PrefixTree]) -> pa.RecordBatch:
    rows = [
        {"prefix": tree.prefix, "branches": tree.branches, "ranks": tree.ranks, "truncated": bool(tree.truncation)}
        for tree in trees
    ]
    return pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)


def _list_lengths(column: pa.ListArray) -> np.ndarray:
    lengths: np.ndarray = np.diff(column.offsets.to_numpy()).astype(np.int32)
    return lengths

"""Encoded comparisons in a memory-mapped Arrow file, which is written once, so that memory does not grow with the corpus."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polar_rm.common.checksums import check_files, describe_files, read_sealed, write_sealed
from polar_rm.common.files import disk_refusal, sha256, sync, temporary_path
from polar_rm.common.iteration import windows
from polar_rm.common.progress import Progress, silent
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import Damaged, PolarError
from polar_rm.records import Comparison, OnBadRow, read_comparisons, survey_files

_ROWS_PER_BATCH = 512  # of the Arrow file; also the number of comparisons that are tokenised together

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
    """Random access to encoded comparisons.

    lengths: int32 [n], tokens of each tree. inputs: path of every file that was read -> SHA-256, computed before it was read.
    rejected, side_file: the number of skipped bad rows, and the file that holds them. notes: see
    :class:`~polar_rm.records.OnBadRow`.
    """

    def __init__(self, path: Path, index: Mapping[str, Any], digest: str) -> None:
        """Open an Arrow file. index: the index that :func:`encode_corpus` wrote for it."""
        self.path = path
        self.digest = digest
        sources: list[tuple[str, int]] = index["sources"]
        self.inputs: dict[str, str] = index["inputs"]
        self.rejected: int = index["rejected"]
        self.side_file: str | None = index["side_file"]
        self.notes = {text: (int(count), str(first)) for text, (count, first) in index.get("notes", {}).items()}
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
        """The file and number of a comparison, for error messages."""
        source = bisect_right(self._starts, index) - 1
        return f"{self._names[source]}: comparison {index - self._starts[source] + 1}"

    @staticmethod
    def _columns(batch: pa.RecordBatch) -> tuple[np.ndarray, int, list[int]]:
        prefix = _list_lengths(batch["prefix"])
        """The lengths of a batch's trees, the longest sequence, and sums for :class:`CorpusStats`."""
        offsets = batch["branches"].offsets.to_numpy()
        branches = _list_lengths(batch["branches"].values)
        branch_tokens = np.add.reduceat(branches, offsets[:-1])
        ranks = batch["ranks"].values.to_numpy()
        pairs = sum(int((tree[:, None] < tree[None]).sum()) for tree in np.split(ranks, offsets[1:-1]))
        lengths = prefix + branch_tokens
        longest = int((prefix + np.maximum.reduceat(branches, offsets[:-1])).max())
        separate = int((prefix * np.diff(offsets)).sum() + branch_tokens.sum())
        truncated = batch["truncated"].to_numpy(zero_copy_only=False).sum()
        return lengths, longest, [len(lengths), pairs, len(ranks), int(lengths.sum()), separate, int(truncated)]


def encode_corpus(
    paths: Sequence[Path],
    encoder: Encoder,
    folder: Path,
    *,
    on_bad_row: OnBadRow | None = None,
    empty_reference: bool = False,
    outputs: Sequence[Path] = (),
    progress: Progress = silent,
    report: Callable[[str], None] = lambda message: None,
) -> EncodedCorpus:
    """Encode files of comparisons into ``folder``, or open the data that an earlier run with the same input and encoder wrote.

    paths: files, folders or patterns. on_bad_row: afterwards it has the count, notes and side file of the encoding, even of an
    earlier run's. empty_reference: train without references (the paper's "w/o reference" ablation). outputs: files and folders
    that the run writes; they are refused as data. progress: of the task ``encoding``, in comparisons. report: called with a
    message if the data of an earlier run is damaged; it is then encoded again.

    Raises:
        BadRow: a row is not a comparison, and bad rows are not skipped.
        PolarError: an earlier run skipped bad rows, which this run must not; a file holds no comparisons, or changed while it was
            read; a comparison has no reference.
    """
    files = survey_files(paths, outputs).files
    stamps = [_stamp(file) for file in files]
    inputs = {str(file): sha256(file) for file in files}
    content = [inputs[str(file)] for file in files]
    stripped = ["strip_prompt"] if on_bad_row and on_bad_row.strip_prompt else []
    digest = hashlib.sha256(json.dumps([content, encoder.hash, empty_reference, *stripped]).encode()).hexdigest()[:16]
    corpus = None
    if _index_path(folder, digest).exists():
        try:
            corpus = open_corpus(folder, digest, full=True)
        except Damaged as error:
            report(f"{error}; the data is encoded again")
    if corpus is not None and corpus.inputs != inputs:
        _rename_sources(folder, digest, files, inputs)
        corpus = open_corpus(folder, digest)
    if corpus is None:
        counts = _encode(files, encoder, folder / f"{digest}.arrow", on_bad_row, empty_reference, progress)
        if changed := [file for file, stamp in zip(files, stamps, strict=True) if _stamp(file) != stamp]:
            raise PolarError(f"{changed[0]}: it changed while it was read; run the same command again")
        index = {
            "files": describe_files(folder, [f"{digest}.arrow"]),
            "sources": [[str(file), count] for file, count in zip(files, counts, strict=True)],
            "inputs": inputs,
            "rejected": on_bad_row.count if on_bad_row else 0,
            "side_file": str(on_bad_row.side_file) if on_bad_row else None,
            "notes": on_bad_row.notes if on_bad_row else {},
        }
        write_sealed(_index_path(folder, digest), index)
        corpus = open_corpus(folder, digest)
    if corpus.rejected and (on_bad_row is None or on_bad_row.mode == "error"):
        raise PolarError(
            f"{', '.join(map(str, paths))}: an earlier run skipped {corpus.rejected} bad rows, see {corpus.side_file}; fix "
            "them, or continue without them by on_bad_row=skip"
        )
    if on_bad_row:
        on_bad_row.count, on_bad_row.side_file, on_bad_row.notes = corpus.rejected, corpus.side_file, corpus.notes
    return corpus


def open_corpus(folder: Path, digest: str, *, full: bool = False) -> EncodedCorpus:
    """Open the data that :func:`encode_corpus` wrote into ``folder``. full: compare checksums, not only sizes.

    Raises:
        Damaged: the index or the data is missing, or not what was written.
    """
    index = read_sealed(_index_path(folder, digest))
    check_files(folder, index["files"], full=full)
    return EncodedCorpus(folder / f"{digest}.arrow", index, digest)


def _rename_sources(folder: Path, digest: str, files: Sequence[Path], inputs: Mapping[str, str]) -> None:
    """Write the current names into the index of data that was encoded from the same content under other names.

    Messages, on all ranks, then name files that exist.
    """
    index = read_sealed(_index_path(folder, digest))
    counts = [count for _, count in index["sources"]]
    sources = [[str(file), count] for file, count in zip(files, counts, strict=True)]
    write_sealed(_index_path(folder, digest), {**index, "sources": sources, "inputs": inputs})


def _index_path(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.index.json"


def _stamp(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_size, state.st_mtime_ns


def _encode(
    files: Sequence[Path],
    encoder: Encoder,
    target: Path,
    on_bad_row: OnBadRow | None,
    empty_reference: bool,
    progress: Progress,
) -> list[int]:
    """Write the Arrow file, under a temporary name until it is complete and on the disk; returns the comparisons of each file."""
    counts = [0] * len(files)
    partial = temporary_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            # Every batch but the last is full, also across files, so that a comparison is found by division.
            trees: list[PrefixTree] = []
            for number, file in enumerate(files):
                for window in windows(read_comparisons(file, on_bad_row), _ROWS_PER_BATCH):
                    trees += _trees(window, file, counts[number], encoder, empty_reference)
                    counts[number] += len(window)
                    while len(trees) >= _ROWS_PER_BATCH:
                        writer.write_batch(_batch(trees[:_ROWS_PER_BATCH]))
                        trees = trees[_ROWS_PER_BATCH:]
                    progress("encoding", sum(counts), None)
            if trees:
                writer.write_batch(_batch(trees))
        if not sum(counts):
            raise PolarError(f"{', '.join(map(str, files))}: no comparisons")
        sync(partial)
        partial.replace(target)
        sync(target.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and (refusal := disk_refusal(error, target)):
            raise PolarError(f"{target}: could not be written: {refusal}") from error
        raise
    return counts


def _trees(window: list[Comparison], file: Path, n_before: int, encoder: Encoder, empty_reference: bool) -> list[PrefixTree]:
    if empty_reference:
        window = [replace(comparison, reference="") for comparison in window]
    for number, comparison in enumerate(window, n_before + 1):
        if comparison.reference is None:
            raise PolarError(f"{file}: comparison {number} has no reference; data.reference=empty trains without references")
    return encoder.encode_many(window)


def _batch(trees: Sequence[PrefixTree]) -> pa.RecordBatch:
    rows = [
        {"prefix": tree.prefix, "branches": tree.branches, "ranks": tree.ranks, "truncated": bool(tree.truncation)}
        for tree in trees
    ]
    return pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)


def _list_lengths(column: pa.ListArray) -> np.ndarray:
    lengths: np.ndarray = np.diff(column.offsets.to_numpy()).astype(np.int32)
    return lengths

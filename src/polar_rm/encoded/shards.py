"""Encoding of one shard, by any process on any machine that sees the folder. It never depends on who else encodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from polar_rm.common.checksums import check_files, describe_file, read_sealed, write_sealed
from polar_rm.common.files import atomic_file, write_file
from polar_rm.common.iteration import windows
from polar_rm.common.locks import owned
from polar_rm.common.manifests import NAME
from polar_rm.encoded.format import NUMBERS, ROWS_PER_BATCH, SCHEMA, Rows, shard_name, to_batch, work_path
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import BadRow, Damaged, InUse, PolarError
from polar_rm.records import Comparison, FilePart, OnBadRow, read_numbered_comparisons, reference_hint, to_row


@dataclass(frozen=True, slots=True)
class Job:
    """What all tasks of an encoding share; task n is shard n, which is part n of the input.

    identity: hash of everything that decides the shards. stamps: size and time of change of every file, before it was hashed.
    tokenizer: the encoder's, as JSON. threads: tokenise on all cores, because this task is the only one.
    """

    folder: Path
    identity: str
    parts: tuple[FilePart, ...]
    stamps: dict[Path, tuple[int, int]]
    tokenizer: str
    settings: EncoderSettings
    empty_reference: bool
    strip_prompt: bool
    skip_bad_rows: bool
    threads: bool = False


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of change of a file, by which a change while it is read is noticed."""
    state = file.stat()
    return state.st_size, state.st_mtime_ns


def finished(job: Job, number: int, *, full: bool = False) -> dict[str, Any] | None:
    """The facts of a finished shard; None if it is not finished, or not what was written. full: compare contents, too."""
    try:
        facts = read_sealed(work_path(job.folder, number, ".json"))
        if facts["identity"] != job.identity:
            return None
        check_files(job.folder, facts["files"], full=full)
    except Damaged:
        return None
    return facts


def encode_shard(job: Job, number: int) -> None:
    """Encode a shard, unless it is finished or another process is at it; the caller looks which of these it was.

    Raises:
        BadRow: a row is bad, and bad rows are not skipped.
        PolarError: a comparison has no reference, or a file changed while it was read.
    """
    if (job.folder / NAME).exists() or finished(job, number):
        return
    try:
        with owned(job.folder / shard_name(number), "encode"), _threads(job.threads):
            # Another process may have finished it meanwhile, and the whole corpus, too, which removes the facts.
            if not finished(job, number) and not (job.folder / NAME).exists():
                write_shard(job, number)
    except InUse:
        return


def write_shard(job: Job, number: int) -> dict[str, Any]:
    """Write the shard, then the numbers of its trees, and when both are complete the facts, which it returns."""
    part, target = job.parts[number], job.folder / shard_name(number)
    bad = OnBadRow(
        "skip" if job.skip_bad_rows else "error", work_path(job.folder, number, ".refused"), strip_prompt=job.strip_prompt
    )
    work_path(job.folder, number, "").parent.mkdir(parents=True, exist_ok=True)
    sums = np.zeros(2, np.int64)  # separate tokens, truncated trees
    longest_sequence, numbers = 0, [np.zeros((0, len(NUMBERS)), np.uint32)]
    with atomic_file(target) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for trees in _batches_of_trees(job, part, bad):
            batch = to_batch(trees)
            rows = Rows(batch)
            numbers.append(rows.numbers())
            separate = [rows.separate(row) for row in range(len(rows))]
            sums += sum(total for total, _ in separate), rows.n_truncated()
            longest_sequence = max(longest_sequence, *(longest for _, longest in separate))
            writer.write_batch(batch)
    if stamp(part.path) != job.stamps[part.path]:
        target.unlink()
        raise PolarError(f"{part.path}: it changed while it was read; run the same command again")
    table = np.concatenate(numbers)
    write_file(work_path(job.folder, number, ".bin"), table.tobytes())
    totals = table.sum(axis=0, dtype=np.int64).tolist() if len(table) else [0] * len(NUMBERS)
    names = (shard_name(number), str(work_path(job.folder, number, ".bin").relative_to(job.folder)))
    facts = {
        "identity": job.identity,
        "files": {name: describe_file(job.folder / name) for name in names},
        "comparisons": len(table),
        **dict(zip(NUMBERS[:3], totals, strict=False)),
        "separate_tokens": int(sums[0]),
        "truncated": int(sums[1]),
        "longest": int(table[:, 0].max(initial=0)),
        "longest_sequence": longest_sequence,
        "rejected": bad.count,
        "notes": bad.notes,
    }
    write_sealed(work_path(job.folder, number, ".json"), facts)
    return facts


def _batches_of_trees(job: Job, part: FilePart, bad: OnBadRow) -> Iterator[list[PrefixTree]]:
    """All trees of a part in full batches. Rows that are refused leave no gaps."""
    encoder = _encoder(job.tokenizer, job.settings)
    trees: list[PrefixTree] = []
    for window in windows(read_numbered_comparisons(part, bad), ROWS_PER_BATCH):
        trees += encode_rows(window, part.path, encoder, bad, empty_reference=job.empty_reference)
        if len(trees) >= ROWS_PER_BATCH:
            yield trees[:ROWS_PER_BATCH]
            trees = trees[ROWS_PER_BATCH:]
    if trees:
        yield trees


def encode_rows(
    window: list[tuple[int, Comparison]], path: Path, encoder: Encoder, bad: OnBadRow, *, empty_reference: bool
) -> list[PrefixTree]:
    """The trees of numbered comparisons. A comparison that can't be encoded is a bad row.

    Raises:
        PolarError: one has no reference.
    """
    if empty_reference:
        window = [(number, replace(comparison, reference="")) for number, comparison in window]
    for number, comparison in window:
        if comparison.reference is None:
            hint = reference_hint(comparison.metadata)
            raise PolarError(f"{path}: row {number} has no reference{hint}; data.reference=empty trains without references")
    try:
        return encoder.encode_many([comparison for _, comparison in window])
    except PolarError:
        trees = []
        for number, comparison in window:
            try:
                trees.append(encoder.encode(comparison))
            except PolarError as error:
                bad.refuse(BadRow(str(path), number, "", f"texts that can be encoded, but {error}"), to_row(comparison))
        return trees


@lru_cache(1)
def _encoder(tokenizer: str, settings: EncoderSettings) -> Encoder:
    """The encoder of a worker process, made once."""
    return Encoder(Tokenizer.from_str(tokenizer), settings)


@contextmanager
def _threads(on: bool) -> Iterator[None]:
    """Tokenise on all cores, or on one: with a process for every core more threads only get in each other's way."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true" if on else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

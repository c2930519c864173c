"""Making of an encoded corpus: by all cores of this machine, by Ray, and by several commands at once on one folder.

A part of the input becomes a shard. The parts depend on the input and ``part_bytes`` alone, and a shard on its part alone, so
that neither workers nor engines nor interruptions change a byte. Shards are claimed by locks that the kernel releases when their
owner dies; whoever finds all shards finished writes the index.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from polar_rm.common.checksums import check_files, describe_file, read_sealed, write_sealed
from polar_rm.common.engines import Engine, run_tasks
from polar_rm.common.files import atomic_file, claim_folder, differences, is_claimed
from polar_rm.common.locks import is_owned, owned_soon
from polar_rm.common.manifests import NAME
from polar_rm.common.outputs import FOUND, output_line
from polar_rm.common.progress import Progress, silent
from polar_rm.common.provenance import versions
from polar_rm.encoded.corpus import EncodedCorpus, open_corpus
from polar_rm.encoded.format import NUMBER, NUMBERS, NUMBERS_FILE, SCHEMA_NAME, shard_name, work_path
from polar_rm.encoded.shards import Job, encode_shard, finished, stamp
from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import Damaged, MachineFailure, PolarError
from polar_rm.records import FilePart, OnBadRow, divide_file

MIB = 1 << 20
_SMALLEST_PART, _LARGEST_PART, _USUAL_PARTS = 4 * MIB, 256 * MIB, 256
_READERS = 8  # files that are hashed at once
_POLL_S = 0.5
_HOLDS = "an encoded corpus"
_SUMS = ("comparisons", "pairs", "candidates", "tokens", "separate_tokens", "truncated")


@dataclass(frozen=True, slots=True)
class Survey:
    """The input of an encoding. inputs: file -> SHA-256. parts: one for each shard, in the order of the comparisons. parts_of:
    the number of parts of each file."""

    files: tuple[Path, ...]
    inputs: dict[str, str]
    parts: tuple[FilePart, ...]
    parts_of: tuple[int, ...]
    stamps: dict[Path, tuple[int, int]]
    part_bytes: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the input, uncompressed in Parquet."""
        return sum(part.n_bytes for part in self.parts)


def survey_input(files: Sequence[Path], shard_mib: int | None = None) -> Survey:
    """Hash the files and divide them into parts.

    shard_mib: MiB of input that become a shard; by default a 256th of the files, but at least 4 and at most 256.

    Raises:
        PolarError: a file can't be read.
    """
    stamps = {file: stamp(file) for file in files}
    size = sum(n_bytes for n_bytes, _ in stamps.values())
    part_bytes = shard_mib * MIB if shard_mib else min(max(size // _USUAL_PARTS, _SMALLEST_PART), _LARGEST_PART)
    with ThreadPoolExecutor(_READERS) as pool:
        divided = list(pool.map(lambda file: divide_file(file, part_bytes), files))
    inputs = {str(file): digest for file, (digest, _) in zip(files, divided, strict=True)}
    parts = tuple(part for _, parts in divided for part in parts)
    return Survey(tuple(files), inputs, parts, tuple(len(parts) for _, parts in divided), stamps, part_bytes)


@dataclass(frozen=True)
class Encoding:
    """One run. side_file: where refused rows are collected. verify: compare the contents of finished shards, not only sizes."""

    survey: Survey
    encoder: Encoder
    folder: Path
    side_file: Path
    reference: str = "given"
    strip_prompt: bool = False
    skip_bad_rows: bool = False
    engine: Engine = "local"
    workers: int | None = None
    verify: bool = False
    progress: Progress = silent
    report: Callable[[str], None] = field(default=lambda message: None)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the shards, besides the names of the files."""
        content = [self.survey.inputs[str(file)] for file in self.survey.files]
        return {
            "encoder": self.encoder.hash,
            "reference": self.reference,
            "strip_prompt": self.strip_prompt,
            "inputs": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
            "shard_bytes": self.survey.part_bytes,
        }

    @property
    def job(self) -> Job:
        """The job of all workers."""
        identity = hashlib.sha256(json.dumps(self.settings).encode()).hexdigest()
        survey, settings = self.survey, self.encoder.settings
        return Job(
            self.folder,
            identity,
            survey.parts,
            survey.stamps,
            self.encoder.source.to_str(),
            settings,
            empty_reference=self.reference == "empty",
            strip_prompt=self.strip_prompt,
            skip_bad_rows=self.skip_bad_rows,
        )


def encode_folder(run: Encoding) -> EncodedCorpus:
    """Encode the missing shards and write the index; returns the opened corpus. A finished folder is only checked.

    Raises:
        PolarError: a row is bad, and bad rows are not skipped; the folder holds another corpus; the input changed meanwhile, or
            holds no comparisons.
        MachineFailure: the disk is full, or workers died several times in a row; the same call continues.
    """
    claim_folder(run.folder, _claim(run), _HOLDS)
    job = run.job
    if (run.folder / NAME).exists() and not _index_is_good(run):
        (run.folder / NAME).unlink()
    if not (run.folder / NAME).exists():
        _encode_missing(run, job, [n for n in range(len(job.parts)) if not finished(job, n, full=run.verify)])
        with owned_soon(run.folder / NAME, "encode", run.report):
            if not (run.folder / NAME).exists():
                _write_index(run, job)
    shutil.rmtree(run.folder / "work", ignore_errors=True)
    return open_corpus(run.folder)


def describe_output(run: Encoding) -> str:
    """A plan's line about the output folder: how many shards are missing. Only sizes are compared, and nothing is changed.

    Raises:
        PolarError: the folder holds another corpus, or something else.
    """
    if not is_claimed(run.folder, lambda: _claim(run), _HOLDS):
        return output_line(run.folder, FOUND["new"])
    if (run.folder / NAME).exists():
        return output_line(run.folder, FOUND["finished"])
    job = run.job
    missing = sum(not finished(job, number) for number in range(len(job.parts)))
    return output_line(run.folder, f"the run continues with the {missing:,} of {len(job.parts):,} shards that are missing")


def _claim(run: Encoding) -> dict[str, Any]:
    return {"schema": SCHEMA_NAME, **run.settings}


def check_bad_rows(corpus: EncodedCorpus, bad: OnBadRow | None, names: str) -> None:
    """Check that a run may use a corpus from which rows were skipped, and put their number, file and notes into ``bad``.

    names: of the data, for the message.

    Raises:
        PolarError: rows were skipped, which this run must not.
    """
    if corpus.rejected and (bad is None or bad.mode == "error"):
        raise PolarError(
            f"{names}: an earlier run skipped {corpus.rejected} bad rows, see {corpus.side_file}; fix them, or continue without "
            "them by on_bad_row=skip"
        )
    if bad:
        bad.count, bad.side_file, bad.notes = corpus.rejected, corpus.side_file, corpus.notes


def _index_is_good(run: Encoding) -> bool:
    """Whether a finished folder is as it was written. Damaged shards are encoded again; False if all has to be."""
    try:
        corpus = EncodedCorpus(run.folder)
        check_files(run.folder, {NUMBERS_FILE: corpus.files[NUMBERS_FILE]}, full=run.verify)
    except Damaged as error:
        run.report(f"{error}; the data is encoded again")
        return False
    if changed := differences(read_sealed(run.folder / NAME)["settings"], run.settings):
        raise PolarError(f"{run.folder}: it holds an encoded corpus of other settings ({changed}); use another output folder")
    damaged = []
    for number in range(len(corpus.shards)):
        try:
            corpus.check_shard(number, full=run.verify)
        except Damaged as error:
            run.report(f"{error}; the shard is encoded again")
            damaged.append(number)
    if damaged:
        return _repaired(run, corpus, damaged)
    return True


def _repaired(run: Encoding, corpus: EncodedCorpus, damaged: list[int]) -> bool:
    """Encode damaged shards again; True if they are what the index says, as with equal versions of Arrow they are."""
    with owned_soon(run.folder / NAME, "encode", run.report):
        # The shards are written into a folder beside, because the tasks pass a finished folder over.
        beside = run.folder / "repair"
        job = replace(run.job, folder=beside)
        _encode_missing(run, job, damaged)
        same = True
        for number in damaged:
            name = shard_name(number)
            (beside / name).replace(run.folder / name)
            facts = corpus.files[name]
            if describe_file(run.folder / name) != {"bytes": facts["bytes"], "sha256": facts["sha256"]}:
                run.report(f"{run.folder / name}: this version of Arrow writes other bytes; the data is encoded again")
                same = False
        shutil.rmtree(beside)
    return same


def _encode_missing(run: Encoding, job: Job, numbers: Sequence[int]) -> None:
    """Encode shards until all are finished, by this command or by others."""
    missing = list(numbers)
    total = sum(part.n_bytes for part in job.parts)
    done = total - sum(job.parts[n].n_bytes for n in missing)
    comparisons, attempts = 0, 0

    def show() -> None:
        status = f"{len(job.parts) - len(missing)} of {len(job.parts)} shards, {comparisons:,} comparisons by this command"
        run.progress("encoding", done // MIB, max(1, total // MIB), status)

    show()
    while missing:
        alone = replace(job, threads=run.engine == "local" and run.workers is None and len(missing) == 1)
        before = len(missing)
        for number in run_tasks(encode_shard, alone, list(missing), engine=run.engine, workers=run.workers):
            if facts := finished(job, number):
                missing.remove(number)
                done += job.parts[number].n_bytes
                comparisons += facts["comparisons"]
                show()
        if (job.folder / NAME).exists():
            return  # another command has finished the corpus
        missing = [n for n in missing if not finished(job, n)]
        attempts = 0 if len(missing) < before else attempts + 1
        held = [n for n in missing if is_owned(job.folder / shard_name(n))]
        if missing and not held and attempts > 1:
            raise MachineFailure(
                f"{job.folder / shard_name(missing[0])}: its task has ended, but the shard is not there; do all workers see this "
                "folder?"
            )
        if missing and len(held) == len(missing):
            run.progress("encoding", done // MIB, max(1, total // MIB), f"waiting for {len(missing)} shards of other commands")
            time.sleep(_POLL_S)
            attempts = 0


def _write_index(run: Encoding, job: Job) -> None:
    """Collect what the tasks wrote about their shards, and write the index last.

    Raises:
        PolarError: a file changed while it was read, or there are no comparisons.
    """
    if changed := [file for file, before in job.stamps.items() if stamp(file) != before]:
        raise PolarError(f"{changed[0]}: it changed while it was read; run the same command again")
    facts = []
    for number in range(len(job.parts)):
        each = finished(job, number)
        if each is None:
            raise MachineFailure(f"{job.folder / shard_name(number)}: the shard is no longer there; run the same command again")
        facts.append(each)
    sums: dict[str, int] = {name: sum(each[name] for each in facts) for name in _SUMS}
    if not sums["comparisons"]:
        raise PolarError(f"{', '.join(map(str, run.survey.files))}: no comparisons")
    rejected = sum(each["rejected"] for each in facts)
    if rejected:
        _collect_refused(run, facts)
    lengths = _collect_numbers(run, facts)
    longest = {name: max(each[name] for each in facts) for name in ("longest", "longest_sequence")}
    remaining = iter(facts)
    counts = [sum(next(remaining)["comparisons"] for _ in range(n)) for n in run.survey.parts_of]
    kept = ("comparisons", "pairs", "tokens", "longest")
    shards = [
        {"file": name, **each["files"][name], **{key: each[key] for key in kept}}
        for name, each in ((shard_name(number), each) for number, each in enumerate(facts))
    ]
    content = [run.settings, sums, [each["sha256"] for each in shards]]
    index = {
        "schema": SCHEMA_NAME,
        "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
        "settings": run.settings,
        **versions(),
        "inputs": run.survey.inputs,
        "sources": [[str(file), count] for file, count in zip(run.survey.files, counts, strict=True)],
        "stats": {**sums, **longest},
        "lengths": lengths,
        "rejected": rejected,
        "side_file": str(run.side_file) if rejected else None,
        "notes": _notes(facts),
        "files": [{"file": NUMBERS_FILE, **describe_file(run.folder / NUMBERS_FILE)}, *shards],
    }
    write_sealed(run.folder / NAME, index)


def rename_inputs(corpus: EncodedCorpus, survey: Survey) -> EncodedCorpus:
    """The corpus with the current names of its files: messages, on all ranks, then name files that exist."""
    index = read_sealed(corpus.folder / NAME)
    counts = [count for _, count in index["sources"]]
    sources = [[str(file), count] for file, count in zip(survey.files, counts, strict=True)]
    write_sealed(corpus.folder / NAME, {**index, "sources": sources, "inputs": survey.inputs})
    return open_corpus(corpus.folder)


def _collect_refused(run: Encoding, facts: Sequence[dict[str, Any]]) -> None:
    """One side file with the refused rows of all shards, in the order of the input."""
    with atomic_file(run.side_file) as target:
        for number, each in enumerate(facts):
            if each["rejected"]:
                with work_path(run.folder, number, ".refused").open("rb") as rows:
                    shutil.copyfileobj(rows, target)


def _collect_numbers(run: Encoding, facts: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Write ``numbers.bin``; returns [length, number of trees] for every length of a tree."""
    lengths: dict[int, int] = {}
    with atomic_file(run.folder / NUMBERS_FILE) as target:
        for table in _tables(run.folder, facts):
            target.write(table.tobytes())
            for length, count in zip(*np.unique(table[:, 0], return_counts=True), strict=True):
                lengths[int(length)] = lengths.get(int(length), 0) + int(count)
    return [[length, lengths[length]] for length in sorted(lengths)]


def _tables(folder: Path, facts: Sequence[dict[str, Any]]) -> Iterator[np.ndarray]:
    for number, each in enumerate(facts):
        content = work_path(folder, number, ".bin").read_bytes()
        yield np.frombuffer(content, NUMBER).reshape(each["comparisons"], len(NUMBERS))


def _notes(facts: Sequence[dict[str, Any]]) -> dict[str, tuple[int, str]]:
    """Numbers of rows and the first row of each note, over all shards."""
    notes: dict[str, tuple[int, str]] = {}
    for each in facts:
        for text, (count, first) in each["notes"].items():
            before, earliest = notes.get(text, (0, first))
            notes[text] = before + count, earliest
    return notes

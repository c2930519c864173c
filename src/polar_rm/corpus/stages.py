"""The stages of a build, each of which runs a task for every part or bucket, and the lists that a build writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from polar_rm.common.engines import run_tasks
from polar_rm.common.files import write_file
from polar_rm.common.progress import Progress
from polar_rm.corpus.job import Job, Part
from polar_rm.corpus.results import BucketResult, PartResult, Refusal, TextsResult, ThinnedResult, load_result
from polar_rm.errors import MachineFailure

R = TypeVar("R", PartResult, TextsResult, BucketResult, ThinnedResult)


def run_stage(job: Job, name: str, work: Callable[[Job, int], None], kind: type[R], count: int, progress: Progress) -> list[R]:
    """Run the tasks without a ``work/NAME/NUMBER.json``; returns the results of all tasks in order.

    Raises:
        MachineFailure: workers were killed, or they don't see the output folder. PolarError: a task raised it.
    """
    missing = [number for number in range(count) if result_of(job, name, number, kind) is None]
    progress(name, count - len(missing), count)
    finished = run_tasks(work, job, missing, engine=job.config.engine, workers=job.config.workers)
    for n_done, _ in enumerate(finished, count - len(missing) + 1):
        progress(name, n_done, count)
    results = [result_of(job, name, number, kind) for number in range(count)]
    if any(result is None for result in results):
        raise MachineFailure(f"{job.work / name}: results of finished tasks are missing; do all workers see this folder?")
    return [result for result in results if result is not None]


def result_of(job: Job, name: str, number: int, kind: type[R]) -> R | None:
    """The result of a finished task; None if it is not finished."""
    result = load_result(kind, job.path(name, number, ".json"))
    if isinstance(result, PartResult) and result.source != job.parts[number].name:
        return None  # from an interrupted build with other parts
    return result


def lines_before(parts: Sequence[Part], results: Sequence[PartResult]) -> Iterator[int]:
    """For each part, the number of lines of its file before it; the parts of a file are consecutive."""
    total = 0
    for part, result in zip(parts, results, strict=True):
        total = total if part.start else 0
        yield total
        total += result.lines


def refused_rows(job: Job, buckets: Sequence[BucketResult]) -> Iterator[Refusal]:
    """The bad rows that all passes skipped, with their numbers in the inputs."""
    for number in range(len(job.parts)):
        path = job.path("parts", number, ".refused.jsonl")
        if path.exists():
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    row: Refusal = json.loads(line)
                    row["path"], row["row"] = str(job.parts[number].path), job.row(number, row["row"])
                    yield row
    yield from sorted((row for bucket in buckets for row in bucket.refused), key=lambda row: (row["path"], row["row"]))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

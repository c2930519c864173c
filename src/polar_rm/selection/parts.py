"""The first pass: the numbers of each input file, in a file of their own, so that an interrupted run reads no file twice."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polar_rm.common.checksums import check_files, describe_files, read_sealed, write_sealed
from polar_rm.common.engines import run_tasks
from polar_rm.common.files import atomic_file, full_disk_named
from polar_rm.common.progress import Progress
from polar_rm.errors import ConfigError, Damaged
from polar_rm.records import OnBadRow
from polar_rm.selection.candidates import read_scored
from polar_rm.selection.config import SelectConfig
from polar_rm.selection.table import PartBuilder, Table


@dataclass(frozen=True, slots=True)
class Job:
    """What the tasks of a run share.

    inputs: the files. scores: for each file the file of its scores, or None if the rows hold them. keys: for each file a hash of
    its content and of the settings that its numbers depend on. work: the folder of temporary files.
    """

    config: SelectConfig
    inputs: tuple[Path, ...]
    scores: tuple[Path | None, ...]
    keys: tuple[str, ...]
    work: Path

    def numbers(self, part: int) -> Path:
        """The file with the numbers of an input file."""
        return self.work / f"part-{part:05d}.npz"

    def facts(self, part: int) -> Path:
        """The file that says what :meth:`numbers` holds; it is written last."""
        return self.work / f"part-{part:05d}.json"

    def refused(self, part: int) -> Path:
        """The file with the refused rows of an input file."""
        return self.work / f"part-{part:05d}.rejected"


def read_part(job: Job, part: int) -> None:
    """Read an input file and write its numbers.

    Raises:
        PolarError: as in :func:`read_scored`, or the disk is full.
    """
    job.refused(part).unlink(missing_ok=True)
    bad = OnBadRow(job.config.on_bad_row, job.refused(part), strip_prompt=job.config.strip_prompt)
    builder = PartBuilder(job.config.near_duplicates)
    names: set[str] = set()
    n_rows = 0
    for number, row in read_scored(job.config, job.inputs[part], job.scores[part], bad):
        builder.add(number, row)
        names.add(row.score_name)
        n_rows += 1
    path = job.numbers(part)
    with atomic_file(path) as file:
        builder.save(file)
    facts = {
        "key": job.keys[part],
        "groups": builder.groups,
        "rows": n_rows,
        "candidates": len(builder),
        "refused": bad.count,
        "warnings": bad.warnings(),
        "score_names": sorted(names),
        "files": describe_files(job.work, [path.name, *([job.refused(part).name] if bad.count else [])]),
    }
    write_sealed(job.facts(part), facts)


def read_parts(job: Job, progress: Progress) -> tuple[Table, list[dict[str, Any]]]:
    """The table of all inputs, and the facts of each file. Files that have been read by an interrupted run are not read again.

    Raises:
        PolarError: as in :func:`read_part` and :meth:`Table.load`.
    """
    tasks = [part for part in range(len(job.inputs)) if _facts(job, part) is None]
    total = len(job.inputs)
    progress("reading files", total - len(tasks), total)
    for done, _ in enumerate(run_tasks(read_part, job, tasks, engine=job.config.engine, workers=job.config.workers), 1):
        progress("reading files", total - len(tasks) + done, total)
    facts = [read_sealed(job.facts(part)) for part in range(total)]
    names = sorted({name for each in facts for name in each["score_names"]})
    if len(names) > 1:
        raise ConfigError(f"some rows hold their score in {names[0]!r}, others in {names[1]!r}; set score to one of them")
    parts = [job.numbers(part) for part in range(total)]
    return Table.load(parts, [each["groups"] for each in facts], list(job.inputs)), facts


def _facts(job: Job, part: int) -> dict[str, Any] | None:
    """What an earlier run says about an input file; None if it has not finished it, or if file or settings have changed."""
    try:
        facts = read_sealed(job.facts(part))
        if facts["key"] != job.keys[part]:
            return None
        check_files(job.work, facts["files"], full=True)
    except Damaged:  # missing, or not what was written: the input is still there
        return None
    return facts


def join_refused(job: Job, path: Path, facts: Sequence[dict[str, Any]]) -> None:
    """Write the refused rows of all files into one file; without any there is no file."""
    parts = [job.refused(part) for part, each in enumerate(facts) if each["refused"]]
    path.unlink(missing_ok=True)
    if parts:
        with full_disk_named(path), atomic_file(path) as target:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target)

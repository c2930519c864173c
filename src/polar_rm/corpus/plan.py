"""The plan of a build: files, parts and buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.common.engines import check_workers
from polar_rm.common.manifests import check_manifest
from polar_rm.common.text import first_line
from polar_rm.corpus.config import Continuations, CorpusConfig
from polar_rm.corpus.job import Part
from polar_rm.corpus.partition import parquet_columns
from polar_rm.corpus.texts import text_columns
from polar_rm.errors import PolarError
from polar_rm.records import PLAIN_SUFFIXES, DataFiles, survey_files
from polar_rm.reporting.plots import require_plots

SCHEMA = "polar-rm/corpus/1"
_PART_BYTES = 64 << 20
_BUCKET_BYTES = 16 << 20
_MAX_BUCKETS = 4096


@dataclass(frozen=True, slots=True)
class CorpusPlan:
    """The plan of a build. rows: None if a file must be read to count its rows."""

    inputs: DataFiles
    rows: int | None
    n_bytes: int
    parts: tuple[Part, ...]
    n_buckets: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the inputs, each once."""
        return self.inputs.files


def make_plan(config: CorpusConfig) -> CorpusPlan:
    """Plan all tasks from the inputs' metadata; nothing is written.

    Raises:
        Damaged: an input that polar wrote differs from its manifest.
        PolarError: a file is missing or unreadable, or lacks the columns of trajectories or texts; far more workers than cores;
            the report could not be drawn at the end.
    """
    require_plots("the report of polar corpus")
    if config.engine == "local":
        check_workers(config.workers)
    for source in config.inputs:
        check_manifest(source, full=config.verify)
    inputs = input_files(config)
    parts: list[Part] = []
    rows: int | None = 0
    for file in inputs.files:
        if file.name.endswith(".parquet"):
            count = _add_parquet(file, parts, config)
            rows = None if rows is None else rows + count
        else:
            parts += _json_parts(file)
            rows = None
    n_bytes = sum(part.n_bytes for part in parts)
    return CorpusPlan(inputs, rows, n_bytes, tuple(parts), config.buckets or min(_MAX_BUCKETS, 1 + n_bytes // _BUCKET_BYTES))


def describe(config: CorpusConfig, plan: CorpusPlan) -> list[tuple[str, str]]:
    """The lines (name, value) of the plan for a user."""
    rows = "an unknown number of" if plan.rows is None else f"{plan.rows:,}"
    workers = f"{config.workers or 'all'} {'cores' if config.engine == 'local' else 'tasks of a Ray cluster'}"
    return [
        ("inputs", f"{rows} rows, {plan.n_bytes / 2**20:,.1f} MiB uncompressed, in {plan.inputs.describe()}"),
        ("first pass", f"{len(plan.parts):,} parts on {workers}"),
        ("second pass", f"{plan.n_buckets:,} buckets of about {plan.n_bytes / plan.n_buckets / 2**20:,.1f} MiB, a shard each"),
        ("disk", f"at most about {2 * plan.n_bytes / 2**20:,.0f} MiB in {config.output} during the build"),
    ]


def input_files(config: CorpusConfig) -> DataFiles:
    """The files that the inputs mean, each once.

    A folder of ``polar sample`` also has JSON lines, with its store and lists of errors. So if a folder has Parquet files, only
    these are its trajectories.
    """
    files: dict[Path, None] = {}
    left_out: Counter[str] = Counter()
    are_named = True
    for source in config.inputs:
        found = survey_files([source], [config.output], plain=PLAIN_SUFFIXES if _reads_texts(config) else ())
        tables = [file for file in found.files if file.name.endswith(".parquet")]
        read = tables if tables and Path(source).is_dir() else found.files
        files |= dict.fromkeys(read)
        left_out.update(found.left_out)
        if len(read) < len(found.files):
            left_out["beside Parquet files"] += len(found.files) - len(read)
        are_named = are_named and found.are_named
    return DataFiles(tuple(files), dict(left_out), are_named)


def _reads_texts(config: CorpusConfig) -> bool:
    return isinstance(config.pairing, Continuations) and config.pairing.rows == "texts"


def _json_parts(file: Path) -> Iterator[Part]:
    """Divide a file of JSON lines into ranges of bytes, so that all cores share a large file; a compressed file is one part."""
    size = file.stat().st_size
    if size <= _PART_BYTES or not file.name.lower().endswith((".jsonl", ".ndjson")):
        yield Part(file, None, 1, size)
        return
    for start in range(0, size, _PART_BYTES):
        stop = start + _PART_BYTES
        yield Part(file, None, 1, min(stop, size) - start, start, stop if stop < size else None)


def _add_parquet(file: Path, parts: list[Part], config: CorpusConfig) -> int:
    """Divide a file into parts of whole row groups; returns its rows."""
    try:
        with pq.ParquetFile(file) as opened:
            if _reads_texts(config):
                text_columns(file, opened.schema_arrow, config.of_continuations.column)
            else:
                parquet_columns(file, opened.schema_arrow)
            metadata = opened.metadata
            sizes = [
                (metadata.row_group(i).num_rows, metadata.row_group(i).total_byte_size) for i in range(metadata.num_row_groups)
            ]
    except (OSError, pa.ArrowException) as error:
        raise PolarError(f"{file}: not a complete Parquet file: {first_line(error)}") from error
    if not sum(rows for rows, _ in sizes):
        raise PolarError(f"{file}: it is empty: there are no rows")
    first = row = 1
    groups: list[int] = []
    group_bytes = 0
    for group, (rows, n_bytes) in enumerate(sizes):
        groups.append(group)
        group_bytes += n_bytes
        row += rows
        if group_bytes >= _PART_BYTES or group == len(sizes) - 1:
            parts.append(Part(file, tuple(groups), first, group_bytes))
            groups, group_bytes, first = [], 0, row
    return row - 1

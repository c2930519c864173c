"""``polar encode``: comparisons to an encoded corpus, before and apart from training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from polar_rm.common.engines import check_workers
from polar_rm.common.manifests import check_manifest
from polar_rm.common.progress import Progress, silent
from polar_rm.encoded.build import MIB, Encoding, Survey, check_bad_rows, describe_output, encode_folder, survey_input
from polar_rm.encoded.corpus import EncodedCorpus
from polar_rm.encoding.encoder import Encoder
from polar_rm.records import FilePart, OnBadRow, count_rows, read_comparisons, side_file, survey_files
from polar_rm.training.encode_config import EncodeConfig
from polar_rm.training.prepare import read_blueprint

_SAMPLED_PARTS, _SAMPLED_ROWS = 4, 64


@dataclass(frozen=True, slots=True)
class EncodePlan:
    """The plan of an encoding.

    bytes: of the input. undivided: files of more than a shard that can't be divided. tokens, disk_bytes, core_seconds: estimates
    from a sample of the rows. output: what the command finds in its output folder.
    """

    files: int
    bytes: int
    shards: int
    undivided: tuple[str, ...]
    encoder: str
    tokens: int
    disk_bytes: int
    core_seconds: float
    output: str

    def describe(self) -> list[tuple[str, str]]:
        """The lines (name, value) for a user."""
        lines = [
            ("input", f"{self.files:,} files, {self.bytes / MIB:,.1f} MiB"),
            ("shards", f"{self.shards:,} of about {self.bytes / MIB / max(1, self.shards):,.1f} MiB of input"),
            ("encoder", self.encoder),
            ("tokens", f"about {self.tokens:,}, {self.disk_bytes / MIB:,.0f} MiB on the disk"),
            ("time", f"about {self.core_seconds / 3600:.2f} hours of one core"),
        ]
        notes = [("note", f"{name} can't be divided: one process encodes it") for name in self.undivided[:3]]
        return [*lines, *notes, ("output", self.output)]


def plan_encoding(config: EncodeConfig) -> EncodePlan:
    """Count files and shards, and encode a sample of the rows for an estimate. Nothing is written.

    Raises:
        PolarError: the input or the model can't be read, a sampled row is bad, or the output folder holds something else.
    """
    survey = _survey(config)
    encoder = read_blueprint(config).encoder
    output = describe_output(_encoding(config, survey, encoder))
    parts = [part for part in survey.parts if part.n_bytes] or list(survey.parts)
    rows = n_bytes = tokens = disk = 0
    start = time.process_time()
    for part in parts[:: max(1, len(parts) // _SAMPLED_PARTS)][:_SAMPLED_PARTS]:
        sampled, read, encoded, stored = _sample(part, encoder, config)
        rows, n_bytes, tokens, disk = rows + sampled, n_bytes + read, tokens + encoded, disk + stored
    counts = [count_rows(path) for path in dict.fromkeys(part.path for part in parts)]
    known = [count for count in counts if count is not None]
    # Bytes of a file also hold names of fields and what is not encoded: they are too many, but all that some formats tell.
    factor = sum(known) / max(1, rows) if len(known) == len(counts) else survey.n_bytes / max(1, n_bytes)
    seconds = time.process_time() - start
    undivided = tuple(str(part.path) for part in survey.parts if not part.is_slice and part.n_bytes > 2 * survey.part_bytes)
    return EncodePlan(
        len(survey.files),
        survey.n_bytes,
        len(survey.parts),
        undivided,
        encoder.hash,
        int(tokens * factor),
        int(disk * factor),
        seconds * factor,
        output,
    )


def _sample(part: FilePart, encoder: Encoder, config: EncodeConfig) -> tuple[int, int, int, int]:
    """Number, bytes of text, tokens and bytes on the disk of the first rows of a part."""
    bad = OnBadRow("error", strip_prompt=config.strip_prompt)
    rows = list(islice(read_comparisons(part, bad), _SAMPLED_ROWS))
    trees = encoder.encode_many(rows if config.reference == "given" else [replace(row, reference="") for row in rows])
    n_bytes = sum(
        len(str(each).encode(errors="replace")) for row in rows for each in (row.prompt, row.reference, *row.candidates)
    )
    tokens = sum(tree.n_tokens for tree in trees)
    return len(rows), n_bytes, tokens, 4 * tokens + 40 * len(trees) + 12 * sum(len(tree.ranks) for tree in trees)


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """The result of ``polar encode``. seconds: of this command. bad_rows: of all commands on this output."""

    output: str
    digest: str
    encoder: str
    shards: int
    stats: dict[str, int]
    bad_rows: int
    side_file: str | None
    seconds: float
    warnings: tuple[str, ...]

    def describe(self) -> str:
        """A line for the terminal."""
        stats = self.stats
        return (
            f"{stats['comparisons']:,} comparisons, {stats['pairs']:,} pairs, {stats['tokens']:,} tokens in "
            f"{self.shards:,} shards of {self.output}"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def encode(
    config: EncodeConfig,
    progress: Progress = silent,
    *,
    verify: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> EncodeReport:
    """Encode a corpus, continue an interrupted encoding, or check a finished one. verify: compare contents, not only sizes.

    Raises:
        PolarError: see :func:`polar_rm.encoded.build.encode_folder`; an earlier command skipped bad rows, which this must not.
    """
    start = time.monotonic()
    run = _encoding(config, _survey(config), read_blueprint(config).encoder)
    corpus = encode_folder(replace(run, verify=verify, progress=progress, report=report))
    bad = OnBadRow(config.on_bad_row, side_file(config.output))
    check_bad_rows(corpus, bad, ", ".join(config.inputs))
    return _report(corpus, bad, time.monotonic() - start)


def _encoding(config: EncodeConfig, survey: Survey, encoder: Encoder) -> Encoding:
    return Encoding(
        survey,
        encoder,
        config.output,
        side_file=side_file(config.output),
        reference=config.reference,
        strip_prompt=config.strip_prompt,
        skip_bad_rows=config.on_bad_row == "skip",
        engine=config.engine,
        workers=config.workers,
    )


def _report(corpus: EncodedCorpus, bad: OnBadRow, seconds: float) -> EncodeReport:
    return EncodeReport(
        str(corpus.folder),
        corpus.digest,
        corpus.encoder,
        len(corpus.shards),
        asdict(corpus.stats),
        corpus.rejected,
        corpus.side_file,
        seconds,
        tuple(bad.warnings()),
    )


def _survey(config: EncodeConfig) -> Survey:
    for source in config.inputs:
        check_manifest(source)
    check_workers(config.workers if config.engine == "local" else None)
    return survey_input(survey_files(config.inputs, [config.output]).files, config.shard_mib)

"""``polar references``: plans a run, makes the references, and writes the manifest last."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polar_rm.common.checksums import describe_file
from polar_rm.common.files import read_json, sha256, write_json
from polar_rm.common.locks import owned
from polar_rm.common.manifests import NAME, begin_work, check_manifest, check_output, found_output
from polar_rm.common.outputs import FOUND, output_line
from polar_rm.common.progress import Progress, silent
from polar_rm.common.provenance import versions
from polar_rm.records import OnBadRow, write_records
from polar_rm.references.config import FromPolicy, ReferencesConfig
from polar_rm.references.make import Counts, finder, referenced, sampling_config, write_prompts
from polar_rm.references.rows import Rows
from polar_rm.sampling.estimate import Estimate, describe, estimate

_KIND, _HOLDS = "polar-rm/references/", "references"
SCHEMA = f"{_KIND}1"

_NOT_IN_IDENTITY = {"output", "inputs"}


@dataclass(frozen=True, slots=True)
class ReferencesReport:
    """The result of a run.

    path: the file with the references. protocol: their origin that reports show. counts: see :class:`Counts`. warnings: one line
    for each limitation of the references.
    """

    path: Path
    protocol: str
    counts: dict[str, int]
    warnings: list[str]

    def describe(self) -> str:
        """A line for the terminal."""
        counts = self.counts
        kept = f", {counts['kept']:,} kept" if counts["kept"] else ""
        return f"{counts['made']:,} references ({self.protocol}) made{kept}: {self.path}"


def make_references(config: ReferencesConfig, progress: Progress = silent) -> ReferencesReport:
    """Write every row with a reference. A finished folder is only checked.

    After an interruption the same call continues with the missing samples.

    Raises:
        BadRow: a row can't be read, already has a reference, or has no possible reference (unless bad rows are skipped).
        Damaged: the finished file differs from its manifest.
        PolarError: the folder is in use, holds other files, or a policy's samples are missing.
    """
    with owned(config.output, "references"):
        rows = Rows(config, OnBadRow(config.on_bad_row, config.output / "refused.jsonl"))
        identity = _identity(config, rows)
        if check_output(config.output, _KIND, _HOLDS, identity, _compared):
            check_manifest(config.output)
            return _report(config, read_json(config.output / NAME))
        work, path = begin_work(config.output, _KIND, identity), config.output / f"references.{config.format}"
        counts = Counts()
        with finder(rows, config, work, counts, progress) as find:
            write_records(path, _with_progress(referenced(rows, config, find, counts), progress))
        manifest = {
            "schema": SCHEMA,
            "protocol": config.protocol,
            **identity,
            **versions(),
            "counts": asdict(counts) | {"bad": rows.bad.count - counts.refused},
            "warnings": rows.bad.warnings(),
            "files": [{"file": path.name, **describe_file(path)}],
        }
        write_json(config.output / NAME, manifest)
        shutil.rmtree(work)
        return _report(config, manifest)


def _with_progress(records: Any, progress: Progress) -> Any:
    for number, record in enumerate(records, 1):
        progress("references", number, None)
        yield record


def _identity(config: ReferencesConfig, rows: Rows) -> dict[str, Any]:
    return {"settings": config.model_dump(mode="json", exclude=_NOT_IN_IDENTITY), "inputs": _hashes(rows)}


def _hashes(rows: Rows) -> dict[str, str]:
    return {str(file): sha256(file) for file in rows.files}


def _compared(identity: dict[str, Any]) -> dict[str, Any]:
    """What decides the references: settings and contents, without the names of files."""
    return {"settings": identity.get("settings"), "inputs": sorted(dict(identity.get("inputs", {})).values())}


def _report(config: ReferencesConfig, manifest: dict[str, Any]) -> ReferencesReport:
    counts: dict[str, int] = dict(manifest["counts"])
    lines = {
        "copies": "have a reference that is equal, or nearly, to one of their answers",
        "unfinished": "have a reference that was truncated by the limit on new tokens",
        "from_row": "use their best candidate as the reference, and compare only the others",
    }
    warnings = [f"{counts[name]:,} rows {words}" for name, words in lines.items() if counts.get(name)]
    if refused := counts["refused"] + counts["bad"]:
        warnings.append(f"{refused:,} rows were refused, see {config.output / 'refused.jsonl'}")
    path = config.output / manifest["files"][0]["file"]
    return ReferencesReport(path, manifest["protocol"], counts, [*warnings, *manifest.get("warnings", [])])


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run. counts: the counts that the run would have; for a policy, only those of its prompts. estimates: the cost
    of a policy's samples. output: what the run finds in its output folder."""

    rows: int
    counts: dict[str, int]
    estimates: list[Estimate]
    output: str

    def describe(self) -> list[tuple[str, str]]:
        """(name, value) of each line for the terminal."""
        lines = [("rows", f"{self.rows:,}"), *((name.replace("_", " "), f"{value:,}") for name, value in self.counts.items())]
        samples = [("samples", describe(self.estimates).strip())] if self.estimates else []
        return [*lines, *samples, ("output", self.output)]


def plan(config: ReferencesConfig, tokens_per_s: float | None = None) -> Plan:
    """Plan a run. The output folder is not written or locked, and no request is sent.

    tokens_per_s: the assumed speed of a policy without a measured one.

    Raises:
        PolarError: the errors of :func:`make_references`, except those about samples, and that the folder is in use.
    """
    with tempfile.TemporaryDirectory(prefix="polar-references-") as folder:
        work = Path(folder)
        rows = Rows(config, OnBadRow(config.on_bad_row, work / "refused.jsonl"))
        found = found_output(config.output, _KIND, _HOLDS, lambda: _identity(config, rows), _compared)
        output = output_line(config.output, FOUND[found])
        if isinstance(config.reference, FromPolicy):
            source = config.reference
            prompts = write_prompts(rows, work / "prompts.jsonl", source)
            done = [row.is_done for row in rows]
            planned = {"kept": sum(done), "prompts": len(prompts)}
            sampling = sampling_config(config, source, config.output / "work", work / "prompts.jsonl")
            return Plan(len(done), planned, estimate(sampling, tokens_per_s) if prompts else [], output)
        counts = Counts()
        with finder(rows, config, work, counts, silent) as find:
            for _ in referenced(rows, config, find, counts):
                pass
        names = ("made", "kept", "refused", "copies", "from_row")
        return Plan(counts.rows, {name: getattr(counts, name) for name in names}, [], output)

"""``polar select``: reads the numbers of all candidates, applies the rules, writes the selected rows, and the manifest last."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polar_rm.common.checksums import describe_file
from polar_rm.common.engines import check_workers
from polar_rm.common.extras import require
from polar_rm.common.files import read_json, sha256, write_json
from polar_rm.common.json import dump_json
from polar_rm.common.locks import owned
from polar_rm.common.manifests import NAME, begin_work, check_content, check_manifest, check_output, found_output
from polar_rm.common.outputs import FOUND, output_line
from polar_rm.common.paths import check_data, check_model
from polar_rm.common.progress import Progress, silent
from polar_rm.common.provenance import versions
from polar_rm.errors import PolarError
from polar_rm.records import count_rows, find_file, survey_files
from polar_rm.selection.config import SelectConfig
from polar_rm.selection.parts import Job, join_refused, read_parts
from polar_rm.selection.report import Examples, counts_of, make_report, summary, warnings_of, write_html
from polar_rm.selection.rules import select_rows
from polar_rm.selection.scoring import check_model_scale, score_inputs
from polar_rm.selection.writing import write_rows

_KIND, _HOLDS = "polar-rm/selection/", "a selection"
SCHEMA = f"{_KIND}1"

# What does not change the result.
_NOT_IN_IDENTITY = {"output", "inputs", "scores", "model", "engine", "workers", "device", "row_tokens"}
# Settings that the numbers of an input file depend on.
_OF_PARTS = {"transform", "score", "prompt_by", "group_by", "keep_columns", "on_bad_row", "strip_prompt"}


@dataclass(frozen=True, slots=True)
class SelectReport:
    """The result of a run. path: the file with the selected rows. report: see :func:`make_report`. was_finished: an earlier run
    had finished already, and nothing was done."""

    path: Path
    report: dict[str, Any]
    was_finished: bool

    def describe(self) -> str:
        """A line for the terminal."""
        finished = "finished already, nothing has changed: " if self.was_finished else ""
        return (
            f"{finished}{self.report['counts']['selected']:,} rows in {self.path}, report in {self.path.parent / 'report.html'}"
        )


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files of a run. scores: one for each input, or empty. hashes: file -> SHA-256 of its content."""

    files: tuple[Path, ...]
    scores: tuple[Path, ...]
    hashes: dict[Path, str]

    @classmethod
    def find(cls, config: SelectConfig) -> Inputs:
        """Find the files, and check them against the manifests of their folders.

        Raises:
            PolarError: a file is missing or damaged, or the numbers of inputs and scores differ.
        """
        for package in ("matplotlib", "jinja2"):
            require("evaluate", "the report of polar select", package)
        for source in (*config.inputs, *config.scores):
            check_data(source)
            check_manifest(source)
        check_workers(config.workers)
        if config.model:
            check_model(config.model)
            check_model_scale(config)
        files = survey_files(config.inputs, [config.output]).files
        scores = tuple(find_file(source, [config.output]) for source in config.scores)
        if scores and len(scores) != len(files):
            raise PolarError(f"scores: {len(scores):,} files for {len(files):,} input files; each input needs its own, in order")
        if repeated := [file for number, file in enumerate(files) if file.resolve() in {f.resolve() for f in files[:number]}]:
            raise PolarError(f"inputs: {repeated[0]} is given twice")
        hashes = {file: sha256(file) for file in (*files, *scores)}
        for file, digest in hashes.items():
            check_content(file, digest)
        return cls(files, scores, hashes)

    def identity(self, config: SelectConfig) -> dict[str, Any]:
        """What decides the result: settings and contents, without the names of files."""
        pairs = zip(self.files, self.scores or [None] * len(self.files), strict=True)
        contents = sorted([self.hashes[file], self.hashes[scores] if scores else ""] for file, scores in pairs)
        model = {"model": sha256(config.model)} if config.model else {}
        return {"settings": config.model_dump(mode="json", exclude=_NOT_IN_IDENTITY), "inputs": contents, **model}

    def job(self, config: SelectConfig, work: Path, scores: tuple[Path, ...]) -> Job:
        """The job of the first pass. scores: the files with the scores, which a model may have made."""
        settings = config.model_dump(mode="json", include=_OF_PARTS)
        near = config.near_duplicates and config.near_duplicates.within
        settings |= {"model": bool(config.model), "near": near, "uses_probability": config.uses_probability}
        keys = []
        for number, file in enumerate(self.files):
            of_scores = sha256(scores[number]) if scores else ""
            whole = dump_json([settings, self.hashes[file], of_scores])
            keys.append(hashlib.sha256(whole.encode()).hexdigest())
        return Job(config, self.files, scores or (None,) * len(self.files), tuple(keys), work)


def select(config: SelectConfig, progress: Progress = silent) -> SelectReport:
    """Select rows and write them with a report. A finished folder is only checked.

    After an interruption the same call continues: it scores no row twice and reads the numbers of no file twice.

    Raises:
        BadRow: a row can't be read, or its score is missing or not finite (unless bad rows are skipped).
        Damaged: a file of the finished output, or an input that polar wrote, differs from its manifest.
        PolarError: the input is bad, the output folder is in use or holds something else, or nothing is selected.
    """
    inputs = Inputs.find(config)
    with owned(config.output, "select"):
        identity = inputs.identity(config)
        path = config.output / "selected.jsonl"
        if check_output(config.output, _KIND, _HOLDS, identity, _compared):
            check_manifest(config.output, full=True)
            return SelectReport(path, read_json(config.output / "report.json"), True)
        work = begin_work(config.output, _KIND, identity)
        report = _run(config, inputs, path, progress)
        files = [path, config.output / "report.json", config.output / "report.html"]
        refused = config.output / "refused.jsonl"
        files += [refused] if refused.exists() else []
        files += sorted((config.output / "_scores").glob("scores-*.jsonl")) if config.model else []
        manifest = {
            "schema": SCHEMA,
            **identity,
            "files_read": {str(file): digest for file, digest in inputs.hashes.items()},
            **versions(),
            "counts": report["counts"],
            "files": [{"file": str(file.relative_to(config.output)), **describe_file(file)} for file in files],
        }
        write_json(config.output / NAME, manifest)
        shutil.rmtree(work)
        return SelectReport(path, report, False)


def _compared(run: dict[str, Any]) -> dict[str, Any]:
    return {name: run[name] for name in ("settings", "inputs", "model") if name in run}


def _run(config: SelectConfig, inputs: Inputs, path: Path, progress: Progress) -> dict[str, Any]:
    work = config.output / "work"
    scores = inputs.scores
    if config.model:
        scores = tuple(score_inputs(config, inputs.files, [inputs.hashes[file] for file in inputs.files], progress))
    job = inputs.job(config, work, scores)
    table, facts = read_parts(job, progress)
    selection = select_rows(table, config)
    if not len(selection.selected):
        last = next(rule for rule in reversed(counts_of(table, selection)) if rule["dropped"])
        raise PolarError(
            f"nothing is selected: of {len(table):,} answers the rule {last['rule']} dropped the last {last['dropped']:,}"
        )
    examples = Examples(table, selection, config)
    progress("writing", 0, 1)
    write_rows(job, table, selection, path, examples.watch, examples.indices)
    progress("writing", 1, 1)
    join_refused(job, config.output / "refused.jsonl", facts)
    report = make_report(config, table, selection, facts, examples)
    write_json(config.output / "report.json", report)
    write_html(config.output / "report.html", report, table, selection)
    return report


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run. files: number of input files. rows: those that a model would score, or None. rules: the counts of each
    rule; empty if scores are missing. lines: all of it for the terminal."""

    files: int
    rows: int | None
    rules: list[dict[str, Any]]
    lines: list[tuple[str, str]]
    warnings: list[str]


def plan(config: SelectConfig, progress: Progress = silent) -> Plan:
    """Apply the rules without writing anything into the output folder, which is not locked either.

    With ``model`` the rules can't be applied, because there are no scores: only files and rows are counted.

    Raises:
        PolarError: the errors of :func:`select`, except that the output folder is in use.
    """
    inputs = Inputs.find(config)
    found = found_output(config.output, _KIND, _HOLDS, lambda: inputs.identity(config), _compared)
    output = ("output", output_line(config.output, FOUND[found]))
    if config.model:
        rows = [count_rows(file) for file in inputs.files]
        known = sum(count for count in rows if count is not None)
        more = " and those of files whose rows are not counted" if None in rows else ""
        lines = [("files", f"{len(rows):,}"), ("rows to score", f"{known:,}{more}"), output]
        return Plan(len(rows), known, [], lines, ["the counts of the rules need the scores of the model"])
    with tempfile.TemporaryDirectory(prefix="polar-select-") as folder:
        # Other machines of a cluster don't see the temporary folder.
        job = inputs.job(config.model_copy(update={"engine": "local"}), Path(folder), inputs.scores)
        table, facts = read_parts(job, progress)
    selection = select_rows(table, config)
    rules = counts_of(table, selection)
    selected = selection.selected
    counts = {
        "candidates": len(table),
        "prompts": table.n_prompts,
        "selected": len(selected),
        "prompts_selected": len(np.unique(table.prompts[selected])),
    }
    lines = [*summary({"counts": counts, "rules": rules, "settings": {"kind": config.kind}}), output]
    return Plan(len(inputs.files), None, rules, lines, warnings_of(config, table, selection, facts))

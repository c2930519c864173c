"""The implementation of ``polar evaluate``: contenders, the evaluation, and the files and tables of its result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polar_rm.cli.output import message, messages, print_table, print_text, print_values
from polar_rm.common.files import check_target, write_file
from polar_rm.common.progress import show_progress
from polar_rm.errors import BadRow, PolarError
from polar_rm.evaluation import ModelOptions, evaluate_files, evaluate_suite, find_contenders
from polar_rm.evaluation.contenders import Contender
from polar_rm.evaluation.page import write_page
from polar_rm.evaluation.references import ReferenceChoice
from polar_rm.evaluation.report import write_plot, write_report
from polar_rm.evaluation.rows import PAIR_SUFFIXES, Scored, write_pairs
from polar_rm.evaluation.suite_report import figure_rows, list_suites, summarise_suite
from polar_rm.evaluation.suites import suites_like
from polar_rm.evaluation.tables import Summary, summarise
from polar_rm.records import OnBadRow, side_file
from polar_rm.reporting.plots import accuracy_figure, check_plot, save_figure
from polar_rm.reporting.tables import FORMATS, SUFFIXES
from polar_rm.rewards.combining import Combine


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """The requested files and formats. table: a format, or a file whose suffix is one."""

    json: Path | None = None
    plot: Path | None = None
    pairs: Path | None = None
    html: Path | None = None
    html_rows: int = 500
    table: str | None = None

    def check(self) -> None:
        """Check that all files can be written, before the work.

        Raises:
            PolarError: a suffix or format is unknown, or a file can't be written.
        """
        if self.plot:
            check_plot(self.plot)
        if self.pairs:
            check_target(self.pairs, PAIR_SUFFIXES)
        if self.table and self.table not in FORMATS:
            if Path(self.table).suffix.lower() not in SUFFIXES:
                raise PolarError(f"--table {self.table}: expected {', '.join(FORMATS)}, or a file *{', *'.join(SUFFIXES)}")
            check_target(self.table)

    def files(self) -> list[Path]:
        """List all files that will be written; none of them may be read as data."""
        table = Path(self.table) if self.table and self.table not in FORMATS else None
        return [path for path in (self.json, self.pairs, self.html, self.plot, table) if path]

    def show(self, result: Scored, report: Any, summary: Summary, by: str | None = None) -> None:
        """Print the summary, and write all files except the plot."""
        self.show_report(report, summary)
        if self.pairs:
            message(f"{write_pairs(self.pairs, result):,} pairs written to {self.pairs}")
        if self.html:
            count = write_page(self.html, result, summary, by=by, max_rows=self.html_rows)
            message(f"{count:,} of {len(result.scores.pairs):,} pairs shown on {self.html}")

    def show_report(self, report: Any, summary: Summary) -> None:
        """Print the summary, and write the report."""
        self._print(summary)
        if self.json:
            write_report(self.json, report)

    def _print(self, summary: Summary) -> None:
        """Print the summary for the terminal, or its tables in another format; explanations then go to stderr."""
        if self.table not in FORMATS:
            print_table(summary.rich())
        if self.table:
            name = self.table if self.table in FORMATS else SUFFIXES[Path(self.table).suffix.lower()]
            text = "\n".join(FORMATS[name](table) for table in summary.tables)
            if self.table not in FORMATS:
                write_file(self.table, text)
                return
            print_text(text.rstrip("\n"))
            for line in (*summary.sentences, *(f"warning: {line}" for line in summary.warnings)):
                message(line)


@dataclass(frozen=True, slots=True)
class Models:
    """The named contenders, and how those with weights compute. api_key_env: the variable with the key of servers."""

    names: Sequence[str]
    precision: str
    device: str
    row_tokens: int
    api_key_env: str | None

    def contenders(self) -> list[Contender]:
        """The contenders. A device is claimed only if one of them has weights.

        Raises:
            PolarError: a kind is unknown, nothing is at a path, or the key's variable or the device does not exist.
        """
        from polar_rm.common.http import key_from_environment

        api_key = key_from_environment(self.api_key_env, "--api-key-env") if self.api_key_env else None
        contenders = find_contenders(self.names, ModelOptions(self.precision, self.device, self.row_tokens, api_key))
        if any(contender.has_weights for contender in contenders):
            from polar_rm.model.devices import claim_device

            claim_device(self.device)
        return contenders


@dataclass(frozen=True, slots=True)
class Data:
    """The comparisons to read.

    references: a file that references are added from. limit: take only the first so many. combine: how the scores under several
    references become one.
    """

    files: Sequence[Path]
    references: Path | None
    limit: int | None
    seed: int
    on_bad_row: Literal["error", "skip"]
    strip_prompt: bool
    combine: Combine = "mean"

    def bad_rows(self, outputs: Sequence[Path]) -> OnBadRow:
        """What becomes of bad rows; skipped ones are written beside the first output, or beside the data."""
        return OnBadRow(self.on_bad_row, side_file(outputs[0] if outputs else None, self.files), strip_prompt=self.strip_prompt)


def run(
    models: Models,
    data: Data,
    targets: ResultFiles,
    *,
    suite: str | None,
    by: str | None,
    reference: ReferenceChoice | None,
) -> None:
    """Evaluate as ``polar evaluate`` was asked to.

    Raises:
        PolarError: contenders or data are missing, a suite has not exactly one path, or the evaluation refuses its input.
    """
    if suite == "list":
        print_values(list_suites())
        return
    if not models.names:
        raise PolarError("name at least one contender with --model")
    if not data.files or (suite and len(data.files) > 1):
        raise PolarError(f"--suite {suite} reads one file or folder" if suite else "name files of comparisons")
    if suite and by:
        raise PolarError(f"--by {by}: a published benchmark has its own groups; use --by without --suite")
    targets.check()
    if suite:
        _run_suite(suite, models, data, targets, reference)
        return
    contenders, outputs = models.contenders(), targets.files()
    with show_progress(messages) as progress, _benchmarks_named(data):
        result = evaluate_files(
            contenders,
            data.files,
            by=by,
            reference=reference,
            references=data.references,
            combine=data.combine,
            limit=data.limit,
            seed=data.seed,
            on_bad_row=data.bad_rows(outputs),
            outputs=outputs,
            progress=progress,
        )
    if targets.plot:
        write_plot(targets.plot, result.report)
    targets.show(result, result.report, summarise(result.report), by)


@contextmanager
def _benchmarks_named(data: Data) -> Iterator[None]:
    """Add to an error about rows that they have the form of a published benchmark, which has readers and a rule of its own."""
    try:
        yield
    except PolarError as error:
        if not isinstance(error, BadRow) and "no reference" not in str(error):
            raise
        suites = suites_like(Path(data.files[0])) if len(data.files) == 1 else []
        if not suites:
            raise
        names = " or ".join(f"--suite {suite.name}" for suite in suites)
        raise PolarError(f"{error}; the rows have the form of {suites[0].title}, which {names} reads and measures") from error


def _run_suite(suite: str, models: Models, data: Data, targets: ResultFiles, reference: ReferenceChoice | None) -> None:
    if reference == "all":
        raise PolarError("--reference all: a published benchmark is measured with one protocol at a time; name one")
    contenders = models.contenders()
    with show_progress(messages) as progress:
        result = evaluate_suite(
            suite,
            data.files[0],
            contenders,
            reference=reference,
            references=data.references,
            combine=data.combine,
            limit=data.limit,
            seed=data.seed,
            progress=progress,
        )
    if targets.plot:
        save_figure(accuracy_figure(figure_rows(result.report), title=result.report["title"]), targets.plot)
    targets.show(result, result.report, summarise_suite(result.report))

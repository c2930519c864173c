"""The implementation of ``polar evaluate``: contenders, the evaluation, and the files and tables of its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polar_rm.cli.output import message, messages, print_table, print_text, print_values
from polar_rm.common.files import check_target, write_file
from polar_rm.common.progress import show_progress
from polar_rm.errors import PolarError
from polar_rm.evaluation import ModelOptions, evaluate_files, evaluate_suite, find_contenders
from polar_rm.evaluation.contenders import Contender
from polar_rm.evaluation.page import write_page
from polar_rm.evaluation.report import write_plot, write_report
from polar_rm.evaluation.rows import PAIR_SUFFIXES, Scored, write_pairs
from polar_rm.evaluation.suite_report import figure_rows, list_suites, summarise_suite
from polar_rm.evaluation.tables import Summary, summarise
from polar_rm.records import OnBadRow, side_file
from polar_rm.reporting.plots import PLOT_SUFFIXES, accuracy_figure, save_figure
from polar_rm.reporting.tables import FORMATS, SUFFIXES


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
            check_target(self.plot, PLOT_SUFFIXES)
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
        self._print(summary)
        if self.json:
            write_report(self.json, report)
        if self.pairs:
            message(f"{write_pairs(self.pairs, result):,} pairs written to {self.pairs}")
        if self.html:
            count = write_page(self.html, result, summary, by=by, max_rows=self.html_rows)
            message(f"{count:,} of {len(result.scores.pairs):,} pairs shown on {self.html}")

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


def run(files: Sequence[Path], targets: ResultFiles, options: dict[str, Any]) -> None:
    """Evaluate with the options of the verb, by name.

    Raises:
        PolarError: contenders or data are missing, a suite has not exactly one path, or the evaluation refuses its input.
    """
    suite, by = options["suite"], options["by"]
    if suite == "list":
        print_values(list_suites())
        return
    if not options["model"]:
        raise PolarError("name at least one contender with --model")
    if not files or (suite and len(files) > 1):
        raise PolarError(f"--suite {suite} reads one file or folder" if suite else "name files of comparisons")
    if suite and by:
        raise PolarError(f"--by {by}: a published benchmark has its own groups; use --by without --suite")
    if suite and options["reference"] == "all":
        raise PolarError("--reference all: a published benchmark is measured with one protocol at a time; name one")
    targets.check()
    contenders = contenders_of(options["model"], options)
    common = {name: options[name] for name in ("reference", "references", "limit", "seed")}
    with show_progress(messages) as progress:
        if suite:
            suite_result = evaluate_suite(suite, files[0], contenders, **common, progress=progress)
        else:
            outputs = targets.files()
            source = side_file(outputs[0] if outputs else None, files)
            bad = OnBadRow(options["on_bad_row"], source, strip_prompt=options["strip_prompt"])
            result = evaluate_files(contenders, files, **common, by=by, on_bad_row=bad, outputs=outputs, progress=progress)
    if suite:
        if targets.plot:
            save_figure(accuracy_figure(figure_rows(suite_result.report), title=suite_result.report["title"]), targets.plot)
        targets.show(suite_result, suite_result.report, summarise_suite(suite_result.report))
    else:
        if targets.plot:
            write_plot(targets.plot, result.report)
        targets.show(result, result.report, summarise(result.report), by)


def contenders_of(models: Sequence[str], options: dict[str, Any]) -> list[Contender]:
    """The named contenders. A device is claimed only if one of them has weights. options: of the verb, by name.

    Raises:
        PolarError: a kind is unknown, nothing is at a path, or the key's variable or the device does not exist.
    """
    from polar_rm.common.http import key_from_environment

    variable = options["api_key_env"]
    api_key = key_from_environment(variable, "--api-key-env") if variable else None
    model_options = ModelOptions(options["precision"], options["device"], options["row_tokens"], api_key)
    contenders = find_contenders(models, model_options)
    if any(contender.has_weights for contender in contenders):
        from polar_rm.model.devices import claim_device

        claim_device(options["device"])
    return contenders

"""What becomes of an evaluation's result: files and tables, as the options say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polar_rm.cli.output import message, print_table, print_text
from polar_rm.common.files import check_target, write_file
from polar_rm.errors import PolarError
from polar_rm.evaluation import EvaluationResult, ModelOptions, find_contenders
from polar_rm.evaluation.contenders import Contender
from polar_rm.evaluation.page import write_page
from polar_rm.evaluation.report import write_plot, write_report
from polar_rm.evaluation.rows import PAIR_SUFFIXES, write_pairs
from polar_rm.evaluation.tables import sentences, shown, tables
from polar_rm.reporting.plots import PLOT_SUFFIXES
from polar_rm.reporting.tables import FORMATS, SUFFIXES, Table


def find(models: Sequence[str], precision: str, device: str, row_tokens: int, api_key_env: str | None) -> list[Contender]:
    """The contenders that ``--model`` names. A device is claimed only where one of them has weights.

    Raises:
        PolarError: an unknown kind, nothing at a path, or no such device.
    """
    from polar_rm.common.http import key_from_environment

    api_key = key_from_environment(api_key_env, "--api-key-env") if api_key_env else None
    contenders = find_contenders(models, ModelOptions(precision, device, row_tokens, api_key))
    if any(contender.has_weights for contender in contenders):
        from polar_rm.model.devices import claim_device

        claim_device(device)
    return contenders


@dataclass(frozen=True, slots=True)
class Wanted:
    """Files and formats that were asked for. table: a format, or a file by its suffix."""

    json: Path | None = None
    plot: Path | None = None
    pairs: Path | None = None
    html: Path | None = None
    html_rows: int = 500
    table: str | None = None

    def check(self) -> None:
        """Whether they can be written, before the work.

        Raises:
            PolarError: another suffix or format, or a place where nothing can be written.
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
        """All that will be written; none of them may be read as data."""
        table = Path(self.table) if self.table and self.table not in FORMATS else None
        return [path for path in (self.json, self.plot, self.pairs, self.html, table) if path]

    def show(self, result: EvaluationResult, by: str | None) -> None:
        """Print the result, and write the files."""
        report = result.report
        self.show_tables(tables(report), sentences(report["differences"], report["facts"]), report["warnings"])
        if self.json:
            write_report(self.json, report)
        if self.plot:
            write_plot(self.plot, report)
        if self.pairs:
            message(f"{write_pairs(self.pairs, result):,} pairs written to {self.pairs}")
        if self.html:
            count = write_page(self.html, result, by=by, max_rows=self.html_rows)
            message(f"{count:,} of {report['n_pairs']:,} pairs shown on {self.html}")

    def show_tables(self, all_tables: Sequence[Table], lines: Sequence[str], warnings: Sequence[str]) -> None:
        """To the terminal, or in another format; what the tables mean is then told beside them."""
        if self.table not in FORMATS:
            print_table(shown(all_tables, lines, warnings))
        if self.table:
            name = self.table if self.table in FORMATS else SUFFIXES[Path(self.table).suffix.lower()]
            text = "\n".join(FORMATS[name](table) for table in all_tables)
            if self.table not in FORMATS:
                write_file(self.table, text)
                return
            print_text(text.rstrip("\n"))
            for line in (*lines, *(f"warning: {line}" for line in warnings)):
                message(line)

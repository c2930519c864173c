"""Small tables of texts for the terminal, a paper or a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is not rendered yet.

    title: the text above the table. header: the columns' names. rows: a cell for each column; the first cell is a name, the
    others are numbers. last_is_total: the last row summarizes all others.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    last_is_total: bool = False

    def rich(self) -> Group:
        """The table for the terminal; cells that are too long are folded."""
        table = RichTable()
        table.add_column(Text(self.header[0]), overflow="fold")
        for name in self.header[1:]:
            table.add_column(Text(name), justify="right", overflow="fold")
        for number, row in enumerate(self.rows, 1):
            is_total = self.last_is_total and number == len(self.rows)
            if is_total:
                table.add_section()
            table.add_row(*map(Text, row), style="bold" if is_total else None)
        return Group(Text(self.title, style="italic"), table)

    def markdown(self) -> str:
        """The table in the Markdown that GitHub and most sites render."""
        lines = [f"**{_in_line(self.title)}**", "", _row(self.header), _row(["---", *["---:"] * (len(self.header) - 1)])]
        return "\n".join([*lines, *map(_row, self.rows)]) + "\n"

    def latex(self) -> str:
        """A ``tabular`` with the rules of the package booktabs; the title is a comment."""
        body = [" & ".join(map(_tex, row)) + r" \\" for row in self.rows]
        if self.last_is_total and len(body) > 1:
            body.insert(-1, r"\midrule")
        head = " & ".join(map(_tex, self.header)) + r" \\"
        begin = r"\begin{tabular}{l" + "r" * (len(self.header) - 1) + "}"
        title = " ".join(self.title.split())
        return "\n".join([f"% {title}", begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """The table as CSV: the header, then the rows. The title is left out."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.header, *self.rows])
        return buffer.getvalue()


FORMATS: dict[str, Callable[[Table], str]] = {"md": Table.markdown, "latex": Table.latex, "csv": Table.csv}
"""Name of a format -> the function that renders a table."""

SUFFIXES = {".md": "md", ".tex": "latex", ".csv": "csv"}
"""Suffix of a file -> the format of the table in it."""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_in_line(cell).replace("|", r"\|") for cell in cells) + " |"


def _in_line(text: str) -> str:
    return " ".join(text.split())


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in _in_line(text))

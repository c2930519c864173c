"""Small tables of texts: for the terminal, for a paper, for a spreadsheet."""

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
    """title: above it, in the terminal and in Markdown. header: of every column. rows: a cell for each column; the first is a
    name, the others are numbers. last_is_total: the last row stands for all others."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    last_is_total: bool = False

    def rich(self) -> Group:
        """For the terminal; what is too long for it is folded."""
        table = RichTable()
        table.add_column(Text(self.header[0]), overflow="fold")
        for name in self.header[1:]:
            table.add_column(Text(name), justify="right", overflow="fold")
        for number, row in enumerate(self.rows, 1):
            total = self.last_is_total and number == len(self.rows)
            if total:
                table.add_section()
            table.add_row(*map(Text, row), style="bold" if total else None)
        return Group(Text(self.title, style="italic"), table)

    def markdown(self) -> str:
        """As GitHub and most sites read it."""
        lines = [f"**{_in_line(self.title)}**", "", _row(self.header), _row(["---", *["---:"] * (len(self.header) - 1)])]
        return "\n".join([*lines, *map(_row, self.rows)]) + "\n"

    def latex(self) -> str:
        """A ``tabular`` with rules of the package booktabs, the title in a comment."""
        body = [" & ".join(map(_tex, row)) + r" \\" for row in self.rows]
        if self.last_is_total and len(body) > 1:
            body.insert(-1, r"\midrule")
        head = " & ".join(map(_tex, self.header)) + r" \\"
        begin = r"\begin{tabular}{l" + "r" * (len(self.header) - 1) + "}"
        title = " ".join(self.title.split())
        return "\n".join([f"% {title}", begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """With a line of names; the title is left out."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.header, *self.rows])
        return buffer.getvalue()


FORMATS: dict[str, Callable[[Table], str]] = {"md": Table.markdown, "latex": Table.latex, "csv": Table.csv}
"""Name -> how a table is written."""

SUFFIXES = {".md": "md", ".tex": "latex", ".csv": "csv"}
"""Of files that hold a table -> its format."""


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
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in _in_line(text))

"""Output of the verbs: results go to stdout, messages to stderr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType

from polar_rm.common.progress import plain_console, say

if TYPE_CHECKING:
    from polar_rm.records import DataFiles, OnBadRow

console = plain_console()
messages = plain_console(stderr=True)


def print_text(text: str) -> None:
    """Print a result unchanged: paths and texts are not read as markup, and long lines are not wrapped."""
    say(console, text)


def print_table(table: RenderableType) -> None:
    """Print a result in a layout for the width of the terminal."""
    console.print(table)


def print_values(values: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair per line."""
    for name, value in values:
        print_text(f"{name:>18}: {value}")


def message(text: str) -> None:
    """Print a message about what happened, apart from the result."""
    say(messages, text)


def report_files(name: str, data: DataFiles) -> None:
    """Print how many files folders and patterns mean, and what is left out; nothing where the user named every file."""
    if note := data.note():
        message(f"{name}: {note}")


def report_bad(bad: OnBadRow) -> None:
    """Print the number of skipped rows, if any, and their file; and warnings about the other rows."""
    if bad.count:
        message(f"{bad.count:,} bad rows were skipped, see {bad.side_file}")
    for warning in bad.warnings():
        message(f"warning: {warning}")

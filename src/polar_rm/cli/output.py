"""Where the verbs print: results to standard output, messages to standard error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType

from polar_rm.common.progress import plain_console, say

if TYPE_CHECKING:
    from polar_rm.records import OnBadRow

console = plain_console()
messages = plain_console(stderr=True)


def print_text(text: str) -> None:
    """A result as it is: paths and texts are no markup and keep their lines."""
    say(console, text)


def print_table(table: RenderableType) -> None:
    """A result that is laid out by the width of the terminal."""
    console.print(table)


def print_values(values: Iterable[tuple[str, str]]) -> None:
    """Names and values, a line each."""
    for name, value in values:
        print_text(f"{name:>18}: {value}")


def message(text: str) -> None:
    """What happened, beside the result."""
    say(messages, text)


def report_bad(bad: OnBadRow) -> None:
    """How many rows were skipped, if any, and where they are; what was noted about the others."""
    if bad.count:
        message(f"{bad.count:,} bad rows were skipped, see {bad.side_file}")
    for warning in bad.warnings():
        message(f"warning: {warning}")

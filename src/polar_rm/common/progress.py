"""What long jobs show on a terminal. Texts are shown as they are: a path or a prompt is never read as rich's markup."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


def plain_console(*, stderr: bool = False) -> Console:
    """A console that reads no markup in strings, replaces no ``:names:`` by emoji and colours nothing by itself."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say(console: Console, text: str, *, style: str = "") -> None:
    """Print a text as it is, in lines of its own length. style: of the whole, such as ``bold``."""
    console.print(Text(text, style=style), soft_wrap=True)


@contextmanager
def status_line(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """A line that lasts as long as the block; yields the function that changes it."""
    with console.status(Text(text)) as status:
        yield lambda changed: status.update(Text(changed))


def progress_bar(console: Console, *, enabled: bool = True) -> Progress:
    """Rich progress with the time left. Every task has a description and a field ``status`` that ends its line."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        console=console,
        disable=not enabled,
    )


def progress_lines(console: Console, *, every_s: float = 5.0) -> Callable[[str, str], None]:
    """For logs, where a bar shows nothing: takes a task's name and state, and prints a line at most so often for each task."""
    due: dict[str, float] = {}

    def show(name: str, state: str) -> None:
        now = time.monotonic()
        if not console.is_terminal and now >= due.get(name, 0):
            due[name] = now + every_s
            say(console, f"{name}: {state}")

    return show

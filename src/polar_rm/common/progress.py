"""How long jobs tell how far they are, and what a terminal shows of it.

Texts are shown as they are: a path or a prompt is never read as rich's markup.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
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


class Progress(Protocol):
    """What a job calls as it goes on: one callable for all of its tasks, such as the stages of a corpus or the policies of a zoo.

    task: its name. done, total: in whatever the task counts; total None: unknown. status: further words.
    """

    def __call__(self, task: str, done: int, total: int | None, status: str = "") -> None: ...


def silent(task: str, done: int, total: int | None, status: str = "") -> None:
    """The :class:`Progress` of who wants none."""


@contextmanager
def shown(console: Console, *, lines: bool = False) -> Iterator[Progress]:
    """A :class:`Progress` that draws a bar for each task. lines: in logs, where a bar shows nothing, print lines now and then."""
    log = progress_lines(console) if lines else None
    tasks: dict[str, rich_progress.TaskID] = {}
    with progress_bar(console, enabled=not lines or console.is_terminal) as bar:

        def show(task: str, done: int, total: int | None, status: str = "") -> None:
            if task not in tasks:
                tasks[task] = bar.add_task(task, total=total, status="")
            bar.update(tasks[task], completed=done, total=total, status=status)
            if log:
                log(task, f"{done}/{total}{f', {status}' if status else ''}")

        yield show


def progress_bar(console: Console, *, enabled: bool = True) -> rich_progress.Progress:
    """Rich progress with the time left. Every task has a description and a field ``status`` that ends its line."""
    return rich_progress.Progress(
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

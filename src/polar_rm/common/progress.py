"""The progress bar of every long job."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(console: Console, *, enabled: bool = True) -> Progress:
    """Rich progress with the time left. Every task has a description and a field ``status`` that ends its line."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
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
            console.print(f"{name}: {state}", highlight=False)

    return show

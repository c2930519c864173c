"""Progress reports of long jobs, and their display in a terminal.

Strings are shown unchanged: a path or a prompt is never interpreted as rich's markup.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_FIRST_PAUSE_S, _LINE_S = 5.0, 30.0


def plain_console(*, stderr: bool = False) -> Console:
    """A console that interprets no markup in strings, replaces no ``:names:`` by emoji and colours nothing by itself."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say(console: Console, text: str, *, style: str = "") -> None:
    """Print a text unchanged and without wrapping. style: the style of the whole text, such as ``bold``."""
    console.print(Text(text, style=style), soft_wrap=True)


@contextmanager
def status_line(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """Show a status line until the block ends; yields the function that changes its text.

    In logs, where it doesn't show, the text is printed once and then with the seconds, twice a minute.
    """
    if console.is_terminal:
        with console.status(Text(text)) as status:
            yield lambda changed: status.update(Text(changed))
        return
    current, since = [text], time.monotonic()
    say(console, text)
    with _repeated(console, lambda: f"{current[0]}: {time.monotonic() - since:,.0f} s", lambda: since):

        def change(changed: str) -> None:
            current[0] = changed

        yield change


@contextmanager
def _repeated(console: Console, text: Callable[[], str], since: Callable[[], float]) -> Iterator[None]:
    """Until the block ends, print a text twice a minute while there is no news. since: the time of the last news."""
    last = since()

    def repeat() -> None:
        nonlocal last
        if since() > last:
            last = since()
        else:
            say(console, text())
            last = time.monotonic()

    with repeatedly(repeat, lambda: max(0.0, last + _LINE_S - time.monotonic())):
        yield


@contextmanager
def repeatedly(work: Callable[[], None], pause: Callable[[], float]) -> Iterator[None]:
    """Until the block ends, call ``work`` in a thread, each time after a pause. pause: its seconds, asked anew before each."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(pause()):
            work()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Progress(Protocol):
    """The callback of a long job: one for all of its tasks, such as the stages of a corpus or the policies of a zoo.

    task: the task's name. done, total: in the task's unit; a total of None is unknown. status: additional text.
    """

    def __call__(self, task: str, done: int, total: int | None, status: str = "") -> None: ...


def silent(task: str, done: int, total: int | None, status: str = "") -> None:
    """A :class:`Progress` that shows nothing."""


@contextmanager
def show_progress(console: Console, *, unit: str = "", enabled: bool = True) -> Iterator[Progress]:
    """A :class:`Progress` that draws a bar for each task. In logs, where bars don't show, it prints a line now and then, and the
    last state with its seconds twice a minute where nothing changes.

    unit: what tasks count; their speed is shown then, such as
    ``12.3 items/s``. enabled: show nothing if False, such as on other ranks.
    """
    log = progress_lines(console) if enabled else None
    speeds: dict[str, _Speed] = {}
    tasks: dict[str, rich_progress.TaskID] = {}
    drawn = enabled and console.is_terminal
    bar = progress_bar(console, enabled=drawn)
    state, since = "", time.monotonic()

    def repeated() -> str:
        return f"{state or 'starting'}: {time.monotonic() - since:,.0f} s"

    # Older releases of rich end even a disabled bar with an empty line.
    with bar if drawn else _repeated(console, repeated, lambda: since) if enabled else nullcontext():

        def show(task: str, done: int, total: int | None, status: str = "") -> None:
            nonlocal state, since
            if task not in tasks:
                tasks[task] = bar.add_task(task, total=total, status="")
                speeds[task] = _Speed(done)
            status = ", ".join(filter(None, (speeds[task].text(done, unit), status)))
            bar.update(tasks[task], completed=done, total=total, status=status)
            if log:
                count = f"{done:,}" if total is None else f"{done}/{total}"
                count += f", {status}" if status else ""
                log(task, count)
                state, since = f"{task}: {count}", time.monotonic()

        yield show


class _Speed:
    """The mean speed of a task since its first count: what an earlier run did is not counted."""

    def __init__(self, done: int) -> None:
        self._first, self._since = done, time.monotonic()

    def text(self, done: int, unit: str) -> str:
        seconds = time.monotonic() - self._since
        if not unit or done == self._first or seconds <= 0:
            return ""
        speed = (done - self._first) / seconds
        return f"{speed:,.0f} {unit}/s" if speed >= 100 else f"{speed:.3g} {unit}/s"


def progress_bar(console: Console, *, enabled: bool = True) -> rich_progress.Progress:
    """A progress bar with the remaining time. Every task has a description and a field ``status`` at the end of its line."""
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


def progress_lines(console: Console) -> Callable[[str, str], None]:
    """A function for logs, where bars don't show: it takes a task's name and state.

    It prints a line; for each task the next one comes at the earliest after 5 s, then after 10, 20, and from then on 30 s, so
    that a run of days has no log of megabytes.
    """
    due: dict[str, float] = {}  # task -> earliest time of its next line
    pause: dict[str, float] = {}

    def show(name: str, state: str) -> None:
        now = time.monotonic()
        if not console.is_terminal and now >= due.get(name, 0):
            due[name] = now + pause.setdefault(name, _FIRST_PAUSE_S)
            pause[name] = min(2 * pause[name], _LINE_S)
            say(console, f"{name}: {state}")

    return show

"""SIGTERM and Ctrl-C in a run: the step is finished, a checkpoint saved, and the run stops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from polar_rm.errors import PolarError


class StopRequested(PolarError):
    """SIGTERM or Ctrl-C: the step was finished and a checkpoint saved."""


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def stop_signals() -> Iterator[_Stop]:
    """Within the block SIGTERM and Ctrl-C only set ``requested``, so that the step can finish; a second Ctrl-C interrupts it."""
    stop = _Stop()
    previous: dict[signal.Signals, Any] = {}

    def request(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, request)
    except ValueError:
        pass  # not the main thread (such as a notebook's executor), where handlers can't be set
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

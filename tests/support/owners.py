"""Outputs that somebody else owns."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polar_rm.common.locks import owned


@contextmanager
def owned_elsewhere(output: Path, verb: str) -> Iterator[None]:
    """Own an output in a thread of its own: a thread may own again what it owns."""
    taken, done = threading.Event(), threading.Event()

    def own() -> None:
        with owned(output, verb):
            taken.set()
            done.wait(120)

    thread = threading.Thread(target=own)
    thread.start()
    assert taken.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()

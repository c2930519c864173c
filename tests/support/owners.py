"""Outputs that are in use elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polar_rm.common.locks import owned


@contextmanager
def owned_elsewhere(output: Path, verb: str) -> Iterator[None]:
    """Own an output in another thread, because a thread may own an output several times."""
    acquired, done = threading.Event(), threading.Event()

    def own() -> None:
        with owned(output, verb):
            acquired.set()
            done.wait(120)

    thread = threading.Thread(target=own)
    thread.start()
    assert acquired.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()

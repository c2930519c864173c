"""transformers' progress bars, which a library's call does not draw unasked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

_lock = Lock()
_depth = 0
_before = True


@contextmanager
def without_bars() -> Iterator[None]:
    """Within the block or function transformers draws no bars, unless its verbosity is ``INFO`` or lower: then the user asked.

    Its own switch (``disable_progress_bar``) also changes that of huggingface_hub, for good. Several threads may be in the block.
    """
    from transformers.utils import logging

    switch: Any = logging
    global _depth, _before
    if logging.get_verbosity() <= logging.INFO or not hasattr(switch, "_tqdm_active"):
        yield
        return
    with _lock:
        if not _depth:
            _before, switch._tqdm_active = switch._tqdm_active, False
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                switch._tqdm_active = _before

"""A disk that is full, and a write that is interrupted."""

from __future__ import annotations

import io
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_after(n_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond ``n_bytes``, as a full disk does, with EFBIG for ENOSPC."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class InterruptedFile(io.FileIO):
    """A file whose third write is interrupted by Ctrl-C: ``torch.save`` has begun, and wants to end its file."""

    n_writes = 0

    def write(self, content: bytes) -> int:
        self.n_writes += 1
        if self.n_writes == 3:
            raise KeyboardInterrupt
        return super().write(content)

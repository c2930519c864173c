"""How much memory this machine has for us, asked before it is needed."""

from __future__ import annotations

import os
from pathlib import Path

from polar_rm.errors import PolarError

# What a container may use, by version 2 and 1 of Linux' control groups.
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int | None:
    """Bytes of main memory and swap that this process can use at most; None where the system does not tell."""
    try:
        present = _total()
    except (ValueError, OSError, AttributeError):  # Windows has no such call
        return None
    limits = [text for path in _CONTAINER_LIMITS if (text := _text(path)).isdigit()]
    return min([present, *map(int, limits)])


def check_memory(n_bytes: int, what: str, available: int | None, where: str = "this machine") -> None:
    """Whether something can be in memory at all.

    what: for the message, in the plural. available: bytes there; None is not known, and all is well.

    Raises:
        PolarError: it is more; the message has both numbers.
    """
    if available is not None and n_bytes > available:
        raise PolarError(f"{what} need {gib(n_bytes)} of memory, {where} has {gib(available)}")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of a GPU, was not enough."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def gib(n_bytes: int) -> str:
    """A number of bytes for a person."""
    return f"{n_bytes / 2**30:,.1f} GiB"


def _total() -> int:
    main = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    swap = next((line.split()[1] for line in _text("/proc/meminfo").splitlines() if line.startswith("SwapTotal:")), "0")
    return main + 1024 * int(swap)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""

"""One owner for every output: a second process gets an error that names the owner, and leftovers of killed owners are removed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polar_rm.common.addresses import check_local
from polar_rm.errors import InUse

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Only our unfinished writes have such names: those of `common.files` and of checkpoints.
_LEFTOVER = re.compile(r"^\.(?P<name>.+?)(\.[0-9a-f]{8})?\.(?P<kind>partial|old)$")

_WAIT_S = 1.0

# The outputs that this thread owns: a verb owns its output before it loads a model, and the function that writes the output owns
# it again.
_HELD = threading.local()


@contextmanager
def owned(output: str | Path, verb: str) -> Iterator[None]:
    """Own a file or folder that is about to be written, until the block ends.

    The lock is ``flock`` on ``.NAME.lock`` beside the output. The kernel releases it when the owner dies, however it dies, so
    that no lock is ever stale. With the lock held, leftovers of killed owners are removed: ``.NAME.*.partial`` beside the
    output and hidden ``.partial`` files and folders in it. The lock is reentrant within a thread. verb: what the owner does,
    for the message that other processes get.

    Raises:
        PolarError: the output is an address such as ``s3://bucket``.
        InUse: another process owns the output; the message has its host, its process id and the time. Nothing was changed.
    """
    check_local(output)
    output = Path(output).absolute()
    held = _HELD.__dict__.setdefault("outputs", set())
    if output in held:
        yield
        return
    lock = _lock_path(output)
    descriptor = _acquire(lock, output)
    held.add(output)
    try:
        _write_owner(descriptor, verb)
        remove_leftovers(output)
        yield
    finally:
        held.discard(output)
        if descriptor is not None:
            # The file is removed while its lock is held: a process that has opened it meanwhile sees that it is gone and opens
            # the next one.
            lock.unlink(missing_ok=True)
            os.close(descriptor)


@contextmanager
def owned_soon(
    output: str | Path, verb: str, report: Callable[[str], None] = lambda message: None, *, waiting: str = "waiting"
) -> Iterator[None]:
    """Own an output as soon as no other process does; see :func:`owned`.

    report: is told once whom we wait for, in a line that begins with ``waiting``.
    """
    with ExitStack() as stack:
        told = False
        while True:
            try:
                stack.enter_context(owned(output, verb))
                break
            except InUse as error:
                if not told:
                    report(f"{waiting}: {error}")
                told = True
                time.sleep(_WAIT_S)
        yield


def is_owned(output: str | Path) -> bool:
    """Whether a process, this one included, owns an output now."""
    return _is_held(_lock_path(Path(output).absolute()))


def owner_of(output: str | Path) -> str | None:
    """The process that owns an output now, as the message of :class:`InUse` names it; None if there is none."""
    lock = _lock_path(Path(output).absolute())
    return _owner(lock) if _is_held(lock) else None


def remove_leftovers(output: Path) -> None:
    """Remove what killed writers left beside an output and in it.

    A kill between the two renames of a replacement leaves only the old target under a hidden name; it is restored.
    """
    inside = [path for path in output.rglob(".*") if _LEFTOVER.match(path.name)] if output.is_dir() else []
    beside = [path for path in output.parent.glob(".*") if (m := _LEFTOVER.match(path.name)) and m["name"] == output.name]
    for path in [*beside, *inside]:
        match = _LEFTOVER.match(path.name)
        if match is None or not path.exists():  # its folder has already been removed
            continue
        target = path.with_name(match["name"])
        if target != output and _is_held(_lock_path(target)):
            continue
        if match["kind"] == "old" and not target.exists():
            path.rename(target)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _lock_path(output: Path) -> Path:
    """The lock file beside the output; inside it where only the output itself is writable, such as a mounted volume."""
    if output.is_dir() and not os.access(output.parent, os.W_OK):
        return output / ".lock"
    return output.with_name(f".{output.name}.lock")


def _acquire(lock: Path, output: Path) -> int | None:
    """The descriptor of the locked file; None, with a warning, where the file system or the platform has no such locks."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while fcntl is not None:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(lock)
            os.close(descriptor)
            raise InUse(f"{output}: in use by {owner}; wait for it, or use another output") from None
        except OSError as error:
            os.close(descriptor)
            warnings.warn(f"{lock}: locks don't work here ({error.strerror}): nothing keeps a second process out", stacklevel=4)
            return None
        if _same_file(descriptor, lock):
            return descriptor
        os.close(descriptor)  # the last owner removed the file between our two calls
    warnings.warn(f"{output}: this platform has no file locks: nothing keeps a second process out", stacklevel=4)
    return None


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_held(lock: Path) -> bool:
    if fcntl is None or not lock.exists():
        return False
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _write_owner(descriptor: int | None, verb: str) -> None:
    if descriptor is None:
        return
    since = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"verb": verb, "host": socket.gethostname(), "pid": os.getpid(), "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _owner(lock: Path) -> str:
    try:
        owner: dict[str, Any] = json.loads(lock.read_text())
        return f"polar {owner['verb']} on {owner['host']}, process {owner['pid']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # the owner has the lock, but has not written its name yet
        return "another process"

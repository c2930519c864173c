"""One owner of every output: a second process is refused by name, and what a killed owner left behind is removed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polar_rm.errors import PolarError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Names that only unfinished writes of ours have: of this module's sibling `files`, and of checkpoints.
_LEFTOVER = re.compile(r"^\.(?P<name>.+?)(\.[0-9a-f]{8})?\.(?P<kind>partial|old)$")

# What this thread owns: a verb owns its output before it loads a model, and the function that writes it owns it, too.
_HELD = threading.local()


@contextmanager
def owned(output: str | Path, verb: str) -> Iterator[None]:
    """Own a file or folder that is about to be written, until the block ends.

    The lock is ``flock`` on ``.NAME.lock`` beside the output. The kernel lets go of it when the owner dies, however it dies, so
    no lock is ever stale. Once it is held, leftovers of killed owners are removed: ``.NAME.*.partial`` beside the output and
    hidden ``.partial`` files and folders inside. A thread that owns an output may own it again inside. verb: what the owner does,
    for the message that others get.

    Raises:
        PolarError: another process owns it; the message has its host, its process id and since when. Nothing was changed.
    """
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
        sweep(output)
        yield
    finally:
        held.discard(output)
        if descriptor is not None:
            # Removed while it is held: whoever has opened the old file meanwhile sees that it is gone and opens the next one.
            lock.unlink(missing_ok=True)
            os.close(descriptor)


def sweep(output: Path) -> None:
    """Remove what killed writers of an output left beside it and in it. A target that a kill between two renames took away is put
    back."""
    inside = [path for path in output.rglob(".*") if _LEFTOVER.match(path.name)] if output.is_dir() else []
    beside = [path for path in output.parent.glob(".*") if (m := _LEFTOVER.match(path.name)) and m["name"] == output.name]
    for path in [*beside, *inside]:
        match = _LEFTOVER.match(path.name)
        if match is None or not path.exists():  # in a folder that is gone already
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
    """Beside the output; in it where only the output itself is writable, as with a volume that is mounted there."""
    if output.is_dir() and not os.access(output.parent, os.W_OK):
        return output / ".lock"
    return output.with_name(f".{output.name}.lock")


def _acquire(lock: Path, output: Path) -> int | None:
    """An open, locked file; None where the file system or the platform has no such locks, which is said."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while fcntl is not None:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(lock)
            os.close(descriptor)
            raise PolarError(f"{output}: in use by {owner}; wait for it, or use another output") from None
        except OSError as error:
            os.close(descriptor)
            warnings.warn(f"{lock}: no lock here ({error.strerror}): nothing keeps a second process out", stacklevel=4)
            return None
        if _same_file(descriptor, lock):
            return descriptor
        os.close(descriptor)  # its last owner removed it between our two calls
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
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock and is about to write its name
        return "another process"

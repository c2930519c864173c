"""Reading, writing and hashing of files and folders: atomic, durable, and with the disk's refusals in the message."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from polar_rm.common.addresses import check_local
from polar_rm.common.json import dump_json
from polar_rm.common.locks import owned
from polar_rm.common.text import last_line
from polar_rm.errors import MachineFailure, PolarError


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files in a folder.

    Files whose path has a hidden part are left out: notebooks, desktops and locks leave such files in a folder
    (``.ipynb_checkpoints``, ``._x``, ``__MACOSX``), and they are not its content. So is a README.md: a new card makes no other
    model.
    """
    path = Path(path)
    if path.is_dir():
        paths = (p for p in path.rglob("*") if p.is_file() and p.name != "README.md")
        names = sorted(p for p in paths if not _is_hidden(p.relative_to(path)))
        return hashlib.sha256("".join(f"{p.relative_to(path)} {sha256(p)}\n" for p in names).encode()).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PolarError(f"{path}: {error.strerror}") from error


def _is_hidden(path: Path) -> bool:
    return any(name.startswith((".", "_")) for name in path.parts)


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        PolarError: the file is not readable, not JSON or not an object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolarError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise PolarError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise PolarError(f"{path}: not a JSON object")
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Write indented standard JSON (see :func:`polar_rm.common.json.dump_json`) atomically; errors as in :func:`write_file`."""
    write_file(path, dump_json(value, indent=2) + "\n")


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write a file atomically and durably: a reader sees the old file or the new one, never a part, even after a power cut.

    Missing parent folders are created.

    Raises:
        PolarError: the disk is full or not writable.
    """
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that becomes ``path`` when the block succeeds. It is as atomic and durable as :func:`write_file`.

    A failure leaves the existing file unchanged.

    Raises:
        PolarError: the disk is full or not writable.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise MachineFailure(f"{path}: could not be written: {error.strerror or error}") from error
    finally:
        with suppress(NotADirectoryError):  # a parent is a file; the error above says so
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path, kind: str = "partial") -> Path:
    """A hidden sibling path with a random part, so that no two writers share it. kind: ``partial`` or ``old``.

    A process id would not do: ids repeat, in containers almost always. The next owner of the output removes what a killed writer
    leaves under such a name, see :mod:`polar_rm.common.locks`.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def check_target(path: str | Path, suffixes: Sequence[str] = ()) -> None:
    """Check before long work that its result can be written to ``path`` afterwards.

    Raises:
        PolarError: the path is ``-``, an address or a folder, has none of the ``suffixes``, or lies in a folder that is not
            writable.
    """
    path = Path(path)
    if str(path) == "-":  # elsewhere the standard output; here it would become a file of this name
        raise PolarError("-: nothing is written to the standard output by this name; name a file")
    check_local(path)
    if path.is_dir():
        raise PolarError(f"{path}: it is a folder; name a file")
    if suffixes and path.suffix.lower() not in suffixes:
        raise PolarError(f"{path}: unknown kind of file to write; known: {', '.join(suffixes)}")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PolarError(f"{path}: could not be written: {parent} is {'not writable' if parent.is_dir() else 'not a folder'}")


def check_new_folder(target: Path) -> None:
    """Check, before the work, that a folder is new or empty.

    Raises:
        PolarError: it holds something, or is a file.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PolarError(f"{target}: it exists already; name a new folder")


@contextmanager
def atomic_directory(target: str | Path) -> Iterator[Path]:
    """Yield a fresh sibling folder that becomes ``target`` only if the block succeeds; an old ``target`` is replaced.

    Files and folder entries are synced to the disk before the names change. The change is one step where the file system can
    exchange two names. Elsewhere a kill between two renames leaves the old folder under a hidden name, and the next writer
    restores it from there.

    Raises:
        PolarError: the disk is full or not writable, or another process is writing this folder. No partial folder is left.
    """
    target = Path(target)
    temporary = temporary_path(target.absolute())
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineFailure(f"{target}: could not be saved: {error.strerror}") from error
    with owned(target, "writing a folder"):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for path in [*temporary.rglob("*"), temporary]:
                if path.is_file():
                    path.chmod(0o644)  # safetensors writes 0600, which other users' servers can't read
                sync(path)
            _replace_directory(temporary, target.absolute())
            sync(temporary.parent)
        except BaseException as error:
            refusal = disk_refusal(error, temporary)
            shutil.rmtree(temporary, ignore_errors=True)
            if refusal:
                raise MachineFailure(f"{target}: could not be saved: {refusal}") from error
            if interrupt := interruption(error):
                raise interrupt from None
            raise


def _replace_directory(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
    elif _exchange(new, target):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = temporary_path(target, "old")
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step with ``renameat2`` of Linux; False where the platform or the file system lacks it."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "renameat2"):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return bool(libc.renameat2(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), rename_exchange) == 0)


def disk_refusal(error: BaseException, folder: Path) -> str | None:
    """Why the file system refused a write (full, read-only, quota), whatever type a library raises; None for other errors."""
    reasons = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)]
    if interruption(error) is None:
        # On a full disk torch's writer reports only that its file is shorter than it should be.
        reasons.append("inline_container")
    if not isinstance(error, OSError) and not any(reason in str(error) for reason in reasons):
        return None
    return f"{last_line(error)} ({_free_space(folder)})"


def _free_space(folder: Path) -> str:
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path())
    return f"{shutil.disk_usage(existing).free / 2**20:,.0f} MiB are free"


def interruption(error: BaseException) -> BaseException | None:
    """The Ctrl-C (or exit) that ended a write, also where a library raises an error of its own in its place; None without one.

    ``torch.save`` raises a ``RuntimeError`` that its file is too short, and PyTorch's distributed checkpoint a
    ``CheckpointException`` with the errors of all ranks in ``failures``.
    """
    remaining, seen = [error], set[int]()
    while remaining:
        current = remaining.pop()
        if isinstance(current, KeyboardInterrupt | SystemExit):
            return current
        if id(current) not in seen:
            seen.add(id(current))
            inner = [failure[0] for failure in getattr(current, "failures", {}).values()]
            remaining += [each for each in (current.__cause__, current.__context__, *inner) if each is not None]
    return None


@contextmanager
def full_disk_named(path: str | Path) -> Iterator[None]:
    """Name the file that is written in the block if the disk is full: the error of an open file names none.

    The block contains the closing of the file, too, which writes again. Lines that were written before are kept.

    Raises:
        PolarError: the disk, or the user's share of it, is full, or the file may not grow further.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        reason = f"{error.strerror} ({_free_space(Path(path))})"  # the error of a copy names the file that was read
        raise MachineFailure(
            f"{path}: could not be written: {reason}; what was written is kept, and the same command continues"
        ) from error


def claim_folder(folder: str | Path, identity: dict[str, Any], holds: str, *, alone: bool = False) -> None:
    """Bind a folder to one set of settings, in its ``settings.json``, so that results of other settings are never mixed in.

    holds: what the folder holds, for the message. alone: no other process can be at work in the folder, so that settings with
    nothing beside them are those of a command that failed before it made anything, and are replaced.

    Raises:
        PolarError: the folder belongs to other settings (the message names what differs), it holds files that no settings
            claimed, or ``settings.json`` is damaged.
    """
    if not is_claimed(folder, lambda: identity, holds, alone=alone):
        write_json(Path(folder) / "settings.json", identity)


def is_claimed(folder: str | Path, identity: Callable[[], dict[str, Any]], holds: str, *, alone: bool = False) -> bool:
    """Whether a folder holds results of these settings; False: it is free for them. Nothing is written, so that a plan may ask.

    identity: is called only where there is something to compare with. The others: see :func:`claim_folder`.

    Raises:
        PolarError: the errors of :func:`claim_folder`.
    """
    folder = Path(folder)
    path = folder / "settings.json"
    # Hidden names are being written.
    made = {each.name for each in folder.iterdir() if not each.name.startswith(".")} if folder.exists() else set()
    if alone and made <= {path.name}:
        return False
    if not path.exists():
        if made and not path.exists():  # a process that shares the folder may just have claimed it
            kind = holds.removeprefix("an ").removeprefix("a ")
            raise PolarError(f"{folder}: it is not empty and holds no {kind}; use another output folder")
        if not made:
            return False
    if changed := differences(read_json(path), json.loads(json.dumps(identity(), default=str))):
        raise PolarError(f"{folder}: it holds {holds} of other settings ({changed}); use another output folder")
    return True


def differences(saved: dict[str, Any], now: dict[str, Any]) -> str:
    """The first five differences, by name, between two nested settings of JSON values; empty where there are none."""
    saved, now = flat(saved), flat(now)
    changed = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
    shown = "; ".join(f"{key}: {_short(saved.get(key))} there, {_short(now.get(key))} now" for key in changed[:5])
    return f"{shown} and {len(changed) - 5} more" if len(changed) > 5 else shown


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted names: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``. name: that of ``value``."""
    if not isinstance(value, dict) or (not value and name):
        return {name: value}
    return {key: each for inner, item in value.items() for key, each in flat(item, f"{name}.{inner}" if name else inner).items()}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems can't sync folders
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)

"""Small helpers on files that several verbs need."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polar_rm.errors import PolarError


def sha256(path: str | Path) -> str:
    """Of a file's bytes, or for a folder of all its files' names and bytes."""
    path = Path(path)
    if path.is_dir():
        names = sorted(p for p in path.rglob("*") if p.is_file())
        return hashlib.sha256("".join(f"{p.relative_to(path)} {sha256(p)}\n" for p in names).encode()).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PolarError(f"{path}: {error.strerror}") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        PolarError: not readable, not JSON or not an object.
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
    """Indented, atomically; errors as in :func:`write_file`."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_file(path: str | Path, content: str | bytes) -> None:
    """Atomically: a reader sees the old file or the new one, never half of it. Folders are made.

    Raises:
        PolarError: the disk is full or not writable.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise PolarError(f"{path}: could not be written: {error.strerror}") from error


def check_target(path: str | Path, suffixes: Sequence[str] = ()) -> None:
    """Whether a file can be written there later: said before the work whose result it takes, not behind it.

    Raises:
        PolarError: it is a folder, has none of the ``suffixes``, or lies where nothing can be written.
    """
    path = Path(path)
    if path.is_dir():
        raise PolarError(f"{path}: it is a folder; name a file")
    if suffixes and path.suffix.lower() not in suffixes:
        raise PolarError(f"{path}: unknown kind of file to write; known: {', '.join(suffixes)}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise PolarError(f"{path}: could not be written: {above} is {'not writable' if above.is_dir() else 'no folder'}")


@contextmanager
def atomic_directory(target: str | Path) -> Iterator[Path]:
    """A fresh sibling folder that becomes ``target`` only if the block succeeds; an old ``target`` is replaced.

    Raises:
        PolarError: the disk is full or not writable; nothing half-written is left.
    """
    target = Path(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors writes 0600, which other users' servers can't read
                _sync(path)
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        refusal = disk_refusal(error, temporary)
        shutil.rmtree(temporary, ignore_errors=True)
        if refusal:
            raise PolarError(f"{target}: could not be saved: {refusal}") from error
        raise


def disk_refusal(error: BaseException, folder: Path) -> str | None:
    """What the file system refused (full, read-only, quota), under whichever type a library raises it; None for other errors."""
    reasons = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)]
    # On a full disk torch's writer says only that its file is not as long as it should be.
    reasons.append("inline_container")
    if not isinstance(error, OSError) and not any(reason in str(error) for reason in reasons):
        return None
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path())
    return f"{str(error).strip().splitlines()[-1]} ({shutil.disk_usage(existing).free / 2**20:,.0f} MiB are free)"


def claim_folder(folder: str | Path, identity: dict[str, Any], holds: str) -> None:
    """Mark a folder, in ``settings.json``, as that of one set of settings; results of others would be mixed without a trace.

    holds: what is in it, for the message.

    Raises:
        PolarError: it is another's, and what differs; it holds files that nobody claimed; or ``settings.json`` is damaged.
    """
    folder = Path(folder)
    path = folder / "settings.json"
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise PolarError(f"{folder}: it is not empty and holds no {holds}; use another output folder")
        write_json(path, identity)
        return
    if changed := differences(read_json(path), json.loads(json.dumps(identity, default=str))):
        raise PolarError(f"{folder}: it holds {holds} of other settings ({changed}); use another output folder")


def differences(saved: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two nested settings of JSON values, the first five by name; empty where nothing does."""
    saved, now = _flat(saved), _flat(now)
    changed = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
    shown = "; ".join(f"{key}: {_short(saved.get(key))} there, {_short(now.get(key))} now" for key in changed[:5])
    return f"{shown} and {len(changed) - 5} more" if len(changed) > 5 else shown


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {key: each for inner, item in value.items() for key, each in _flat(item, f"{name}.{inner}" if name else inner).items()}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())

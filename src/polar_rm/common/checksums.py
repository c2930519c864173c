"""Sizes and checksums of the files that we write, and whether they still hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from polar_rm.common.files import read_json, sha256, write_json
from polar_rm.common.json import dump_json
from polar_rm.errors import Damaged, PolarError


class FileFacts(TypedDict):
    """bytes: the file's size. sha256: of its content, in hexadecimal."""

    bytes: int
    sha256: str


def describe_file(path: Path) -> FileFacts:
    """Of one file, as it is now."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def describe_files(folder: str | Path, names: Iterable[str] | None = None) -> dict[str, FileFacts]:
    """What :func:`check_files` needs, by name relative to ``folder``; names: by default all files in it, at any depth."""
    folder = Path(folder)
    if names is None:
        names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {name: describe_file(folder / name) for name in sorted(names)}


def check_files(folder: str | Path, files: Mapping[str, FileFacts], *, full: bool = False) -> None:
    """Compare the files of a folder with what :func:`describe_files` gave. full: their content too, not only their size.

    Raises:
        Damaged: the first file that is missing or differs, and in what.
    """
    for name, facts in files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise Damaged(f"{path}: it is missing")
        if (size := path.stat().st_size) != facts["bytes"]:
            raise Damaged(f"{path}: it has {size:,} bytes, written were {facts['bytes']:,}")
        if full and sha256(path) != facts["sha256"]:
            raise Damaged(f"{path}: its content is not what was written (another SHA-256)")


def write_sealed(path: str | Path, value: Mapping[str, Any]) -> None:
    """A JSON object with its own checksum under ``seal``; errors as in :func:`polar_rm.common.files.write_file`."""
    write_json(path, {**value, "seal": _seal(value)})


def read_sealed(path: str | Path) -> dict[str, Any]:
    """What :func:`write_sealed` wrote, without the seal.

    Raises:
        Damaged: it is missing, not JSON, or not what was written.
    """
    try:
        value = read_json(path)
    except PolarError as error:
        raise Damaged(str(error)) from error
    if value.pop("seal", None) != _seal(value):
        raise Damaged(f"{path}: its content is not what was written (its seal does not fit)")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(dump_json(value).encode()).hexdigest()

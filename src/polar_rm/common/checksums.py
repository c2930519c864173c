"""Sizes and SHA-256 checksums of the files that we write, and the check that files still match them."""

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
    """Size and SHA-256 of one file as it is now."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def describe_files(folder: str | Path, names: Iterable[str] | None = None) -> dict[str, FileFacts]:
    """File name relative to ``folder`` -> size and SHA-256, as :func:`check_files` takes them.

    names: the files to describe; by default all files in the folder, at any depth.
    """
    folder = Path(folder)
    if names is None:
        names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {name: describe_file(folder / name) for name in sorted(names)}


def check_files(folder: str | Path, files: Mapping[str, FileFacts], *, full: bool = False) -> None:
    """Compare the files of a folder with the result of :func:`describe_files`. full: compare contents too, not only sizes.

    Raises:
        Damaged: names the first file that is missing or differs, and the difference.
    """
    for name, facts in files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise Damaged(f"{path}: the file is missing")
        if (size := path.stat().st_size) != facts["bytes"]:
            raise Damaged(f"{path}: the file has {size:,} bytes, but {facts['bytes']:,} were written")
        if full and sha256(path) != facts["sha256"]:
            raise Damaged(f"{path}: the content is not what was written (the SHA-256 differs)")


def write_sealed(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum under the key ``seal``; errors as in :func:`polar_rm.common.files.write_file`."""
    write_json(path, {**value, "seal": _seal(value)})


def read_sealed(path: str | Path) -> dict[str, Any]:
    """Read the object that :func:`write_sealed` wrote, without the seal.

    Raises:
        Damaged: the file is missing, not JSON, or not what was written.
    """
    try:
        value = read_json(path)
    except PolarError as error:
        raise Damaged(str(error)) from error
    if value.pop("seal", None) != _seal(value):
        raise Damaged(f"{path}: the content is not what was written (its seal does not match)")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(dump_json(value).encode()).hexdigest()

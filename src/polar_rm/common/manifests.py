"""Checks that the files of a data folder are those that its ``manifest.json`` lists.

``polar sample`` and ``polar corpus`` write the manifest last. Every reader of such a folder checks it here first, so that nobody
continues with the remains of a kill, a full disk or a careless ``rm``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from polar_rm.common.checksums import describe_file
from polar_rm.common.files import differences, read_json, sha256, write_json
from polar_rm.common.text import first_line
from polar_rm.errors import Damaged, PolarError

NAME = "manifest.json"

# Schema prefix of a manifest -> the verb that writes the folder, the subfolders with its Parquet files, and a file or folder that
# exists before the first manifest does.
_KINDS = {
    "polar-rm/encoded/": ("encode", ("shards",), "shards"),
    "polar-rm/references/": ("references", (), "work/references"),
    "polar-rm/selection/": ("select", (), "work/select"),
    "polar-rm/trajectories/": ("sample", ("trajectories",), "store.sqlite"),
    "polar-rm/corpus/": ("corpus", ("train", "unseen_prompts", "unseen_policies", "unseen_texts"), "work"),
}


class DataFile(TypedDict):
    """A manifest's entry for one file. bytes: the file's size."""

    rows: int
    bytes: int
    sha256: str


def describe_data_file(path: Path, rows: int) -> DataFile:
    """The entry for a file that has just been written."""
    return {"rows": rows, **describe_file(path)}


def check_output(
    folder: Path, schema: str, holds: str, identity: dict[str, Any], compared: Callable[[dict[str, Any]], dict[str, Any]]
) -> bool:
    """Check that a run may write into a folder; returns whether it holds a finished run with the same settings and inputs.

    What a kill left of the temporary files of a finished run is removed. The arguments: see :func:`found_output`.

    Raises:
        PolarError: the folder holds something else, or a run of other settings.
    """
    if found_output(folder, schema, holds, lambda: identity, compared) != "finished":
        return False
    shutil.rmtree((folder / _KINDS[schema][2]).parent, ignore_errors=True)
    return True


def found_output(
    folder: Path,
    schema: str,
    holds: str,
    identity: Callable[[], dict[str, Any]],
    compared: Callable[[dict[str, Any]], dict[str, Any]],
) -> Literal["new", "unfinished", "finished"]:
    """What a run finds in its output folder. Nothing is changed, so that a plan may ask.

    schema: prefix of the manifests of this kind. holds: what a folder of this kind holds, for messages. identity: the settings
    and inputs of this run, which a manifest holds, too; it is called only where there is one. compared: the part of either that
    decides the result.

    Raises:
        PolarError: the folder holds something else, or a run of other settings.
    """
    _, _, marker = _KINDS[schema]
    if (folder / NAME).exists():
        saved = read_json(folder / NAME)
        if not str(saved.get("schema", "")).startswith(schema):
            raise PolarError(f"{folder}: it holds no {holds.removeprefix('a ')}; use another output folder")
        if changed := differences(compared(saved), compared(identity())):
            raise PolarError(f"{folder}: it holds {holds} of other settings ({changed}); use another output folder")
        return "finished"
    if folder.exists() and any(folder.iterdir()) and not (folder / marker).exists():
        raise PolarError(f"{folder}: it is not empty and holds no {holds.removeprefix('a ')}; use another output folder")
    return "unfinished" if (folder / marker).exists() else "new"


def begin_work(folder: Path, schema: str, identity: dict[str, Any]) -> Path:
    """Mark a folder as that of an unfinished run of a kind; returns its folder for temporary files.

    The mark comes first, because :func:`check_output` refuses a folder that has files and no mark.
    """
    _, _, marker = _KINDS[schema]
    (folder / marker).parent.mkdir(parents=True, exist_ok=True)
    (folder / marker).touch()
    write_json(folder / "settings.json", identity)  # a folder with settings.json and work is not read as data
    return (folder / marker).parent


def check_manifest(path: str | Path, *, full: bool = False) -> None:
    """Check that a file or folder is what ``polar sample`` or ``polar corpus`` wrote; files of other origin pass.

    Names, sizes and row counts are compared. path: a file, a folder or a pattern. full: compare contents too, by their SHA-256.

    Raises:
        Damaged: names the first file that is missing, differs or is not listed.
        PolarError: the verb that writes the folder has not finished.
    """
    path = Path(path)
    if not path.exists():
        for each in glob(str(path), recursive=True):
            check_manifest(each, full=full)
        return
    for folder in (path, path.parent) if path.is_dir() else (path.parent, path.parent.parent):
        if (files := listed_files(folder)) is not None:
            _check_listed(folder, files, path, full)
            return
        for verb, subfolders, marker in _KINDS.values():
            if (folder / marker).exists() and not (folder / NAME).exists() and path in (folder, *_managed(folder, subfolders)):
                raise PolarError(f"{folder}: polar {verb} has not finished here (no {NAME}); run the same command again")


def listed_files(folder: Path) -> dict[str, dict[str, Any]] | None:
    """The data files that a folder's manifest lists: name -> facts (see :class:`DataFile`; older manifests have fewer).

    None where the folder has no manifest of ours.
    """
    manifest = folder / NAME
    try:
        stat = manifest.stat()
    except OSError:
        return None
    return _parsed(manifest, stat.st_mtime_ns, stat.st_size)


def check_content(path: Path, digest: str) -> None:
    """Check a file's SHA-256, which the caller has computed, against the manifest that lists the file, if there is one.

    Raises:
        Damaged: the manifest has another SHA-256.
    """
    for folder in (path.parent, path.parent.parent):
        listed = (listed_files(folder) or {}).get(str(path.relative_to(folder)), {}).get("sha256", digest)
        if listed != digest:
            raise Damaged(f"{path}: the content is not what was written ({folder / NAME} has another SHA-256)")


@lru_cache(16)
def _parsed(manifest: Path, mtime_ns: int, size: int) -> dict[str, dict[str, Any]] | None:
    try:
        content = read_json(manifest)
    except PolarError:  # a manifest of another program
        return None
    files, shards = content.get("files"), content.get("shards")
    if not str(content.get("schema", "")).startswith(tuple(_KINDS)):
        return None
    if isinstance(files, list) and all(isinstance(each, dict) and "file" in each for each in files):
        return {str(each["file"]): each for each in files}
    return shards if isinstance(shards, dict) else None


def _check_listed(folder: Path, files: Mapping[str, Mapping[str, Any]], path: Path, full: bool) -> None:
    again = "run the command that wrote it again"
    for name, facts in files.items():
        file = folder / name
        if path not in (folder, file, *file.parents):
            continue
        if not file.is_file():
            raise Damaged(f"{file}: the file is missing, but {folder / NAME} lists it; {again}")
        if (size := file.stat().st_size) != facts.get("bytes", size):
            raise Damaged(f"{file}: the file has {size:,} bytes, but {folder / NAME} says {facts['bytes']:,}; {again}")
        if "rows" in facts and (rows := _rows(file)) != facts["rows"]:
            raise Damaged(f"{file}: the file has {rows:,} rows, but {folder / NAME} says {facts['rows']:,}; {again}")
        if full and "sha256" in facts and sha256(file) != facts["sha256"]:
            raise Damaged(f"{file}: the content is not what was written ({folder / NAME} has another SHA-256); {again}")
    subfolders = [name for _, names, _ in _KINDS.values() for name in names]
    for file in _managed(folder, subfolders):
        if file.is_file() and path in (folder, file, *file.parents) and str(file.relative_to(folder)) not in files:
            raise Damaged(f"{file}: {folder / NAME} does not list it; an interrupted run may have left it: {again}")


def _managed(folder: Path, subfolders: tuple[str, ...] | list[str]) -> Iterator[Path]:
    """The paths that a manifest manages: the subfolders, and the Parquet files that exist now."""
    yield from folder.glob("*.parquet")
    for name in subfolders:
        yield folder / name
        yield from (folder / name).glob("*.parquet")


def _rows(file: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise Damaged(f"{file}: not a complete Parquet file: {first_line(error)}") from error

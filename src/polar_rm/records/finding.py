"""The data files that a path, a folder or a pattern means."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from polar_rm.common.sources import DATA_SUFFIXES, data_path
from polar_rm.errors import PolarError
from polar_rm.records.bad_rows import SIDE_SUFFIX

SUFFIXES = DATA_SUFFIXES
"""Suffixes of files that can be read, in any case."""

PLAIN_SUFFIXES = (".txt", ".md")
"""Suffixes of plain files, whose passages are texts, in any case."""

_SPLIT_MANIFEST = "manifest.json"
_ENCODED = "polar-rm/encoded/"  # the schema of a folder of ``polar encode``
_DATASET = "state.json"  # in a folder written by ``datasets.Dataset.save_to_disk``
_DATASETS = "dataset_dict.json"  # in a folder written by ``DatasetDict.save_to_disk``
# Files that polar writes beside its outputs and that have a suffix of data files. Their rows are not records.
_OUR_NAMES = {"metrics.jsonl", "rejected.jsonl", "refused.jsonl", "contaminated.jsonl"}
_OUR_SUFFIXES = (SIDE_SUFFIX, ".rejected.jsonl", ".refused.jsonl", ".partial")


@dataclass(frozen=True, slots=True)
class DataFiles:
    """The files to read, in order, and how many files of folders are left out.

    left_out: reason -> number of files. are_named: the user named every file, and no folder or pattern.
    """

    files: tuple[Path, ...]
    left_out: dict[str, int]
    are_named: bool = False

    def describe(self) -> str:
        """A summary such as ``3 files; left out: 2 hidden``."""
        summary = f"{len(self.files):,} file{'' if len(self.files) == 1 else 's'}"
        return f"{summary}; left out: {_counts(self.left_out)}" if self.left_out else summary

    def note(self) -> str | None:
        """What a user should know who named folders or patterns: how many files they mean; None where every file was named."""
        return None if self.are_named else f"the folders and patterns mean {self.describe()}"


def find_files(source: str | Path, outputs: Iterable[str | Path] = ()) -> list[Path]:
    """The data files that a path means: the file itself, the files in a folder, or the matches of a pattern; sorted.

    Some files of a folder are left out: those with names that begin with ``.`` or ``_``, lists that polar writes, and ``.json``
    files, most of which hold settings. A folder saved by ``datasets`` means its Arrow files.
    outputs: the files and folders that this run writes.

    Raises:
        PolarError: there are no files, a file's suffix is unknown, a folder holds several splits, or the run writes one of the
            files.
    """
    return list(survey_files([source], outputs).files)


def survey_files(sources: Iterable[str | Path], outputs: Iterable[str | Path] = (), *, plain: tuple[str, ...] = ()) -> DataFiles:
    """:func:`find_files` for several paths, with the number of files that are left out.

    plain: suffixes of plain files that are texts, see :data:`PLAIN_SUFFIXES`. In a folder, or among the matches of a pattern,
    they are read only where there are no data files: a folder of data often has a README.md.
    """
    left_out: Counter[str] = Counter()
    outputs, paths = list(map(Path, outputs)), list(map(data_path, sources))
    files = [file for path in paths for file in _find(path, left_out, plain)]
    for file in files:
        check_not_output(file, outputs)
    return DataFiles(tuple(files), dict(left_out), all(path.is_file() for path in paths))


def find_file(source: str | Path, outputs: Iterable[str | Path] = ()) -> Path:
    """The one file that a path, a folder or a pattern means.

    Raises:
        PolarError: the path means several files, or as in :func:`find_files`.
    """
    files = find_files(source, outputs)
    if len(files) > 1:
        raise PolarError(f"{source}: it means {len(files):,} files; name one: rows of several files would share row numbers")
    return files[0]


def check_not_output(file: Path, outputs: Iterable[str | Path]) -> None:
    """Check that a run which writes ``outputs`` (files or folders) may read a file.

    Raises:
        PolarError: the file is one of the outputs or lies inside one.
    """
    for output in map(Path, outputs):
        if not output.exists():
            continue
        if output.samefile(file):
            raise PolarError(f"{file}: this run writes this file, so it can't be read as data; use another name for the output")
        if output.is_dir() and any(folder.exists() and folder.samefile(output) for folder in file.absolute().parents):
            raise PolarError(
                f"{file}: it lies in {output}, where this run writes, so it can't be read as data; use another output folder"
            )


def _find(path: Path, left_out: Counter[str], plain: tuple[str, ...]) -> list[Path]:
    if path.is_dir():
        files = _chosen(sorted(_walk(path, left_out, plain)), left_out)
        if not files:
            raise PolarError(f"{path}: the folder holds no {', '.join((*SUFFIXES, *plain))} file{_except(left_out)}")
        return files
    if not path.exists():
        matching = sorted(Path(name) for name in glob(str(path), recursive=True))
        if not matching:
            raise PolarError(f"{path}: no such file or folder")
        kept = [each for each in matching if not _is_left_out(each, left_out)]
        found = ((sorted(_walk(each, left_out, plain)) if each.is_dir() else _find(each, left_out, plain)) for each in kept)
        files = _chosen([file for files in found for file in files], left_out)
        if not files:
            raise PolarError(f"{path}: no match of the pattern holds data{_except(left_out)}")
        return files
    if not suffix_of(path) and not _is_plain(path, plain):
        raise PolarError(f"{path}: unknown kind of file; known: {', '.join((*SUFFIXES, *plain))}")
    return [path]


def _is_plain(path: Path, plain: tuple[str, ...]) -> bool:
    return path.suffix.lower() in plain


def _chosen(files: list[Path], left_out: Counter[str]) -> list[Path]:
    """The data files if there are any, else the plain ones."""
    data = [file for file in files if suffix_of(file)]
    if data and len(data) < len(files):
        left_out["plain texts beside data files"] += len(files) - len(data)
    return data or files


def _except(left_out: Mapping[str, int]) -> str:
    return f" (left out: {_counts(left_out)})" if left_out else ""


def _counts(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())


def suffix_of(path: Path) -> str:
    """The longest of :data:`SUFFIXES` that a name ends in, in lower case; empty where there is none."""
    name = path.name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def _walk(folder: Path, left_out: Counter[str], plain: tuple[str, ...]) -> Iterator[Path]:
    """The folder's data files and plain ones; symbolic links to folders are not followed."""
    names = set(os.listdir(folder))
    ours = [_read(folder / name) for name in (_SPLIT_MANIFEST, "settings.json") if name in names]
    if any(str(values.get("schema", "")).startswith(_ENCODED) for values in ours):
        raise PolarError(f"{folder}: it is an encoded corpus, which only data.train and data.eval of a training take")
    if _SPLIT_MANIFEST in names and (splits := _splits(folder / _SPLIT_MANIFEST)):
        raise PolarError(f"{folder}: it is a corpus of several splits; name {folder / splits[0]}")
    if _DATASETS in names:
        inner = _read(folder / _DATASETS).get("splits") or sorted(each.name for each in folder.iterdir() if each.is_dir())
        raise PolarError(f"{folder}: it is a data set of several splits; name one of {', '.join(map(str, inner))}")
    if _DATASET in names and isinstance(parts := _read(folder / _DATASET).get("_data_files"), list):
        yield from (folder / part["filename"] for part in parts if Path(part["filename"]).name == part["filename"])
        return
    for name in sorted(names):
        path = folder / name
        if path.is_dir():
            if _is_hidden(name):
                left_out["hidden folders"] += 1
            elif name == "work" and "settings.json" in names:
                left_out["folders of unfinished work"] += 1
            elif path.is_symlink():
                left_out["links to folders"] += 1
            else:
                yield from _walk(path, left_out, plain)
        elif (suffix_of(path) or _is_plain(path, plain)) and not _is_left_out(path, left_out):
            if suffix_of(path) == ".json":
                left_out[".json (read only where named)"] += 1
            elif path.is_file():
                yield path


def _is_left_out(path: Path, left_out: Counter[str]) -> bool:
    """Whether a file is hidden, or is a list or an encoding that polar wrote beside its outputs; counts it if so."""
    if _is_hidden(path.name):
        left_out["hidden"] += 1
    elif path.name in _OUR_NAMES or path.name.endswith(_OUR_SUFFIXES) or path.with_suffix(".index.json").exists():
        left_out["written by polar, not data"] += 1
    else:
        return False
    return True


def _is_hidden(name: str) -> bool:
    """Whether a name is hidden by the rule of Arrow and ``datasets``. Notebooks, macOS and Spark leave such files beside data."""
    return name.startswith((".", "_"))


def _splits(manifest: Path) -> list[str]:
    """The splits in a manifest of ``polar corpus``; empty for other manifests."""
    shards = _read(manifest).get("shards")
    return sorted({str(name).partition("/")[0] for name in shards if "/" in str(name)}) if isinstance(shards, dict) else []


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

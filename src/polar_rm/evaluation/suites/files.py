"""Reads a publisher's files as comparisons: selects files of a folder, checks rows, and refuses repeated ids."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from polar_rm.errors import BadRow, PolarError
from polar_rm.records import Comparison, InvalidRecord, RowRules, Text, find_file, read_rows
from polar_rm.records.fields import Fields
from polar_rm.records.finding import suffix_of
from polar_rm.records.values import kind_of

_log = logging.getLogger("polar_rm.evaluation")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a published file. path: the file. raw: the unchanged fields. take: the checked fields."""

    path: Path
    raw: Mapping[str, Any]
    take: Fields

    def identity(self, name: str) -> str:
        """An id, which is a number in some files and a text in others."""
        return self.take.string(name) if isinstance(self.raw.get(name), str) else str(self.take.integer(name))

    def prompt(self, name: str) -> Text:
        """An unchanged string, or messages. A string is never read as messages, not even in tables."""
        return self.take.string(name) if isinstance(self.raw.get(name), str) else self.take.text(name)

    def string_of(self, name: str, value: Any, field: str) -> str:
        """A string inside an object, such as ``chosen.answer``. name: the name of the object, for messages.

        Raises:
            InvalidRecord: the object or the string is missing.
        """
        if not isinstance(value, Mapping):
            raise InvalidRecord(name, f"an object with {field!r}, not {kind_of(value)}")
        try:
            return Fields(value, is_cell=False).string(field)
        except InvalidRecord as error:
            raise InvalidRecord(f"{name}.{error.field}", error.expected) from None

    def one_of(self, name: str, known: Sequence[str]) -> str:
        """A string that must be one of the known ones.

        Raises:
            InvalidRecord: it is another one.
        """
        value = self.take.string(name)
        if value not in known:
            raise InvalidRecord(name, f"one of {', '.join(known)}, not {value!r}")
        return value


def find_suite_files(path: Path, suffixes: Sequence[str], belongs: Callable[[Path], bool], expected: str) -> list[Path]:
    """The file itself with any name, or the sorted files of a folder that belong to the benchmark.

    suffixes: allowed suffixes in a folder, such as ``.jsonl``. belongs: whether a path relative to the folder belongs to the
    benchmark. expected: a description of the expected files, for the message. Hidden files and folders are left out.

    Raises:
        PolarError: there is no such file, or the folder holds no file of the benchmark.
    """
    if not path.is_dir():
        return [find_file(path)]
    files = []
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if suffix_of(file) in suffixes and file.is_file() and not _is_hidden(relative) and belongs(relative):
            files.append(file)
    if not files:
        raise PolarError(f"{path}: the folder holds no {expected}")
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def read_suite(
    files: Sequence[Path],
    convert: Callable[[Row], Comparison | None],
    *,
    key: Sequence[str] = ("id",),
    id_field: str = "id",
    passed_over: str = "",
) -> Iterator[Comparison]:
    """The comparison of every row of every file. A comparison without an id gets the file's name and the row's number.

    convert: returns None for a row that the official rule leaves out; their number is logged with the reason (``passed_over``).
    key: metadata keys that together identify a row, with ``id`` among them, because publishers number each domain separately.
    Their
        values joined by ``/`` are the comparison's id. id_field: the name of the id in the file.

    Raises:
        BadRow: a row is invalid, or its key occurs twice; the message names file, row and field. PolarError: a file can't be read
            or is empty.
    """
    first_rows: dict[str, str] = {}
    for file in files:
        left_out = 0
        for number, comparison in read_rows(file, partial(_convert, file, convert)):
            if comparison is None:
                left_out += 1
                continue
            comparison.metadata.setdefault("id", f"{file.stem}:{number}")
            identity = "/".join(comparison.metadata[name] for name in key)
            if identity in first_rows:
                raise BadRow(str(file), number, id_field, f"a unique id, but {first_rows[identity]} has {identity!r}, too")
            first_rows[identity] = f"{file}: row {number}"
            comparison.metadata["id"] = identity
            yield comparison
        if left_out:
            _log.warning("%s: %d rows are left out: %s", file, left_out, passed_over)


def _convert(
    file: Path, convert: Callable[[Row], Comparison | None], raw: Mapping[str, Any], rules: RowRules
) -> Comparison | None:
    return convert(Row(file, raw, Fields(raw, rules.is_cell)))

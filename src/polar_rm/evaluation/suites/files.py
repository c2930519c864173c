"""A publisher's files as comparisons: which files of a folder, which row is at fault, which id came twice."""

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
    """One row of a published file. path: the file. raw: as it stands there. take: its checked fields."""

    path: Path
    raw: Mapping[str, Any]
    take: Fields

    def identity(self, name: str) -> str:
        """An id, which some publishers write as a number and others as a text."""
        return self.take.string(name) if isinstance(self.raw.get(name), str) else str(self.take.integer(name))

    def prompt(self, name: str) -> Text:
        """A string as it is, or messages; a string is never read as messages, in tables neither."""
        return self.take.string(name) if isinstance(self.raw.get(name), str) else self.take.text(name)

    def string_of(self, name: str, value: Any, field: str) -> str:
        """A string inside an object, such as ``chosen.answer``. name: the object's, for messages.

        Raises:
            InvalidRecord: it is not there.
        """
        if not isinstance(value, Mapping):
            raise InvalidRecord(name, f"an object with {field!r}, not {kind_of(value)}")
        try:
            return Fields(value, is_cell=False).string(field)
        except InvalidRecord as error:
            raise InvalidRecord(f"{name}.{error.field}", error.expected) from None

    def one_of(self, name: str, known: Sequence[str]) -> str:
        """One of the strings that this version of the benchmark has.

        Raises:
            InvalidRecord: another.
        """
        value = self.take.string(name)
        if value not in known:
            raise InvalidRecord(name, f"one of {', '.join(known)}, not {value!r}")
        return value


def find_suite_files(path: Path, suffixes: Sequence[str], belongs: Callable[[Path], bool], expected: str) -> list[Path]:
    """The file itself, whatever its name, or those files of a folder that belong to the benchmark; sorted.

    suffixes: of files in a folder, such as ``.jsonl``. belongs: of a file's path relative to the folder. expected: what should be
    there, for the message. Hidden files and folders are left out.

    Raises:
        PolarError: there is no such file, or the folder holds none of the benchmark.
    """
    if not path.is_dir():
        return [find_file(path)]
    found = [
        file
        for file in sorted(path.rglob("*"))
        if suffix_of(file) in suffixes and file.is_file() and _is_seen(file.relative_to(path)) and belongs(file.relative_to(path))
    ]
    if not found:
        raise PolarError(f"{path}: the folder holds no {expected}")
    return found


def _is_seen(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts)


def read_suite(
    files: Sequence[Path],
    convert: Callable[[Row], Comparison | None],
    *,
    key: Sequence[str] = ("id",),
    id_field: str = "id",
    passed_over: str = "",
) -> Iterator[Comparison]:
    """The comparison of every row of every file. One that has no id gets the file's name and the row's number.

    convert: None for a row that the official rule leaves out; how many there are is logged, with why (``passed_over``).
    key: metadata that no two rows share, ``id`` among them: publishers number anew in each domain. Joined by ``/`` they are the
        comparison's id. id_field: what the id is called in the file.

    Raises:
        BadRow: names file, row and field; also where a key came before. PolarError: a file can't be read or is empty.
    """
    seen: dict[str, str] = {}
    for file in files:
        left_out = 0
        for number, comparison in read_rows(file, partial(_convert, file, convert)):
            if comparison is None:
                left_out += 1
                continue
            comparison.metadata.setdefault("id", f"{file.stem}:{number}")
            identity = "/".join(comparison.metadata[name] for name in key)
            if identity in seen:
                raise BadRow(str(file), number, id_field, f"an id of its own, but {seen[identity]} has {identity!r} too")
            seen[identity] = f"{file}: row {number}"
            comparison.metadata["id"] = identity
            yield comparison
        if left_out:
            _log.warning("%s: %d rows are passed over: %s", file, left_out, passed_over)


def _convert(
    file: Path, convert: Callable[[Row], Comparison | None], raw: Mapping[str, Any], rules: RowRules
) -> Comparison | None:
    return convert(Row(file, raw, Fields(raw, rules.is_cell)))

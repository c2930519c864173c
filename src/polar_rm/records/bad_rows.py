"""The treatment of bad rows, and of rows that can be read but may mean something else."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from polar_rm.common.json import dump_json
from polar_rm.errors import BadRow, MachineFailure, PolarError

SIDE_SUFFIX = ".rejected"
"""The suffix of side files. They hold JSON lines, but no reader accepts this suffix: one run's bad rows never become the input of
another."""


@dataclass(slots=True)
class OnBadRow:
    """The treatment of rows that are not records, and notes about rows that are.

    mode: ``error`` raises :class:`BadRow`; ``skip`` writes {path, row, field, expected, content} to ``side_file`` and continues.
    strip_prompt: drop the prompt's messages where an answer (reference, candidate, output) begins with them; otherwise such a row
        is a bad row.
    count: bad rows so far. The first of them truncates the side file.
    notes: a text about what was dropped, or was read unchanged but may mean something else -> number of rows, and the first row.
    """

    mode: Literal["error", "skip"] = "error"
    side_file: str | Path | None = None
    count: int = 0
    strip_prompt: bool = False
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in ("error", "skip"):
            raise PolarError(f"unknown treatment of bad rows {self.mode!r}; known: error, skip")
        if self.mode == "skip" and self.side_file is None:
            raise PolarError("bad rows can only be skipped into a side file: no row may be lost")

    def refuse(self, error: BadRow, content: Any) -> None:
        """Raise ``error``, or write it with the row's content to the side file."""
        if self.mode == "error" or self.side_file is None:
            raise error
        row = {"path": error.path, "row": error.row, "field": error.field, "expected": error.expected}
        try:
            line = dump_json(row | {"content": content})
        except RecursionError:  # the row is bad because it is nested too deeply
            line = dump_json(row | {"content": None})
        try:
            with open(self.side_file, "w" if self.count == 0 else "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
        except OSError as failure:
            raise MachineFailure(f"{self.side_file}: could not be written: {failure.strerror}") from failure
        self.count += 1

    def note(self, path: str, row: int, notes: Iterable[str]) -> None:
        """Count the notes about one row."""
        for text in notes:
            count, first = self.notes.get(text, (0, f"{path}: row {row}"))
            self.notes[text] = count + 1, first

    def warnings(self) -> list[str]:
        """One line for each kind of note, with the number of rows and the first of them."""
        return [f"{_rows(count)}: {text} (first: {first})" for text, (count, first) in self.notes.items()]


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count > 1 else ''}"


def side_file(output: str | Path | None, sources: Iterable[str | Path] = ()) -> Path:
    """The file for a run's bad rows: ``OUTPUT.rejected`` beside its output.

    Without an output it is a unique name in the working folder, derived from the first source.
    """
    if output is not None:
        path = Path(output)
        return path.with_name(path.name + SIDE_SUFFIX)
    name = next((Path(source).name for source in sources), "") or "rows"
    return Path(f"{name.replace('*', '')}.{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}{SIDE_SUFFIX}")

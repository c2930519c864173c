"""What becomes of rows that are no records, and of those that are but may be meant otherwise."""

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
"""Of side files. They hold JSON lines, but no reader takes this suffix: a run's refusals never become another's input."""


@dataclass(slots=True)
class OnBadRow:
    """What to do with a row that is no record, and what was found out about the others.

    mode: ``error`` raises :class:`BadRow`; ``skip`` writes {path, row, field, expected, content} to ``side_file`` and goes on.
    strip_prompt: drop the prompt's messages where an answer (reference, candidate, output) begins with them; such a row is
        refused otherwise.
    count: rows refused so far. The side file is begun anew by the first of them.
    notes: what was dropped, or taken as it is but may be meant otherwise -> rows, and the first of them.
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
            raise PolarError("bad rows can only be skipped into a side file: nothing may vanish")

    def refuse(self, error: BadRow, content: Any) -> None:
        """Raises ``error``, or notes it with the row's content."""
        if self.mode == "error" or self.side_file is None:
            raise error
        row = {"path": error.path, "row": error.row, "field": error.field, "expected": error.expected}
        try:
            line = dump_json(row | {"content": content})
        except RecursionError:  # that is what was wrong with it
            line = dump_json(row | {"content": None})
        try:
            with open(self.side_file, "w" if self.count == 0 else "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line + "\n")
        except OSError as failure:
            raise MachineFailure(f"{self.side_file}: could not be written: {failure.strerror}") from failure
        self.count += 1

    def note(self, path: str, row: int, notes: Iterable[str]) -> None:
        """Count what was noted about one row."""
        for text in notes:
            count, first = self.notes.get(text, (0, f"{path}: row {row}"))
            self.notes[text] = count + 1, first

    def warnings(self) -> list[str]:
        """One line for each kind of note, with how many rows and the first of them."""
        return [f"{_rows(count)}: {text} (first: {first})" for text, (count, first) in self.notes.items()]


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count > 1 else ''}"


def side_file(output: str | Path | None, sources: Iterable[str | Path] = ()) -> Path:
    """Where a run writes its bad rows: ``OUTPUT.rejected`` beside its output; without one, a name of its own in the working
    folder after the first source."""
    if output is not None:
        path = Path(output)
        return path.with_name(path.name + SIDE_SUFFIX)
    name = next((Path(source).name for source in sources), "") or "rows"
    return Path(f"{name.replace('*', '')}.{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}{SIDE_SUFFIX}")

"""Stores answers by prompt in one SQLite file, so that memory does not grow with the number of answers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from polar_rm.errors import MachineFailure
from polar_rm.records import Text

_TABLE = """
CREATE TABLE answers (prompt TEXT NOT NULL, penalty REAL NOT NULL, position INTEGER NOT NULL, text TEXT NOT NULL);
CREATE INDEX by_prompt ON answers (prompt, penalty, position);
"""


class Answers:
    """Answers to many prompts, ordered by penalty within a prompt."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database, self._count = database, 0

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Answers]:
        """Create an empty file; an existing file is replaced.

        Raises:
            MachineFailure: the disk is full or not writable.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        database = sqlite3.connect(path)
        try:
            database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLE}")
            yield cls(database)
        except sqlite3.Error as error:
            raise MachineFailure(f"{path}: {error}") from error
        finally:
            database.close()

    def add(self, prompt: str, texts: Iterable[Text], *, penalty: float) -> None:
        """Add answers to a prompt. penalty: lower is better. Answers of equal penalty keep the order in which they were added."""
        for text in texts:
            self._count += 1
            values = (prompt, penalty, self._count, json.dumps(text))
            self._database.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", values)

    def of(self, prompt: str) -> Iterator[Text]:
        """The answers to a prompt, best first."""
        for (text,) in self._database.execute("SELECT text FROM answers WHERE prompt = ? ORDER BY penalty, position", [prompt]):
            yield json.loads(text)

"""Every sample that has arrived, in one SQLite file.

SQLite rather than a file of lines for each policy: the primary key makes a repeated sample impossible, a commit is whole or
absent after SIGKILL and on a full disk, and rows come out by prompt without being held in memory. The log is written ahead (WAL)
and not forced to the disk with each commit: after a power cut the last samples may be missing, and are drawn again. The lock is
exclusive, which keeps two runs out of one folder and lets WAL work on network file systems.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polar_rm.common.files import differences
from polar_rm.errors import PolarError
from polar_rm.sampling.base import NoSample, Outcome, Sample

VERSION = 2
_APPLICATION = 0x504C5253  # "PLRS", by which the file is known as ours

_TABLES = """
CREATE TABLE policies (name TEXT PRIMARY KEY, settings TEXT NOT NULL, tokens INTEGER DEFAULT 0, seconds REAL DEFAULT 0);
CREATE TABLE samples (
    prompt_id TEXT, policy TEXT, sample_id INTEGER, prompt_hash TEXT NOT NULL, seed INTEGER NOT NULL,
    text TEXT NOT NULL, finish_reason TEXT, n_tokens INTEGER,
    PRIMARY KEY (prompt_id, policy, sample_id)
) WITHOUT ROWID;
CREATE INDEX samples_by_policy ON samples (policy);
CREATE TABLE failures (
    policy TEXT, prompt_id TEXT, sample_id INTEGER, kind TEXT NOT NULL, is_final INTEGER NOT NULL, message TEXT NOT NULL,
    attempts INTEGER NOT NULL, prompt_hash TEXT NOT NULL,
    PRIMARY KEY (policy, prompt_id, sample_id)
) WITHOUT ROWID;
"""
# Those of version 1 do not say of which prompt they are; they count for none, and are asked again.
_FROM_1 = "ALTER TABLE failures ADD COLUMN prompt_hash TEXT NOT NULL DEFAULT ''"

Key = tuple[str, int]
"""(prompt_id, sample_id) of one policy."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """An outcome with all that identifies its request."""

    policy: str
    prompt_id: str
    prompt_hash: str
    sample_id: int
    seed: int
    outcome: Outcome


class Store:
    """An open store; ``path`` None is one in memory. Every method raises PolarError when the disk is full or the file damaged."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._db = sqlite3.connect(path or ":memory:", timeout=1, isolation_level=None)
        self._db.executescript("PRAGMA locking_mode = EXCLUSIVE; PRAGMA synchronous = NORMAL")

    @classmethod
    @contextmanager
    def open(cls, folder: Path, *, read_only: bool = False) -> Iterator[Store]:
        """The store of an output folder, made if need be. read_only: an empty one in memory where there is none.

        Raises:
            PolarError: another run has it open, or another version wrote it.
        """
        path = folder / "store.sqlite"
        if (folder / "store").is_dir() or (folder / "settings.json").exists():
            raise PolarError(
                f"{folder} holds samples of an older version (store/*.jsonl, settings.json); use another output folder"
            )
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            store = cls(path if path.exists() or not read_only else None)
        except sqlite3.Error as error:
            raise _explained(path, error) from error
        try:
            with store._explain():
                store._prepare()
            yield store
        finally:
            store._db.close()

    def _prepare(self) -> None:
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        [application], [version] = (self._db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
        if tables and application != _APPLICATION:
            raise PolarError(f"{self.path}: not a store of polar sample")
        if tables and version not in (1, VERSION):
            raise PolarError(
                f"{self.path}: a store of version {version}, this release knows {VERSION}; use another output folder"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        with self._transaction():
            self._db.execute("SELECT 1 FROM sqlite_master").fetchone()
            if not tables:
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
            elif version == 1:
                self._db.execute(_FROM_1)
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def check(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """settings: of each policy, what its samples depend on.

        Raises:
            PolarError: the store holds samples of a policy with other settings. They would be mixed without a trace.
        """
        for policy, now in settings.items():
            query = "SELECT settings FROM policies WHERE name = ? AND EXISTS (SELECT 1 FROM samples WHERE policy = name)"
            for [saved] in self._rows(query, policy):
                if changed := differences(json.loads(saved), dict(now)):
                    raise PolarError(
                        f"{self.path} holds samples of policy {policy!r} with other settings ({changed}); "
                        "use another name or output folder"
                    )

    def claim(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """:meth:`check`, and note the settings. Those of a policy of which nothing has come yet may change."""
        self.check(settings)
        with self._explain(), self._transaction():
            for policy, now in settings.items():
                changed = "policy = ? AND NOT EXISTS (SELECT 1 FROM policies WHERE name = ? AND settings = ?)"
                self._db.execute(f"DELETE FROM failures WHERE {changed}", [policy, policy, json.dumps(now)])
                note = (
                    "INSERT INTO policies (name, settings) VALUES (?, ?) ON CONFLICT DO UPDATE SET settings = excluded.settings"
                )
                self._db.execute(note, [policy, json.dumps(now)])

    def add(self, arrived: Iterable[Arrived], throughput: Mapping[str, tuple[int, float]]) -> None:
        """Store outcomes in one transaction. throughput: further (tokens, seconds) of policies."""
        with self._explain(), self._transaction():
            for a in arrived:
                if isinstance(a.outcome, Sample):
                    key, sample = (a.prompt_id, a.policy, a.sample_id), a.outcome
                    row = (*key, a.prompt_hash, a.seed, sample.text, sample.finish_reason, sample.n_tokens)
                    # An engine that replaces a lost worker may deliver a sample again; the first one counts.
                    self._db.execute("INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
                    self._db.execute("DELETE FROM failures WHERE prompt_id = ? AND policy = ? AND sample_id = ?", key)
                else:
                    failure = a.outcome
                    values = (
                        a.policy,
                        a.prompt_id,
                        a.sample_id,
                        failure.kind,
                        failure.is_final,
                        failure.message,
                        failure.attempts,
                        a.prompt_hash,
                    )
                    self._db.execute(
                        "INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET kind = excluded.kind, "
                        "is_final = excluded.is_final, message = excluded.message, prompt_hash = excluded.prompt_hash, "
                        "attempts = excluded.attempts + iif(prompt_hash = excluded.prompt_hash, attempts, 0)",
                        values,
                    )
            for policy, (tokens, seconds) in throughput.items():
                add = "UPDATE policies SET tokens = tokens + ?, seconds = seconds + ? WHERE name = ?"
                self._db.execute(add, [tokens, seconds, policy])

    def sampled(self, policy: str) -> dict[Key, str]:
        """Keys of a policy's samples with the hashes of their prompts."""
        rows = self._rows("SELECT prompt_id, sample_id, prompt_hash FROM samples WHERE policy = ?", policy)
        return {(prompt_id, sample_id): digest for prompt_id, sample_id, digest in rows}

    def failures(self, policy: str, hashes: Mapping[str, str]) -> dict[Key, NoSample]:
        """The last failures of a policy's requests. hashes: of the prompts by their ids; failures of others do not count."""
        rows = self._rows(
            "SELECT prompt_id, sample_id, prompt_hash, kind, message, attempts FROM failures WHERE policy = ?", policy
        )
        return {
            (prompt_id, sample_id): NoSample(*failure)
            for prompt_id, sample_id, digest, *failure in rows
            if hashes.get(prompt_id) == digest
        }

    def samples_of(self, prompt_id: str) -> dict[tuple[str, int], tuple[int, Sample]]:
        """(policy, sample_id) to (seed, sample) of one prompt."""
        rows = self._rows(
            "SELECT policy, sample_id, seed, text, finish_reason, n_tokens FROM samples WHERE prompt_id = ?", prompt_id
        )
        return {(policy, sample_id): (seed, Sample(*sample)) for policy, sample_id, seed, *sample in rows}

    def throughput(self, policy: str) -> tuple[int, float]:
        """(tokens, seconds) that have been measured."""
        rows = self._rows("SELECT tokens, seconds FROM policies WHERE name = ?", policy)
        return rows[0] if rows else (0, 0.0)

    def counts(self) -> Counter[str]:
        """Number of samples by policy, planned or not."""
        with self._explain():
            return Counter(dict(self._db.execute("SELECT policy, count(*) FROM samples GROUP BY policy")))

    def _rows(self, query: str, value: str) -> list[Any]:
        with self._explain():
            return self._db.execute(query, [value]).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # a full disk has rolled back already
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _explained(self.path, error) from error


def _explained(path: Path | None, error: sqlite3.Error) -> PolarError:
    if "locked" in str(error):
        return PolarError(f"{path}: another run has it open; two can't sample into one folder")
    if "full" in str(error):
        return PolarError(f"{path}: the disk is full; what arrived is kept, the same command goes on")
    return PolarError(f"{path}: {error}")

"""One SQLite file with every sample that has arrived.

Why SQLite and not a file of lines for each policy: the primary key makes a repeated sample impossible, a commit is whole or
absent after SIGKILL and on a full disk, and rows are read by prompt without holding them in memory. The write-ahead log (WAL) is
not forced to disk with each commit: after a power failure the last samples may be missing, and the next run draws them again.
The lock is exclusive: it keeps two runs out of one folder and lets WAL work on network file systems.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polar_rm.common.files import differences, full_disk_named
from polar_rm.errors import PolarError
from polar_rm.sampling.base import NoSample, Outcome, Sample

VERSION = 2
_APPLICATION = 0x504C5253  # "PLRS", the application_id of our files
_MAX_COPY_ATTEMPTS = 20  # for copies of a store that a run is filling

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
# Failures of version 1 do not say which prompt they belong to: they match no prompt, and their requests are sent again.
_MIGRATION_FROM_1 = "ALTER TABLE failures ADD COLUMN prompt_hash TEXT NOT NULL DEFAULT ''"

Key = tuple[str, int]
"""(prompt_id, sample_id) of one policy."""


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """An outcome with the fields that identify its request."""

    policy: str
    prompt_id: str
    prompt_hash: str
    sample_id: int
    seed: int
    outcome: Outcome


class Store:
    """An open store; ``path`` None: in memory. Every method raises PolarError if the disk is full or the file is damaged."""

    def __init__(self, path: Path | None, *, uri: str | None = None) -> None:
        self.path = path
        self._db = sqlite3.connect(uri or path or ":memory:", timeout=1, isolation_level=None, uri=uri is not None)
        if uri is None:
            self._db.executescript("PRAGMA locking_mode = EXCLUSIVE; PRAGMA synchronous = NORMAL")

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Store]:
        """Open the store of an output folder, and create it if it does not exist.

        Raises:
            PolarError: another run has it open, or an unknown version wrote it.
        """
        path = _path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with cls._opened(path, path) as store:
            yield store

    @classmethod
    @contextmanager
    def read(cls, folder: Path) -> Iterator[Store]:
        """Open the store of an output folder for reading, also while a run fills it; an empty store if there is none.

        It writes and locks nothing in the folder: a store with a log (a run is in progress, or was killed) or of an older version
        is read from a copy.

        Raises:
            PolarError: an unknown version wrote it, or it changes too fast to be copied.
        """
        path = _path(folder)
        if not path.exists():
            with cls._opened(None, path) as store:
                yield store
        elif _wal_path(path).exists() or _version(path) != VERSION:
            with (
                tempfile.TemporaryDirectory(prefix="polar-store-") as copies,
                cls._opened(_copy(path, Path(copies)), path) as store,
            ):
                yield store
        else:
            with cls._opened(None, path, uri=f"{path.absolute().as_uri()}?mode=ro&immutable=1") as store:
                yield store

    @classmethod
    @contextmanager
    def _opened(cls, database: Path | None, path: Path, uri: str | None = None) -> Iterator[Store]:
        """Open ``database``. path: the store's path in the output folder, for messages."""
        try:
            store = cls(database, uri=uri)
        except sqlite3.Error as error:
            raise _explained(path, error) from error
        store.path = path
        try:
            with store._explain():
                store._check_kind()
                if uri is None:
                    store._prepare()
            yield store
        finally:
            store._db.close()

    def _check_kind(self) -> None:
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        [application], [version] = (self._db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
        if tables and application != _APPLICATION:
            raise PolarError(f"{self.path}: not a store of polar sample")
        if tables and version not in (1, VERSION):
            raise PolarError(
                f"{self.path}: a store of version {version}, this release knows {VERSION}; use another output folder"
            )

    def _prepare(self) -> None:
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        self._db.execute("PRAGMA journal_mode = WAL")
        with self._transaction():
            self._db.execute("SELECT 1 FROM sqlite_master").fetchone()
            if not tables:
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
            elif version == 1:
                self._db.execute(_MIGRATION_FROM_1)
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def check(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Compare settings with those of the stored samples. settings: by policy, what its samples depend on.

        Raises:
            PolarError: the store holds samples of a policy with other settings. They would be mixed unnoticed.
        """
        for policy, current in settings.items():
            query = "SELECT settings FROM policies WHERE name = ? AND EXISTS (SELECT 1 FROM samples WHERE policy = name)"
            for [saved] in self._rows(query, policy):
                before, after = json.loads(saved), dict(current)
                if "files" not in before:  # an earlier release wrote them, without checksums of the model's files
                    after.pop("files", None)
                if changed := differences(before, after):
                    raise PolarError(
                        f"{self.path} holds samples of policy {policy!r} with other settings ({changed}); "
                        "use another name or output folder"
                    )

    def claim(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Call :meth:`check`, and save the settings. The settings of a policy without samples may change."""
        self.check(settings)
        with self._explain(), self._transaction():
            for policy, current in settings.items():
                changed = "policy = ? AND NOT EXISTS (SELECT 1 FROM policies WHERE name = ? AND settings = ?)"
                self._db.execute(f"DELETE FROM failures WHERE {changed}", [policy, policy, json.dumps(current)])
                save = (
                    "INSERT INTO policies (name, settings) VALUES (?, ?) ON CONFLICT DO UPDATE SET settings = excluded.settings"
                )
                self._db.execute(save, [policy, json.dumps(current)])

    def add(self, rows: Iterable[OutcomeRow], throughput: Mapping[str, tuple[int, float]]) -> None:
        """Store outcomes in one transaction. throughput: by policy, (tokens, seconds) to add to its totals."""
        with self._explain(), self._transaction():
            for row in rows:
                if isinstance(row.outcome, Sample):
                    key, sample = (row.prompt_id, row.policy, row.sample_id), row.outcome
                    fields = (*key, row.prompt_hash, row.seed, sample.text, sample.finish_reason, sample.n_tokens)
                    # An engine that replaces a lost worker may deliver a sample again; the first one counts.
                    self._db.execute("INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?)", fields)
                    self._db.execute("DELETE FROM failures WHERE prompt_id = ? AND policy = ? AND sample_id = ?", key)
                else:
                    failure = row.outcome
                    values = (
                        row.policy,
                        row.prompt_id,
                        row.sample_id,
                        failure.kind,
                        failure.is_final,
                        failure.message,
                        failure.attempts,
                        row.prompt_hash,
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
        """The keys of a policy's samples, with the hashes of their prompts."""
        rows = self._rows("SELECT prompt_id, sample_id, prompt_hash FROM samples WHERE policy = ?", policy)
        return {(prompt_id, sample_id): digest for prompt_id, sample_id, digest in rows}

    def failures(self, policy: str, hashes: Mapping[str, str]) -> dict[Key, NoSample]:
        """The last failures of a policy's requests. hashes: by prompt id; failures of prompts with another hash do not count."""
        rows = self._rows(
            "SELECT prompt_id, sample_id, prompt_hash, kind, message, attempts FROM failures WHERE policy = ?", policy
        )
        return {
            (prompt_id, sample_id): NoSample(*failure)
            for prompt_id, sample_id, digest, *failure in rows
            if hashes.get(prompt_id) == digest
        }

    def samples_of(self, prompt_id: str) -> dict[tuple[str, int], tuple[int, Sample]]:
        """The samples of one prompt: (policy, sample_id) to (seed, sample)."""
        rows = self._rows(
            "SELECT policy, sample_id, seed, text, finish_reason, n_tokens FROM samples WHERE prompt_id = ?", prompt_id
        )
        return {(policy, sample_id): (seed, Sample(*sample)) for policy, sample_id, seed, *sample in rows}

    def throughput(self, policy: str) -> tuple[int, float]:
        """The measured (tokens, seconds) of a policy."""
        rows = self._rows("SELECT tokens, seconds FROM policies WHERE name = ?", policy)
        return rows[0] if rows else (0, 0.0)

    def counts(self) -> Counter[str]:
        """Numbers of samples by policy, planned or not."""
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
            if self._db.in_transaction:  # on a full disk SQLite has already rolled back
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _explained(self.path, error) from error


def _path(folder: Path) -> Path:
    if (folder / "store").is_dir() or (folder / "settings.json").exists():
        raise PolarError(f"{folder} holds samples of an older version (store/*.jsonl, settings.json); use another output folder")
    return folder / "store.sqlite"


def _wal_path(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _version(path: Path) -> int:
    """The user_version in the header of a database: a big-endian number at byte 60 (SQLite's file format, 1.3)."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(64)[60:64])


def _copy(path: Path, folder: Path) -> Path:
    """Copy database and log as of one moment: a log only grows, unless it is moved into the database, which then changes."""
    for _ in range(_MAX_COPY_ATTEMPTS):
        before = _state(path)
        with full_disk_named(folder):
            shutil.copyfile(path, folder / path.name)
            try:
                shutil.copyfile(_wal_path(path), _wal_path(folder / path.name))
            except FileNotFoundError:
                _wal_path(folder / path.name).unlink(missing_ok=True)
        if _state(path) == before:
            return folder / path.name
    raise PolarError(f"{path}: the store changes too fast to be read; try again, or wait for the run that fills it")


def _state(path: Path) -> tuple[int, int, bytes]:
    """Values that change when the log is moved into the database or started anew."""
    stat = path.stat()
    try:
        with _wal_path(path).open("rb") as log:
            head = log.read(32)  # contains salts, which differ in every new log
    except FileNotFoundError:
        head = b""
    return stat.st_size, stat.st_mtime_ns, head


def _explained(path: Path | None, error: sqlite3.Error) -> PolarError:
    if "locked" in str(error):
        return PolarError(f"{path}: another run has it open; two runs can't sample into one folder")
    if "full" in str(error):
        return PolarError(f"{path}: the disk is full; all samples that arrived are kept, and the same command continues")
    return PolarError(f"{path}: {error}")

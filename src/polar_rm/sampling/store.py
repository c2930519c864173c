"""Every sample that has arrived, in one SQLite file.

SQLite rather than a file of lines for each policy: the primary key makes a repeated sample impossible, a commit is whole or
absent after SIGKILL and on a full disk, and rows come out by prompt without being held in memory. The log is written ahead (WAL)
and not forced to the disk with each commit: after a power cut the last samples may be missing, and are drawn again. The lock is
exclusive, which keeps two runs out of one folder and lets WAL work on network file systems.
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

from polar_rm.common.files import differences
from polar_rm.errors import PolarError
from polar_rm.sampling.base import NoSample, Outcome, Sample

VERSION = 2
_APPLICATION = 0x504C5253  # "PLRS", by which the file is known as ours
_COPIES = 20  # tries to copy a store that a run is filling

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

    def __init__(self, path: Path | None, *, uri: str | None = None) -> None:
        self.path = path
        self._db = sqlite3.connect(uri or path or ":memory:", timeout=1, isolation_level=None, uri=uri is not None)
        if uri is None:
            self._db.executescript("PRAGMA locking_mode = EXCLUSIVE; PRAGMA synchronous = NORMAL")

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Store]:
        """The store of an output folder, made if need be.

        Raises:
            PolarError: another run has it open, or another version wrote it.
        """
        path = _path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with cls._opened(path, path) as store:
            yield store

    @classmethod
    @contextmanager
    def read(cls, folder: Path) -> Iterator[Store]:
        """What the store of an output folder holds now, also while a run fills it; an empty one where there is none.

        Nothing is written in the folder and nothing locked: a store with a log (a run is going on, or was killed) or of an older
        version is read from a copy.

        Raises:
            PolarError: another version wrote it, or it changes too fast to be copied.
        """
        path = _path(folder)
        if not path.exists():
            with cls._opened(None, path) as store:
                yield store
        elif _log_of(path).exists() or _version(path) != VERSION:
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
        """path: for messages, the store that the user knows."""
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
                before, after = json.loads(saved), dict(now)
                if "files" not in before:  # noted by a release that did not look at them
                    after.pop("files", None)
                if changed := differences(before, after):
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


def _path(folder: Path) -> Path:
    if (folder / "store").is_dir() or (folder / "settings.json").exists():
        raise PolarError(f"{folder} holds samples of an older version (store/*.jsonl, settings.json); use another output folder")
    return folder / "store.sqlite"


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _version(path: Path) -> int:
    """From the header of a database: a big-endian number at byte 60 (SQLite's file format, 1.3)."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(64)[60:64])


def _copy(path: Path, folder: Path) -> Path:
    """Database and log as they were at one moment: a log only grows, unless it is moved into the database, which shows there."""
    for _ in range(_COPIES):
        before = _state(path)
        shutil.copyfile(path, folder / path.name)
        try:
            shutil.copyfile(_log_of(path), _log_of(folder / path.name))
        except FileNotFoundError:
            _log_of(folder / path.name).unlink(missing_ok=True)
        if _state(path) == before:
            return folder / path.name
    raise PolarError(f"{path}: it changes too fast to be read; try again, or wait for the run that fills it")


def _state(path: Path) -> tuple[int, int, bytes]:
    """What changes when the log is moved into the database or begun anew."""
    stat = path.stat()
    try:
        with _log_of(path).open("rb") as log:
            head = log.read(32)  # with salts that every new log has anew
    except FileNotFoundError:
        head = b""
    return stat.st_size, stat.st_mtime_ns, head


def _explained(path: Path | None, error: sqlite3.Error) -> PolarError:
    if "locked" in str(error):
        return PolarError(f"{path}: another run has it open; two can't sample into one folder")
    if "full" in str(error):
        return PolarError(f"{path}: the disk is full; what arrived is kept, the same command goes on")
    return PolarError(f"{path}: {error}")

"""Communication of ranks besides collectives, through the store that torchrun, or else rank 0, keeps.

A collective has a time limit (ten minutes with NCCL), and a rank that waits in one can't react to anything else. Encoding a
corpus, loading a model and exporting it take longer on one rank, so the others poll the store for its result without a limit. A
rank that fails writes the reason to the store, so that all ranks end with the same message.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from polar_rm.common.text import first_line
from polar_rm.errors import MachineFailure, PolarError

# Seconds between two polls, at most; the first polls come sooner.
_POLL_S = 1.0
# Seconds that the main thread has to end by itself after another rank's failure; in a collective of NCCL it can't.
_GRACE_S = 5.0
# Seconds without a heartbeat after which a rank counts as dead, once this rank was asked to stop.
_SILENT_S = 20.0

_FAILED = "failed"
_DONE = "done"


class OtherRankFailed(PolarError):
    """Another rank failed and ended the run; the message is that rank's."""


def attempt_name(number: int) -> str:
    """The prefix of a world's keys. torchrun keeps its store over restarts, with the addresses of processes that have ended.

    number: how many worlds this process has joined before.
    """
    return f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{number}"


class Exchange:
    """One rank's access to the store. store: holds keys of this run only. Values must be JSON."""

    def __init__(self, store: PrefixStore, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._number = 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.stop_requested: Callable[[], bool] = lambda: False

    @classmethod
    def join(cls, rank: int, size: int, attempt: str) -> Exchange:
        """Connect to the store at the address in torchrun's environment. attempt: see :func:`attempt_name`."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(minutes=30))
        return cls(PrefixStore(f"polar/{attempt}", store), rank, size)

    def from_main(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` on rank 0 and return its result on every rank.

        If it fails, the failure ends the run: rank 0 raises it, and the other ranks raise :class:`OtherRankFailed`.
        """
        key = self._next()
        if self.rank == 0:
            self._store.set(key, json.dumps(work()))
        return self._get(key)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in the order of ranks, on every rank."""
        key = self._next()
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        return [self._get(f"{key}/{rank}") for rank in range(self.size)]

    def fail(self, error: BaseException) -> None:
        """Report to the other ranks that this rank ends the run, and why; the first report counts."""
        if isinstance(error, OtherRankFailed):
            return
        message = str(error) if isinstance(error, PolarError) else f"{type(error).__name__}: {first_line(error)}"
        with contextlib.suppress(RuntimeError):  # the store is gone with the rank that kept it, so nobody can read the report
            if not self._store.check([_FAILED]):
                self._store.set(_FAILED, json.dumps({"rank": self.rank, "message": f"rank {self.rank}: {message}"}))

    def failure(self) -> str | None:
        """The message of another rank that failed; None where none did."""
        if not self._store.check([_FAILED]):
            return None
        failure = json.loads(self._store.get(_FAILED))
        return None if failure["rank"] == self.rank else str(failure["message"])

    def explain(self, error: BaseException) -> BaseException:
        """The error to raise: another rank's if that caused this rank's error, one line if a peer has died, else ``error``."""
        if isinstance(error, PolarError) or not isinstance(error, RuntimeError):
            return error
        try:
            if message := self.failure():
                return OtherRankFailed(message)
        except RuntimeError as store_error:
            return MachineFailure(f"{_PEER_LOST} ({first_line(store_error)})")
        if isinstance(error, dist.DistError) or any(name in str(error).lower() for name in ("gloo", "nccl", "closed by peer")):
            return MachineFailure(f"{_PEER_LOST} ({first_line(error)})")
        return error

    def watch(self) -> None:
        """Start the thread that sends heartbeats, and that ends the process where its main thread can't do so itself."""
        self._thread = threading.Thread(target=self._watch, name="watch-ranks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Report that this rank is done, so that the others expect no more heartbeats."""
        self._closed.set()
        if self._thread:
            self._thread.join()
        with contextlib.suppress(RuntimeError):  # as in `fail`
            self._store.set(f"alive/{self.rank}", _DONE)

    def wait_for_others(self) -> None:
        """After a failure of this rank, wait for the others, so that they report it, too, before torchrun terminates them."""
        until = time.monotonic() + 3 * _GRACE_S
        keys = [f"alive/{rank}" for rank in range(self.size)]
        with contextlib.suppress(RuntimeError):  # as in `fail`
            while time.monotonic() < until and not all(
                self._store.check([key]) and self._store.get(key).decode() == _DONE for key in keys
            ):
                time.sleep(0.05)
            time.sleep(_POLL_S / 2)  # they print their message after their last write to the store

    def _watch(self) -> None:
        count, failed_since = 0, None
        heartbeats: dict[int, tuple[str, float]] = {}
        while not self._closed.wait(_POLL_S):
            now, message = time.monotonic(), None
            try:
                self._store.set(f"alive/{self.rank}", str(count := count + 1))
                if self._store.check([_FAILED]):
                    message = json.loads(self._store.get(_FAILED))["message"]
                elif self.stop_requested() and (dead := self._dead_rank(heartbeats, now)) is not None:
                    message = (
                        f"stopped without a checkpoint of this step, because rank {dead} has ended; the same command continues"
                    )
                    failed_since = now - _GRACE_S
            except RuntimeError as error:
                message = f"{_PEER_LOST} ({first_line(error)})"
            failed_since = (failed_since or now) if message else None
            if message and failed_since is not None and now - failed_since >= _GRACE_S:
                self._end(message)

    def _end(self, message: str) -> NoReturn:
        """End the process from a thread, with an error as the command prints it."""
        print(f"polar: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
        with contextlib.suppress(RuntimeError):  # as in `fail`
            self._store.set(f"alive/{self.rank}", _DONE)
        os._exit(2)

    def _dead_rank(self, heartbeats: dict[int, tuple[str, float]], now: float) -> int | None:
        """A rank without a new heartbeat for too long, or None. heartbeats: rank -> (its last heartbeat, since when)."""
        for rank in range(self.size):
            key = f"alive/{rank}"
            heartbeat = self._store.get(key).decode() if self._store.check([key]) else ""
            if rank not in heartbeats or heartbeats[rank][0] != heartbeat:
                heartbeats[rank] = (heartbeat, now)
            elif heartbeat != _DONE and now - heartbeats[rank][1] >= _SILENT_S:
                return rank
        return None

    def _next(self) -> str:
        self._number += 1
        return str(self._number)

    def _get(self, key: str) -> Any:
        pause = 0.005
        try:
            while not self._store.check([key]):
                if message := self.failure():
                    raise OtherRankFailed(message)
                time.sleep(pause)
                pause = min(_POLL_S, 1.3 * pause)
            return json.loads(self._store.get(key))
        except dist.DistError as error:
            raise MachineFailure(f"{_PEER_LOST} ({first_line(error)})") from error


_PEER_LOST = "another rank has ended without a message, or can't be reached; the same command continues from the last checkpoint"

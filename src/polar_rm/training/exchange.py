"""What ranks tell each other besides tensors, through the store that torchrun, or else rank 0, keeps.

A collective has a time limit (ten minutes with NCCL), and whoever waits in one sees nothing else. Encoding a corpus, loading a
model and exporting it take longer on one rank: the others look into the store for its word, for as long as it takes. There every
rank also leaves why it failed, so that all end with the same line.
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

# Seconds between two looks for news, at most; first looks come sooner.
_LOOK_S = 1.0
# For the main thread to end by itself after a failure elsewhere; in a collective of NCCL it can't.
_GRACE_S = 5.0
# Without a sign of life a rank is taken for dead, once this one was asked to stop.
_SILENT_S = 20.0

_FAILED = "failed"
_DONE = "done"


class OtherRankFailed(PolarError):
    """Another rank ended the run; the message is that rank's."""


class Exchange:
    """One rank's access to the store. ``store``: keys of this run alone. Values are what JSON can hold."""

    def __init__(self, store: PrefixStore, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._number = 0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.stop_requested: Callable[[], bool] = lambda: False

    @classmethod
    def join(cls, rank: int, size: int, number: int) -> Exchange:
        """With the addresses that torchrun puts into the environment. number: how many worlds this process joined before."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(minutes=30))
        # An agent's store outlives the processes that it starts anew.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(PrefixStore(f"polar/{attempt}/{number}", store), rank, size)

    def from_main(self, work: Callable[[], Any]) -> Any:
        """Work for rank 0 alone, its result for every rank. If it fails there, the others get :class:`OtherRankFailed`, as the
        failure leaves the run."""
        key = self._next()
        if self.rank == 0:
            self._store.set(key, json.dumps(work()))
        return self._get(key)

    def gather(self, value: Any) -> list[Any]:
        """What every rank says, in the order of ranks, on every rank."""
        key = self._next()
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        return [self._get(f"{key}/{rank}") for rank in range(self.size)]

    def fail(self, error: BaseException) -> None:
        """Leave word that this rank ends the run, and why; the first word counts."""
        if isinstance(error, OtherRankFailed):
            return
        message = str(error) if isinstance(error, PolarError) else f"{type(error).__name__}: {first_line(error)}"
        with contextlib.suppress(RuntimeError):  # the store has gone with the rank that kept it: nobody is left to be told
            if not self._store.check([_FAILED]):
                self._store.set(_FAILED, json.dumps({"rank": self.rank, "message": f"rank {self.rank}: {message}"}))

    def failure(self) -> str | None:
        """What another rank that failed left; None where none did."""
        if not self._store.check([_FAILED]):
            return None
        failure = json.loads(self._store.get(_FAILED))
        return None if failure["rank"] == self.rank else str(failure["message"])

    def explain(self, error: BaseException) -> BaseException:
        """The error to go on with: another rank's where that is the cause of this rank's, one line where a peer has died."""
        if isinstance(error, PolarError) or not isinstance(error, RuntimeError):
            return error
        try:
            if message := self.failure():
                return OtherRankFailed(message)
        except RuntimeError as gone:
            return MachineFailure(f"{_GONE} ({first_line(gone)})")
        if isinstance(error, dist.DistError) or any(name in str(error).lower() for name in ("gloo", "nccl", "closed by peer")):
            return MachineFailure(f"{_GONE} ({first_line(error)})")
        return error

    def watch(self) -> None:
        """Start the thread that gives signs of life, and that ends the process where its main thread can't do so itself."""
        self._thread = threading.Thread(target=self._watch, name="watch-ranks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """This rank is done; others need no more signs of life."""
        self._closed.set()
        if self._thread:
            self._thread.join()
        with contextlib.suppress(RuntimeError):  # as in `fail`
            self._store.set(f"alive/{self.rank}", _DONE)

    def linger(self) -> None:
        """After a failure of this rank: go last, so that the others tell it, too, before torchrun ends them by a signal."""
        until = time.monotonic() + 3 * _GRACE_S
        keys = [f"alive/{rank}" for rank in range(self.size)]
        with contextlib.suppress(RuntimeError):  # as in `fail`
            while time.monotonic() < until and not all(
                self._store.check([key]) and self._store.get(key).decode() == _DONE for key in keys
            ):
                time.sleep(0.05)
            time.sleep(_LOOK_S / 2)  # what they print comes after their last word here

    def _watch(self) -> None:
        count, failed_since = 0, None
        seen: dict[int, tuple[str, float]] = {}
        while not self._closed.wait(_LOOK_S):
            now, message = time.monotonic(), None
            try:
                self._store.set(f"alive/{self.rank}", str(count := count + 1))
                if self._store.check([_FAILED]):
                    message = json.loads(self._store.get(_FAILED))["message"]
                elif self.stop_requested() and (silent := self._silent(seen, now)) is not None:
                    message = (
                        f"stopped, without a checkpoint of this step, as rank {silent} has ended; the same command continues"
                    )
                    failed_since = now - _GRACE_S
            except RuntimeError as error:
                message = f"{_GONE} ({first_line(error)})"
            failed_since = (failed_since or now) if message else None
            if message and failed_since is not None and now - failed_since >= _GRACE_S:
                self._end(message)

    def _end(self, message: str) -> NoReturn:
        """In the way of the command line, from a thread."""
        print(f"polar: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
        with contextlib.suppress(RuntimeError):  # as in `fail`
            self._store.set(f"alive/{self.rank}", _DONE)
        os._exit(2)

    def _silent(self, seen: dict[int, tuple[str, float]], now: float) -> int | None:
        """A rank that has given no new sign of life for too long. seen: the last sign of each, and since when."""
        for rank in range(self.size):
            key = f"alive/{rank}"
            sign = self._store.get(key).decode() if self._store.check([key]) else ""
            if rank not in seen or seen[rank][0] != sign:
                seen[rank] = (sign, now)
            elif sign != _DONE and now - seen[rank][1] >= _SILENT_S:
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
                pause = min(_LOOK_S, 1.3 * pause)
            return json.loads(self._store.get(key))
        except dist.DistError as error:
            raise MachineFailure(f"{_GONE} ({first_line(error)})") from error


_GONE = "another rank has ended without a word, or can't be reached; the same command continues behind the last checkpoint"

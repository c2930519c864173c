"""The client for blocking code."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self

from polar_rm.client.asynchronous import AsyncRewardClient, T
from polar_rm.encoding.encoder import Encoder
from polar_rm.records import ScoreItem
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.combining import Combine
from polar_rm.rewards.outcomes import Outcome
from polar_rm.rewards.turns import TurnOutcome


class RewardClient:
    """:class:`AsyncRewardClient` for blocking code, with the same options. Threads and forked children may share one client."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, options
        self._opening = threading.Lock()
        self._open(AsyncRewardClient(url, **options))

    def _open(self, client: AsyncRewardClient) -> None:
        self._client, self._pid = client, os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reward-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def encoder(self) -> Encoder | None:
        """The encoder of ``model``."""
        return self._client.encoder

    def close(self) -> None:
        """Close all connections; the client can't be used again."""
        if self._thread.is_alive():
            self._run(AsyncRewardClient.close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def check(self) -> None:
        """See :meth:`AsyncRewardClient.check`."""
        self._run(lambda client: client.check())

    def calibration(self) -> Calibration | None:
        """See :meth:`AsyncRewardClient.calibration`."""
        return self._run(lambda client: client.calibration())

    def score(self, items: Sequence[ScoreItem], *, anchored: bool = False, combine: Combine = "mean") -> list[Outcome]:
        """See :meth:`AsyncRewardClient.score`."""
        return self._run(lambda client: client.score(items, anchored=anchored, combine=combine))

    def score_turns(self, items: Sequence[ScoreItem]) -> list[TurnOutcome]:
        """See :meth:`AsyncRewardClient.score_turns`."""
        return self._run(lambda client: client.score_turns(items))

    def score_ids(self, sequences: Sequence[list[int]]) -> list[Outcome]:
        """See :meth:`AsyncRewardClient.score_ids`."""
        return self._run(lambda client: client.score_ids(sequences))

    def _run(self, work: Callable[[AsyncRewardClient], Coroutine[Any, Any, T]]) -> T:
        with self._opening:
            if self._pid != os.getpid():  # a forked child does not inherit its parent's threads
                client = AsyncRewardClient(self._url, **{**self._options, "model": self._client.encoder})
                client.folder = self._client.folder
                self._open(client)
        return asyncio.run_coroutine_threadsafe(work(self._client), self._loop).result()

"""Trainers ask for one reward at a time, from many tasks or threads at once: their calls become few requests.

A trainer loads an adapter by its path, perhaps several times, and calls it from event loops that come and go. So a process has
one :class:`Merger` per server, in this module, which is imported once, and it has an event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from typing import Any

from polar_rm.client.asynchronous import AsyncRewardClient
from polar_rm.errors import ScoreError
from polar_rm.records import ScoreItem
from polar_rm.rewards.outcomes import Failure, Reward

# Seconds that the first of several calls waits for the others. Next to the generation that made its text it is nothing.
WINDOW = 0.01
MAX_ITEMS = 256


class Merger:
    """Rewards of single items from any thread or event loop. Options are those of :class:`AsyncRewardClient`.

    Items that come within ``window`` seconds, or ``max_items`` of them, are sent together; those of one prompt and reference lie
    side by side, so that they are scored as one tree.
    """

    def __init__(self, url: str, *, window: float = WINDOW, max_items: int = MAX_ITEMS, **options: Any) -> None:
        self._client = AsyncRewardClient(url, **options)
        self._window, self._max_items = window, max_items
        # The rest belongs to the loop's thread.
        self._waiting: list[tuple[ScoreItem, Future[Reward]]] = []
        self._flights: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reward-merger", daemon=True)
        self._thread.start()

    def submit(self, item: ScoreItem) -> Future[Reward]:
        """The item's reward, in time. ``asyncio.wrap_future`` makes it awaitable; who cancels it before it is sent takes it out.

        The future raises:
            ScoreError: this item has no reward.
            PolarError: a mistake in the set-up, which every item gets to know.
        """
        future: Future[Reward] = Future()
        self._loop.call_soon_threadsafe(self._add, item, future)
        return future

    def close(self) -> None:
        """Answer what was submitted and close all connections."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _add(self, item: ScoreItem, future: Future[Reward]) -> None:
        self._waiting.append((item, future))
        if len(self._waiting) == self._max_items:
            self._send()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._window, self._send)

    def _send(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        calls = [(item, future) for item, future in self._waiting if future.set_running_or_notify_cancel()]
        self._waiting = []
        if calls:
            flight = self._loop.create_task(self._answer(calls))
            self._flights.add(flight)  # a loop holds its tasks only weakly
            flight.add_done_callback(self._flights.discard)

    async def _answer(self, calls: list[tuple[ScoreItem, Future[Reward]]]) -> None:
        try:
            outcomes = await self._client.score([item for item, _ in calls])
        except Exception as error:  # raised where somebody waits for it
            for _, future in calls:
                future.set_exception(error)
            return
        for (_, future), outcome in zip(calls, outcomes, strict=True):
            if isinstance(outcome, Failure):
                future.set_exception(ScoreError(f"no reward: {outcome.code}: {outcome.message}"))
            else:
                future.set_result(outcome)

    async def _finish(self) -> None:
        self._send()
        await asyncio.gather(*self._flights)
        await self._client.close()


_shared: dict[tuple[Any, ...], Merger] = {}
_lock = threading.Lock()


def shared_merger(**options: Any) -> Merger:
    """The process's merger for these options of :class:`Merger`, made at the first call.

    Raises:
        PolarError: ``url`` is no URL, or ``model`` no checkpoint folder.
    """
    # A forked child has its parent's dictionary but not its threads.
    key = (os.getpid(), *sorted(options.items()))
    with _lock:
        if key not in _shared:
            _shared[key] = Merger(**options)
        return _shared[key]

"""Merges the calls of trainers, which ask for single rewards from many concurrent tasks or threads, into few requests.

A trainer loads an adapter by its path, perhaps several times, and calls it from event loops of different lifetimes. So each
process has one :class:`Merger` per server in this module, which is imported only once. It has its own thread with an event loop.
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
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.combining import Combine, check_combine
from polar_rm.rewards.outcomes import Failure, Reward
from polar_rm.rewards.transforms import (
    ITEM_TRANSFORMS,
    check_name,
    check_transform,
    needs_anchors,
    needs_card,
    transform_one,
)

# Seconds that the first of several calls waits for the others. This is short compared with the generation of its text.
WINDOW = 0.01
MAX_ITEMS = 256


class Merger:
    """Rewards of single items for any thread or event loop. options: of :class:`AsyncRewardClient`. transform: one of
    :data:`polar_rm.rewards.transforms.ITEM_TRANSFORMS`, for :meth:`transformed`.

    Items that arrive within ``window`` seconds are sent together, at most ``max_items`` of them. Items of one prompt and
    reference are adjacent, so that they are scored as one tree.
    """

    def __init__(
        self,
        url: str,
        *,
        window: float = WINDOW,
        max_items: int = MAX_ITEMS,
        transform: str = "raw",
        combine: Combine = "mean",
        **options: Any,
    ) -> None:
        check_name(transform, ITEM_TRANSFORMS)
        check_combine(combine, transform)
        self._transform, self._combine = transform, combine
        self._calibration: Calibration | None = None
        self._client = AsyncRewardClient(url, **options)
        self._window, self._max_items = window, max_items
        # Only the loop's thread uses these.
        self._waiting: list[tuple[ScoreItem, Future[Reward]]] = []
        self._requests: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reward-merger", daemon=True)
        self._thread.start()

    def submit(self, item: ScoreItem) -> Future[Reward]:
        """A future of the item's reward, for ``asyncio.wrap_future``, too. If it is cancelled early, the item is not sent.

        The future raises:
            ScoreError: this item has no reward.
            PolarError: there is a mistake in the set-up; all items raise it.
        """
        future: Future[Reward] = Future()
        self._loop.call_soon_threadsafe(self._add, item, future)
        return future

    def transformed(self, reward: Reward) -> float:
        """A reward that :meth:`submit` gave, after the merger's transform."""
        return transform_one(self._transform, reward, self._calibration)

    def close(self) -> None:
        """Wait for the rewards of all submitted items, and close all connections."""
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
            request = self._loop.create_task(self._answer(calls))
            self._requests.add(request)  # because an event loop holds its tasks only weakly
            request.add_done_callback(self._requests.discard)

    async def _answer(self, calls: list[tuple[ScoreItem, Future[Reward]]]) -> None:
        try:
            if needs_card(self._transform) and self._calibration is None:
                self._calibration = await self._client.calibration()
                check_transform(self._transform, self._calibration)
            anchored = needs_anchors(self._transform)
            items = [item for item, _ in calls]
            outcomes = await self._client.score(items, anchored=anchored, combine=self._combine)
        except Exception as error:  # the futures raise it in their callers
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
        await asyncio.gather(*self._requests)
        await self._client.close()


_shared: dict[tuple[Any, ...], Merger] = {}
_lock = threading.Lock()


def shared_merger(**options: Any) -> Merger:
    """The process's merger for these options of :class:`Merger`; the first call creates it.

    Raises:
        PolarError: ``url`` is no URL, ``model`` is no checkpoint folder, or ``transform`` needs more than one reward.
    """
    # A forked child inherits the dictionary but not the threads.
    key = (os.getpid(), *sorted(options.items()))
    with _lock:
        if key not in _shared:
            _shared[key] = Merger(**options)
        return _shared[key]

"""Merges sequences of many requests into prefix-shared batches for one model thread.

The queue is keyed by what a tree shares, ``[bos] prompt reference separator`` and, where its end is known, the prompt again:
requests for the same prompt and reference join one tree while they wait, from any connection. These groups are served in the
order of their arrival. If a batch can't hold all sequences of a group, the rest moves to the end of the queue.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

from polar_rm.attention.prefixes import PrefixStore
from polar_rm.encoding.sequences import Group, TokenSequence, join, shared_length
from polar_rm.encoding.tree import PrefixTree
from polar_rm.rewards.outcomes import Failure
from polar_rm.rewards.uncertainty import Measured

ScoreTrees = Callable[[list[PrefixTree]], list[list[float]]]
MeasureTrees = Callable[[list[PrefixTree]], list[list[Measured]]]

# After a batch its clients ask again, and a batch that begins at once misses most of them: they would go on taking turns, in
# small batches, each of which reads all weights. So the model pauses for a share of the time of its last batch, with a limit in
# seconds.
_PAUSE_SHARE = 0.05
_LONGEST_PAUSE = 0.05

_log = logging.getLogger(__name__)


class Overloaded(Exception):
    """The queue is full; no part of the request was accepted."""


@dataclass(eq=False, slots=True)
class _Pending:
    """A request in the queue. results: by index. remaining: number of results that are still missing. measured: whether it also
    asks for features."""

    results: list[float | Measured | Failure | None]
    remaining: int
    measured: bool
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Entry:
    request: _Pending
    index: int
    sequence: TokenSequence


@dataclass(frozen=True, slots=True)
class BatchStats:
    """Counts of one call of the model. sequence_tokens: number of tokens without sharing prefixes. tree_tokens: computed."""

    sequences: int
    trees: int
    sequence_tokens: int
    tree_tokens: int
    seconds: float


class Batcher:
    """Scores sequences in the order of their groups' arrival. Any number of tasks of one event loop may call ``submit``.

    score: called in its own thread, with one batch at a time. measure: called in its place for batches with a request that asks
    for features, too; it gives the same scores. batch_tokens: maximum number of tree tokens of a batch (a single
    sequence may exceed it). window: seconds that an idle model waits at least for further requests after the first one.
    max_waiting_tokens: number of sequence tokens in the queue from which on requests are refused. Below it a request of any size
    is accepted, so that small requests can't crowd out large ones; an empty queue accepts any request. prefixes: those that the
    model keeps, for counts.
    """

    def __init__(
        self,
        score: ScoreTrees,
        measure: MeasureTrees | None = None,
        *,
        batch_tokens: int = 8192,
        window: float = 0.005,
        max_waiting_tokens: int = 2_000_000,
        on_batch: Callable[[BatchStats], None] | None = None,
        prefixes: PrefixStore | None = None,
    ) -> None:
        self._score, self._measure = score, measure
        self.batch_tokens = batch_tokens
        self.window = window
        self.max_waiting_tokens = max_waiting_tokens
        self.on_batch = on_batch
        self.prefixes = prefixes
        self._queue: dict[Group, deque[_Entry]] = {}
        self.waiting_tokens = 0
        self.waiting_sequences = 0
        self._arrived = asyncio.Event()
        self._last_seconds = 0.0  # of the last batch
        self._thread = ThreadPoolExecutor(1, "model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start serving in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop after the current batch. Waiting requests stay unanswered, so drain the queue first."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether the task that calls the model is running."""
        return self._task is not None and not self._task.done()

    async def submit(self, sequences: Sequence[TokenSequence]) -> list[float | Failure]:
        """One finite raw reward or failure per sequence, in order. A cancelled request (timeout, client gone) leaves the queue.

        Raises:
            Overloaded: the queue is full.
        """
        return cast("list[float | Failure]", await self._results(sequences, measured=False))

    async def measure(self, sequences: Sequence[TokenSequence]) -> list[Measured | Failure]:
        """As :meth:`submit`, with the features of every reward. The batcher must have been made with ``measure``."""
        if self._measure is None:
            raise TypeError("this batcher was made without a function that measures features")
        return cast("list[Measured | Failure]", await self._results(sequences, measured=True))

    async def _results(self, sequences: Sequence[TokenSequence], *, measured: bool) -> list[float | Measured | Failure]:
        if self.waiting_tokens and self.waiting_tokens >= self.max_waiting_tokens:
            raise Overloaded(f"{self.waiting_tokens:,} tokens are waiting in the queue; the limit is {self.max_waiting_tokens:,}")
        request = _Pending([None] * len(sequences), len(sequences), measured)
        for index, sequence in enumerate(sequences):
            self._queue.setdefault(sequence.group, deque()).append(_Entry(request, index, sequence))
        self._count(sequences, 1)
        try:
            if sequences:
                self._arrived.set()
                await request.done.wait()
        except asyncio.CancelledError:
            self._withdraw(request, {sequence.group for sequence in sequences})
            raise
        return [result for result in request.results if result is not None]

    def _count(self, sequences: Sequence[TokenSequence], sign: int) -> None:
        self.waiting_sequences += sign * len(sequences)
        self.waiting_tokens += sign * sum(map(len, sequences))

    def _withdraw(self, request: _Pending, groups: set[Group]) -> None:
        for group in groups & self._queue.keys():
            kept = deque(entry for entry in self._queue[group] if entry.request is not request)
            self._count([entry.sequence for entry in self._queue[group] if entry.request is request], -1)
            if kept:
                self._queue[group] = kept
            else:
                del self._queue[group]

    async def _run(self) -> None:
        while True:
            pause = min(_PAUSE_SHARE * self._last_seconds, _LONGEST_PAUSE)
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                pause = max(pause, self.window)
            if self.waiting_tokens < self.batch_tokens:
                await asyncio.sleep(pause)
            batch = self._take()
            if batch:
                await self._serve(batch)

    def _take(self) -> list[list[_Entry]]:
        """Remove the entries of the next batch from the queue; returns one list per tree."""
        batch: list[list[_Entry]] = []
        remaining = self.batch_tokens
        while self._queue:
            group, entries = next(iter(self._queue.items()))
            taken, used = _take_fitting(entries, remaining, at_least_one=not batch)
            if taken:
                self._count([entry.sequence for entry in taken], -1)
                batch.append(taken)
                remaining -= used
            if entries:
                if taken:  # move the group to the end, or one with constant requests would starve the others
                    self._queue[group] = self._queue.pop(group)
                break
            del self._queue[group]
        return batch

    async def _serve(self, batch: list[list[_Entry]]) -> None:
        trees = [join([entry.sequence for entry in entries]) for entries in batch]
        measured = any(entry.request.measured for entries in batch for entry in entries)
        score = self._measure if measured and self._measure else self._score
        reused = self.prefixes.reused if self.prefixes is not None else 0
        started = time.perf_counter()
        scored = await asyncio.get_running_loop().run_in_executor(self._thread, _isolated, score, trees)
        self._last_seconds = seconds = time.perf_counter() - started
        for entries, results in zip(batch, scored, strict=True):
            for entry, result in zip(entries, results, strict=True):
                if isinstance(result, tuple) and not entry.request.measured:  # another request of the batch asked for features
                    result = result[0]
                entry.request.results[entry.index] = result
                entry.request.remaining -= 1
                if not entry.request.remaining:
                    entry.request.done.set()
        if self.on_batch:
            lengths = [len(entry.sequence) for entries in batch for entry in entries]
            reused = self.prefixes.reused - reused if self.prefixes is not None else 0
            computed = sum(tree.n_tokens for tree in trees) - reused
            self.on_batch(BatchStats(len(lengths), len(trees), sum(lengths), computed, seconds))


def _take_fitting(entries: deque[_Entry], max_tokens: int, *, at_least_one: bool) -> tuple[list[_Entry], int]:
    """Remove entries of one group from the left while their tree has at most ``max_tokens`` tokens.

    Returns the entries and the number of tokens of their tree.
    """
    taken: list[_Entry] = []
    shared = lengths = used = 0
    while entries:
        sequence = entries[0].sequence
        tail = [] if sequence.ends_with_prompt else sequence.tail[:-1]
        # Another tail can only shorten the common prefix, which lengthens the earlier branches.
        common = min(shared, shared_length(taken[0].sequence.tail, tail)) if taken else len(tail)
        total = len(sequence.head) + common + lengths + len(sequence.tail) - (len(taken) + 1) * common
        if total > max_tokens and (taken or not at_least_one):
            break
        shared, lengths, used = common, lengths + len(sequence.tail), total
        taken.append(entries.popleft())
    return taken, used


def _isolated(score: ScoreTrees | MeasureTrees, trees: list[PrefixTree]) -> list[list[float | Measured | Failure]]:
    """Results of every tree. If the model fails on a batch, each tree is scored alone, so that only bad trees fail."""
    try:
        scored = score(trees)
        if [len(values) for values in scored] != [len(tree.branches) for tree in trees]:
            raise ValueError("the model returned a wrong number of scores")
        return [[_checked(value) for value in values] for values in scored]
    except Exception as error:  # any error of the model becomes a failure of its items, not of the server
        if len(trees) > 1:
            return [_isolated(score, [tree])[0] for tree in trees]
        _log.exception("the model failed on a tree of %d tokens", trees[0].n_tokens)
        reason = f"the model failed: {type(error).__name__}"
        return [[Failure("model_error", reason)] * len(trees[0].branches)]


def _checked(value: float | Measured) -> float | Measured | Failure:
    score = value[0] if isinstance(value, tuple) else value
    return value if math.isfinite(score) else Failure("non_finite", f"the model returned the score {score}")

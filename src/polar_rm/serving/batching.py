"""Sequences of many requests, merged into prefix-shared batches for one model thread.

The queue is keyed by head, ``[bos] prompt reference separator``: whoever asks about the same prompt and reference while an
earlier request is still waiting joins its tree, from whatever connection. Heads are served first come, first served; one that a
batch can't hold whole goes behind the others with the rest.
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

from polar_rm.encoding.sequences import TokenSequence, join, shared_length
from polar_rm.encoding.tree import PrefixTree
from polar_rm.rewards.outcomes import Failure

ScoreTrees = Callable[[list[PrefixTree]], list[list[float]]]

_log = logging.getLogger(__name__)


class Overloaded(Exception):
    """The queue is full; nothing of the request was accepted."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """One request's place in the queue: results by index, and how many are still to come."""

    results: list[float | Failure | None]
    left: int
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Entry:
    ticket: _Ticket
    index: int
    sequence: TokenSequence


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call of the model did. sequence_tokens: what it would have computed without sharing prefixes."""

    sequences: int
    trees: int
    sequence_tokens: int
    tree_tokens: int
    seconds: float


class Batcher:
    """Scores sequences in the order of their heads' arrival; ``submit`` may be called from any number of tasks of one loop.

    score: called in a thread of its own, with one batch at a time. batch_tokens: tree tokens of a batch (one sequence may exceed
    it). window: seconds that an idle model waits for company after the first arrival. max_waiting_tokens: requests are refused
    while so many sequence tokens are in the queue. Below it one of any size is taken, so that among small ones a large one has
    its chance; an empty queue takes any.
    """

    def __init__(
        self,
        score: ScoreTrees,
        *,
        batch_tokens: int = 8192,
        window: float = 0.005,
        max_waiting_tokens: int = 2_000_000,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self._score = score
        self.batch_tokens = batch_tokens
        self.window = window
        self.max_waiting_tokens = max_waiting_tokens
        self.on_batch = on_batch
        self._queue: dict[tuple[int, ...], deque[_Entry]] = {}
        self.waiting_tokens = 0
        self.waiting_sequences = 0
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop after the batch in progress. Drain before: what is still waiting stays unanswered."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(cancel_futures=True)

    @property
    def alive(self) -> bool:
        """Whether the task that feeds the model runs."""
        return self._task is not None and not self._task.done()

    async def submit(self, sequences: Sequence[TokenSequence]) -> list[float | Failure]:
        """One finite raw reward or failure per sequence, in order. Cancelled (a timeout, a client gone), it leaves the queue.

        Raises:
            Overloaded: the queue is full.
        """
        if self.waiting_tokens and self.waiting_tokens >= self.max_waiting_tokens:
            raise Overloaded(f"{self.waiting_tokens:,} tokens are waiting; more are taken below {self.max_waiting_tokens:,}")
        ticket = _Ticket([None] * len(sequences), len(sequences))
        for index, sequence in enumerate(sequences):
            self._queue.setdefault(sequence.head, deque()).append(_Entry(ticket, index, sequence))
        self._count(sequences, 1)
        try:
            if sequences:
                self._arrived.set()
                await ticket.done.wait()
        except asyncio.CancelledError:
            self._withdraw(ticket, {sequence.head for sequence in sequences})
            raise
        return [result for result in ticket.results if result is not None]

    def _count(self, sequences: Sequence[TokenSequence], sign: int) -> None:
        self.waiting_sequences += sign * len(sequences)
        self.waiting_tokens += sign * sum(map(len, sequences))

    def _withdraw(self, ticket: _Ticket, heads: set[tuple[int, ...]]) -> None:
        for head in heads & self._queue.keys():
            kept = deque(entry for entry in self._queue[head] if entry.ticket is not ticket)
            self._count([entry.sequence for entry in self._queue[head] if entry.ticket is ticket], -1)
            if kept:
                self._queue[head] = kept
            else:
                del self._queue[head]

    async def _run(self) -> None:
        while True:
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                # Only an idle model waits: what arrives while it is busy has had time to gather.
                await asyncio.sleep(self.window)
            batch = self._take()
            if batch:
                await self._serve(batch)

    def _take(self) -> list[list[_Entry]]:
        """Entries of the next batch, one list per tree, taken out of the queue."""
        batch: list[list[_Entry]] = []
        room = self.batch_tokens
        while self._queue:
            head, entries = next(iter(self._queue.items()))
            taken, used = _fitting(entries, room, at_least_one=not batch)
            if taken:
                self._count([entry.sequence for entry in taken], -1)
                batch.append(taken)
                room -= used
            if entries:
                if taken:  # the others' turn, or a head that is asked about all the time would be served alone
                    self._queue[head] = self._queue.pop(head)
                break
            del self._queue[head]
        return batch

    async def _serve(self, batch: list[list[_Entry]]) -> None:
        trees = [join([entry.sequence for entry in entries]) for entries in batch]
        started = time.perf_counter()
        scored = await asyncio.get_running_loop().run_in_executor(self._thread, _isolated, self._score, trees)
        seconds = time.perf_counter() - started
        for entries, results in zip(batch, scored, strict=True):
            for entry, result in zip(entries, results, strict=True):
                entry.ticket.results[entry.index] = result
                entry.ticket.left -= 1
                if not entry.ticket.left:
                    entry.ticket.done.set()
        if self.on_batch:
            lengths = [len(entry.sequence) for entries in batch for entry in entries]
            self.on_batch(Batch(len(lengths), len(trees), sum(lengths), sum(tree.n_tokens for tree in trees), seconds))


def _fitting(entries: deque[_Entry], room: int, *, at_least_one: bool) -> tuple[list[_Entry], int]:
    """Entries of one head, taken from the left as long as their tree has at most ``room`` tokens, and that tree's tokens."""
    taken: list[_Entry] = []
    shared = lengths = used = 0
    while entries:
        sequence = entries[0].sequence
        tail = sequence.tail[:-1]
        # A later tail can only make the common prefix shorter, and with it the branches before longer.
        common = min(shared, shared_length(taken[0].sequence.tail, tail)) if taken else len(tail)
        total = len(sequence.head) + common + lengths + len(sequence.tail) - (len(taken) + 1) * common
        if total > room and (taken or not at_least_one):
            break
        shared, lengths, used = common, lengths + len(sequence.tail), total
        taken.append(entries.popleft())
    return taken, used


def _isolated(score: ScoreTrees, trees: list[PrefixTree]) -> list[list[float | Failure]]:
    """Results of every tree. If the model fails on a batch, each tree is tried alone, so that only the culprit's items fail."""
    try:
        scored = score(trees)
        if [len(values) for values in scored] != [len(tree.branches) for tree in trees]:
            raise ValueError("the model gave another number of scores")
        return [[_checked(value) for value in values] for values in scored]
    except Exception as error:  # whatever the model raises must become its items' failure, not the server's
        if len(trees) > 1:
            return [_isolated(score, [tree])[0] for tree in trees]
        _log.exception("the model failed on a tree of %d tokens", trees[0].n_tokens)
        reason = f"the model failed: {type(error).__name__}"
        return [[Failure("model_error", reason)] * len(trees[0].branches)]


def _checked(value: float) -> float | Failure:
    return value if math.isfinite(value) else Failure("non_finite", f"the model gave the score {value}")

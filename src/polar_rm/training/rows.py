"""The packed rows of this rank, step after step, made by a thread while the device computes.

What a step consists of is a function of (seed, step): its comparisons, which of them get an identical candidate, and their
distribution over rows, micro-steps and ranks, for which the trees' lengths suffice. A rank reads the trees of its own rows only.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from polar_rm.encoded.corpus import EncodedCorpus
from polar_rm.encoded.format import NUMBERS
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.tree import PrefixTree
from polar_rm.model.packing import PackedRow, deal, first_fit, pack
from polar_rm.training.config import TrainConfig
from polar_rm.training.losses import item_name
from polar_rm.training.parallel import World
from polar_rm.training.splitting import longer_than

T = TypeVar("T")

# A rank without a row in a micro-step still takes part in FSDP's collectives. It computes this tree with a loss of zero.
_DUMMY_TREE = PrefixTree([0], [[0], [0]], (0, 1))

# Rows for compiled layers are padded to a multiple of this many tokens.
_PAD_MULTIPLE = 64

_DEPTH = 8  # rows that wait for the device
_CLOSING_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step.

    items, candidates: of the whole global batch. n_rows: micro-steps of every rank. split: the trees that are longer than a row,
    on every rank; they are in no row.
    """

    step: int
    indices: Sequence[int]
    items: int
    candidates: int
    n_rows: int
    split: dict[int, PrefixTree]


Row = tuple[list[int], PackedRow]
"""The comparisons of a row, none where only other ranks have a row in this micro-step, and the row in host memory."""


class RowMaker:
    """Makes the rows of this rank. encoder: of the model, for identical candidates. compiled: pad rows to few sizes."""

    def __init__(self, config: TrainConfig, world: World, encoder: Encoder, compiled: bool) -> None:
        self._config, self._world, self._encoder = config, world, encoder
        self._multiple = _PAD_MULTIPLE if compiled else 1

    def steps(self, corpus: EncodedCorpus, batches: Iterable[tuple[int, Sequence[int]]]) -> Iterator[Step | Row]:
        """For every (step, indices) the :class:`Step`, and then its rows."""
        for step, indices in batches:
            numbers = corpus.numbers[np.asarray(indices)]
            column = dict(zip(NUMBERS, numbers.T, strict=True))
            changed = self.identical(corpus, step, indices)
            lengths = dict(zip(indices, column["tokens"].tolist(), strict=True))
            lengths |= {index: tree.n_tokens for index, tree in changed.items()}
            long = [index for index, length in lengths.items() if length > self._config.row_tokens]
            split = longer_than(self._config.row_tokens, {i: changed.get(i) or corpus[i] for i in long})
            rows = list(self.rows_of_rank({i: length for i, length in lengths.items() if i not in split}))
            # The loss is divided by the items of the *whole* batch: rows with many pairs should have more weight.
            items = int(column[item_name(self._config.loss)].sum(dtype=np.int64))
            yield Step(step, indices, items, int(column["candidates"].sum(dtype=np.int64)), len(rows), split)
            for in_row in rows:
                yield in_row, self.row([changed.get(i) or corpus[i] for i in in_row])

    def rows(self, corpus: EncodedCorpus, chunk: int) -> Iterator[Row]:
        """The rows of a whole corpus, of ``chunk`` comparisons at a time."""
        for start in range(0, len(corpus), chunk):
            lengths = corpus.lengths[start : start + chunk].tolist()
            for in_row in self.rows_of_rank(dict(enumerate(lengths, start))):
                yield in_row, self.row([corpus[i] for i in in_row])

    def rows_of_rank(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """This rank's row of every micro-step, as keys of ``lengths`` (tokens); empty if only other ranks have a row."""
        indices, sizes = list(lengths), list(lengths.values())
        rows = first_fit(sizes, self._config.row_tokens)
        for ranks in deal(rows, sizes, self._world.size):
            yield [indices[i] for i in ranks[self._world.rank]]

    def identical(self, corpus: EncodedCorpus, step: int, indices: Sequence[int]) -> dict[int, PrefixTree]:
        """The trees of the step that get an identical candidate, which changes their lengths; a function of (seed, step)."""
        steps = self._config.data.identical_steps
        if step >= steps:
            return {}
        chosen = np.random.default_rng([self._config.seed, step]).random(len(indices)) < 1 - step / steps
        return {i: self._encoder.with_identical(corpus[i]) for i, is_chosen in zip(indices, chosen, strict=True) if is_chosen}

    def row(self, trees: Sequence[PrefixTree]) -> PackedRow:
        """A row of trees, or of the dummy tree if there are none, in host memory."""
        return pack(trees or [_DUMMY_TREE], multiple=self._multiple)


@contextmanager
def ahead(source: Iterator[T], depth: int = _DEPTH) -> Iterator[Iterator[T]]:
    """The values of an iterator, which a thread computes ahead of their use; an error of its is raised in the place of its value.

    The thread has ended when the block is left. depth: values that may wait.
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    closing = threading.Event()

    def put(value: T | None, error: BaseException | None = None) -> None:
        while not closing.is_set():
            try:
                waiting.put((value, error), timeout=_CLOSING_POLL_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for value in source:
                put(value)
                if closing.is_set():
                    return
        except BaseException as error:  # raised again where the value is taken
            put(None, error)
        else:
            put(None, StopIteration())

    def values() -> Iterator[T]:
        while True:
            value, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield value  # type: ignore[misc]

    thread = threading.Thread(target=work, name="rows", daemon=True)
    thread.start()
    try:
        yield values()
    finally:
        closing.set()
        thread.join()

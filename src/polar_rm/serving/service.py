"""From requests to outcomes. Encoding and scoring run in threads of their own, so that the event loop stays free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from polar_rm.client.batches import encode
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.sequences import TokenSequence, tokenize
from polar_rm.errors import PolarError
from polar_rm.protocols.polar import text_length
from polar_rm.records import ScoreItem
from polar_rm.rewards.anchors import AnchoredItems
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.combining import Combine, ReferencedItems
from polar_rm.rewards.outcomes import Cut, Failure, Outcome, Reward
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.turns import TurnItems, TurnOutcome
from polar_rm.serving.batching import Batcher

T = TypeVar("T")

# Maximum size of a slice, which is encoded without interruption; a longer text is a slice by itself.
_SLICE_ITEMS = 32
_SLICE_CHARACTERS = 1 << 18
# A slice with more characters than this is encoded in another thread, so that short texts don't wait for it.
_LONG_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class _Encoded:
    sequence: TokenSequence
    cut: Cut
    notes: tuple[str, ...] = ()


_Rows = list[_Encoded | Failure]


@dataclass
class Service:
    """Everything that the routes use: the encoder, the queue of the model, and what its folder knows of the scale of rewards.

    With the uncertainty of the head, the queue must be able to measure features. max_positions: the backbone's number of
    positions, if it has one; longer sequences get a note. dtype, device: of the backbone, for people.
    """

    name: str
    encoder: Encoder
    batcher: Batcher
    scale: Scale = field(default_factory=Scale)
    max_positions: int | None = None
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        self._conversations = count()
        self._short, self._long = _EncoderThread("encoder"), _EncoderThread("encoder of long texts")

    async def score_inputs(self, inputs: Sequence[str | list[int]], *, add_bos: bool = True) -> list[Outcome]:
        """One outcome per rendered text or list of token ids, in order."""
        return await self._score(await self._encoded(inputs, len, lambda part: _encode_inputs(part, self.encoder, add_bos)))

    @property
    def calibration(self) -> Calibration | None:
        """The checkpoint's calibration card."""
        return self.scale.calibration

    async def score_items(
        self, items: Sequence[ScoreItem], *, anchored: bool = False, combine: Combine = "mean"
    ) -> list[Outcome]:
        """One outcome per item, in order; an item that can't be encoded fails alone.

        anchored: score the references themselves, too: rewards get their anchor, and probability and deviation as far as the
        model has them. An item with an empty reference fails then. combine: how rewards under several references become one.
        """
        plan = ReferencedItems.of(items)
        outcomes = await self._score_referenced(plan.to_score, anchored or combine == "best")
        return outcomes if plan.is_plain(combine) else plan.outcomes(outcomes, combine, self.scale)

    async def _score_referenced(self, items: Sequence[ScoreItem], anchored: bool) -> list[Outcome]:
        """As :meth:`score_items`, for items with one reference each."""
        if not anchored:
            return await self._score(await self._encoded_items(items))
        plan = AnchoredItems.of(items)
        encoded = await self._encoded_items(plan.to_score)
        if self.scale.uncertainty is None:
            return plan.outcomes(await self._score(encoded), self.scale)
        outcomes, features = await self._measure(encoded, len(self.scale.uncertainty.factor))
        # A product with a matrix of the width of the model would hold up the event loop.
        return await asyncio.to_thread(plan.outcomes, outcomes, self.scale, features)

    async def score_turns(self, items: Sequence[ScoreItem]) -> list[TurnOutcome]:
        """For each item, in order, the raw rewards of all turns of the assistant in its output, or the reason that it has none.

        The turns of a conversation share a tree, so that what they have in common is computed once.
        """
        plan = TurnItems.of(items)
        encoded = await self._encoded_items(plan.to_score)
        lengths = [len(ends) for ends in plan.ends if not isinstance(ends, Failure)]
        conversation = [name for length in lengths for name in [next(self._conversations)] * length]
        rows = [
            row if isinstance(row, Failure) else replace(row, sequence=replace(row.sequence, conversation=name))
            for row, name in zip(encoded, conversation, strict=True)
        ]
        return plan.outcomes(await self._score(rows))

    async def score_rows(
        self, rows: Sequence[T], characters: Callable[[T], int], item_of: Callable[[T], ScoreItem]
    ) -> list[Outcome]:
        """As :meth:`score_items`, for rows that ``item_of`` converts in the encoder's thread. If it raises, all rows fail."""
        return await self._score(
            await self._encoded(rows, characters, lambda part: _encode_items([item_of(row) for row in part], self.encoder))
        )

    async def close(self) -> None:
        """Stop the queue and the encoder's threads."""
        await self.batcher.stop()
        self._short.close()
        self._long.close()

    async def _encoded_items(self, items: Sequence[ScoreItem]) -> _Rows:
        return await self._encoded(items, _characters, lambda part: _encode_items(part, self.encoder))

    async def _encoded(self, values: Sequence[T], size: Callable[[T], int], encode: Callable[[Sequence[T]], _Rows]) -> _Rows:
        """Encode values in slices. Between two slices other requests have their turn, and cancelled requests end."""
        encoded: _Rows = []
        for part, characters in _slices(values, size):
            thread = self._long if characters > _LONG_CHARACTERS else self._short
            encoded += await thread.run(partial(encode, part))
        return encoded

    async def _score(self, encoded: Sequence[_Encoded | Failure]) -> list[Outcome]:
        good = [row for row in encoded if isinstance(row, _Encoded)]
        scores = iter(await self.batcher.submit([row.sequence for row in good]))
        return [row if isinstance(row, Failure) else self._outcome(row, next(scores)) for row in encoded]

    def _outcome(self, encoded: _Encoded, score: float | Failure) -> Outcome:
        if isinstance(score, Failure):
            return score
        return Reward.noted(score, len(encoded.sequence), encoded.cut, encoded.notes, self.max_positions)

    async def _measure(self, encoded: _Rows, hidden: int) -> tuple[list[Outcome], NDArray[np.float32]]:
        """Outcomes and features, float32 [len(encoded), hidden]; those of failures are zeros."""
        measured = iter(await self.batcher.measure([row.sequence for row in encoded if isinstance(row, _Encoded)]))
        features = np.zeros((len(encoded), hidden), np.float32)
        outcomes: list[Outcome] = []
        for index, row in enumerate(encoded):
            if isinstance(row, Failure):
                outcomes.append(row)
                continue
            result = next(measured)
            if isinstance(result, Failure):
                outcomes.append(result)
            else:
                score, features[index] = result
                outcomes.append(self._outcome(row, score))
        return outcomes, features


class _EncoderThread:
    """One thread, and a lock for its use."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._lock = asyncio.Lock()

    async def run(self, work: Callable[[], _Rows]) -> _Rows:
        # Requests wait for the lock and not in the executor's queue, which keeps cancelled work and its texts until the thread
        # is free.
        await self._lock.acquire()
        running = asyncio.get_running_loop().run_in_executor(self._thread, work)
        running.add_done_callback(lambda _: self._lock.release())
        return await asyncio.shield(running)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _slices(values: Sequence[T], size: Callable[[T], int]) -> Iterator[tuple[Sequence[T], int]]:
    """Slices of consecutive values with their numbers of characters.

    A slice has at most ``_SLICE_ITEMS`` values and, unless it has only one, at most ``_SLICE_CHARACTERS`` characters.
    """
    start = characters = 0
    for index, value in enumerate(values):
        more = size(value)
        if index > start and (index - start == _SLICE_ITEMS or characters + more > _SLICE_CHARACTERS):
            yield values[start:index], characters
            start, characters = index, 0
        characters += more
    if start < len(values):
        yield values[start:], characters


def _characters(item: ScoreItem) -> int:
    return text_length((item.prompt, item.reference, item.output))


def _encode_inputs(inputs: Sequence[str | list[int]], encoder: Encoder, add_bos: bool) -> _Rows:
    encoded: _Rows = []
    for value in inputs:
        try:
            ids = tokenize(value, encoder, add_bos=add_bos) if isinstance(value, str) else value
            encoded.append(_Encoded(TokenSequence.from_ids(ids, encoder), Cut()))
        except PolarError as error:
            encoded.append(Failure("invalid_item", str(error)))
    return encoded


def _encode_items(items: Sequence[ScoreItem], encoder: Encoder) -> _Rows:
    batch = encode(items, encoder)
    rows: dict[int, _Encoded | Failure] = dict(batch.failed)
    for index, entry in zip(batch.indices, batch.entries, strict=True):
        sequence = TokenSequence.from_ids(entry.ids, encoder, shared=entry.shared)
        rows[index] = _Encoded(sequence, entry.cut, entry.notes)
    return [rows[index] for index in range(len(items))]

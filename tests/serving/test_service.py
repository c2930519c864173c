"""Requests take turns in encoding: a large request neither delays others nor outlives its client."""

import asyncio
import gc
import threading
import weakref

from support import fakes

from polar_rm.records import ScoreItem
from polar_rm.serving import service as module
from polar_rm.serving.batching import Batcher
from polar_rm.serving.service import Service

ENCODER = fakes.encoder()
LARGE = [ScoreItem("over", "the dog", f"fox {number}") for number in range(640)]
SMALL = [ScoreItem("near", "the river", "bank")]


class Prompt(str):
    """A text that weak references can point to."""


def expected(items):
    return [fakes.fake_score(fakes.ids_of(item, ENCODER)) for item in items]


def serve(work, monkeypatch, before):
    """Run ``work`` with a service that calls ``before`` with the items of each slice, in the encoder's thread."""
    encode_items = module._encode_items

    def encode(items, encoder):
        before(items)
        return encode_items(items, encoder)

    monkeypatch.setattr(module, "_encode_items", encode)

    async def run():
        service = Service("rm", ENCODER, Batcher(fakes.FakeModel()))
        service.batcher.start()
        try:
            return await asyncio.wait_for(work(service), 120)
        finally:
            await service.close()

    return asyncio.run(run())


def test_a_small_request_does_not_wait_for_a_large_one(monkeypatch):
    slices = []
    queued = threading.Event()

    def before(items):
        slices.append(len(items))
        if len(slices) == 2:  # the small request is in the queue before the second slice is done
            assert queued.wait(60)

    async def work(service):
        large = asyncio.create_task(service.score_items(LARGE))
        while not slices:
            await asyncio.sleep(0)
        small = asyncio.create_task(service.score_items(SMALL))
        await asyncio.sleep(0)
        queued.set()
        return await small, await large

    small, large = serve(work, monkeypatch, before)
    assert [outcome.reward for outcome in small] == expected(SMALL)
    assert [outcome.reward for outcome in large] == expected(LARGE)
    assert slices.index(1) < 5 < len(slices)


def test_slices_count_characters(monkeypatch):
    """F3: a slice has 32 items, or at most 262,144 characters, or one longer item."""
    slices = []
    items = [ScoreItem("over" * 20_000, "the dog", "fox")] * 7 + SMALL * 40 + [ScoreItem("x" * 300_000, "r", "o")] + SMALL

    async def work(service):
        return await service.score_items(items)

    outcomes = serve(work, monkeypatch, lambda part: slices.append(len(part)))
    assert slices == [3, 3, 32, 9, 1, 1]
    assert outcomes[7].reward == outcomes[-1].reward == expected(SMALL)[0]
    assert outcomes[0] == outcomes[6] and outcomes[0].cut.prompt


def test_a_short_text_does_not_wait_for_a_long_one(monkeypatch):
    """F3: a text of a megabyte is encoded in another thread, and a cancelled request is not encoded further."""
    gate, started, slices = threading.Event(), threading.Event(), []
    long = [ScoreItem("x" * 1_100_000, "r", "o")] * 3

    def before(items):
        slices.append(len(items[0].prompt))
        if items[0] is long[0]:
            started.set()
            assert gate.wait(60)

    async def work(service):
        large = asyncio.create_task(service.score_items(long))
        while not started.is_set():
            await asyncio.sleep(0.01)
        small = await service.score_items(SMALL)
        large.cancel()
        gate.set()
        await asyncio.gather(large, return_exceptions=True)
        return small, await service.score_items(SMALL)

    small, again = serve(work, monkeypatch, before)
    assert [outcome.reward for outcome in small] == [outcome.reward for outcome in again] == expected(SMALL)
    assert slices.count(1_100_000) == 1


def test_a_cancelled_request_is_not_encoded_further(monkeypatch):
    slices = []
    gate = threading.Event()

    def before(items):
        slices.append(len(items))
        assert gate.wait(60)

    async def work(service):
        large = asyncio.create_task(service.score_items(LARGE))
        while not slices:
            await asyncio.sleep(0.01)
        large.cancel()
        small = asyncio.create_task(service.score_items(SMALL))
        await asyncio.sleep(0)
        gate.set()
        return await small

    assert [outcome.reward for outcome in serve(work, monkeypatch, before)] == expected(SMALL)
    assert len(slices) == 2


def test_texts_of_cancelled_requests_are_not_kept(monkeypatch):
    started, gate = threading.Event(), threading.Event()

    def before(_):
        started.set()
        assert gate.wait(60)

    async def waiting(service, prompt):
        task = asyncio.create_task(service.score_items([ScoreItem(prompt, "the dog", "fox")]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return weakref.ref(prompt)

    async def work(service):
        first = asyncio.create_task(service.score_items(SMALL))
        while not started.is_set():
            await asyncio.sleep(0.01)
        texts = [await waiting(service, Prompt("over")) for _ in range(3)]
        first.cancel()  # its slice is still in the thread
        await asyncio.gather(first, return_exceptions=True)
        texts += [await waiting(service, Prompt("over")) for _ in range(3)]
        await asyncio.sleep(0)  # the loop releases the last task
        gc.collect()
        alive = [text() for text in texts]
        gate.set()
        return alive

    assert serve(work, monkeypatch, before) == [None] * 6

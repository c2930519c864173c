"""Calls for single items become few requests, and each caller gets its own answer."""

import asyncio
import multiprocessing
import threading

import httpx
import pytest
from support import fakes, reward_servers

from polar_rm.errors import PolarError, ScoreError
from polar_rm.records import ScoreItem, group_items
from polar_rm.rft.merging import Merger, shared_merger

ENCODER = fakes.encoder()
ITEMS = [ScoreItem(f"mount {number % 5}", "the dog", word) for number in range(20) for word in fakes.WORDS[:3]]
SCORES = [fakes.fake_score(fakes.ids_of(item, ENCODER)) for item in ITEMS]


@pytest.fixture
def merger_of():
    mergers = []

    def make(engine, **options):
        mergers.append(Merger("http://rewards:1", model=ENCODER, transport=engine.transport, **options))
        return mergers[-1]

    yield make
    for merger in mergers:
        merger.close()


def one_by_one(merger, items):
    """Submit each item in its own task, as verl does."""

    async def one(item):
        return (await asyncio.wrap_future(merger.submit(item))).reward

    async def run():
        return await asyncio.gather(*map(one, items), return_exceptions=True)

    return asyncio.run(run())


def test_calls_of_one_window_are_few_requests_with_equal_heads_adjacent(merger_of):
    engine = reward_servers.Engine("sglang")
    assert one_by_one(merger_of(engine, window=0.2), ITEMS) == SCORES
    [(_, body)] = engine.requests  # a request can hold 64 items
    by_head = [ITEMS[index] for group in group_items(ITEMS) for index in group]
    assert by_head != ITEMS and body["input_ids"] == [fakes.ids_of(item, ENCODER) for item in by_head]


def test_event_loops_and_threads_share_a_merger(merger_of):
    engine = reward_servers.Engine("sglang")
    merger = merger_of(engine, window=0.2)
    results = {}

    def loop(part):
        results[part] = one_by_one(merger, ITEMS[part::6])

    def thread(part):
        results[part] = [future.result().reward for future in [merger.submit(item) for item in ITEMS[part::6]]]

    threads = [threading.Thread(target=loop if part % 2 else thread, args=(part,)) for part in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert results == {part: SCORES[part::6] for part in range(6)}
    assert len(engine.requests) == 1
    # A later event loop, after the others are closed.
    assert one_by_one(merger, ITEMS[:3]) == SCORES[:3]


def test_a_full_request_does_not_wait_for_the_window(merger_of):
    engine = reward_servers.Engine("vllm")
    assert one_by_one(merger_of(engine, window=600, max_items=20), ITEMS) == SCORES
    assert [len(body["input"]) for _, body in engine.requests] == [20, 20, 20]


def test_a_failure_reaches_only_its_caller(merger_of):
    bad = ScoreItem(ITEMS[0].prompt, "the dog", "the lazy " * 20)
    limit = len(fakes.ids_of(bad, ENCODER)) - 1
    engine = reward_servers.Engine("vllm", refuses=lambda ids: len(ids) > limit)
    *good, error = one_by_one(merger_of(engine), [*ITEMS, bad])
    assert good == SCORES
    assert isinstance(error, ScoreError) and "refused: HTTP 400 from http://rewards:1/classify: one is too long" in str(error)


def test_a_mistake_in_the_set_up_reaches_all_callers(merger_of):
    merger = merger_of(reward_servers.Engine("unknown"))
    errors = one_by_one(merger, ITEMS[:4])
    assert [type(error) for error in errors] == [PolarError] * 4 and "/v1/models" in str(errors[0])


def test_a_call_that_is_cancelled_before_the_request_is_not_sent(merger_of):
    engine = reward_servers.Engine("sglang")
    merger = merger_of(engine, window=0.1)
    cancelled, kept = merger.submit(ITEMS[0]), merger.submit(ITEMS[1])
    assert cancelled.cancel()
    assert kept.result().reward == SCORES[1]
    assert len(engine.requests[0][1]["input_ids"]) == 1


def test_closing_waits_for_requests_in_progress(merger_of):
    merger = merger_of(reward_servers.Engine("sglang", replies=[httpx.Response(503, headers={"Retry-After": "0"})]), window=600)
    future = merger.submit(ITEMS[0])
    merger.close()
    assert future.result(timeout=0).reward == SCORES[0]


def test_answered_requests_are_not_kept(merger_of):
    merger = merger_of(reward_servers.Engine("sglang"))
    for item in ITEMS[:3]:
        merger.submit(item).result(60)
    merger.close()
    assert not merger._requests


def test_a_process_has_one_merger_per_server_even_if_threads_race():
    mergers = []
    start = threading.Barrier(8)

    def get():
        start.wait()
        mergers.append(shared_merger(url="http://rewards:1", model=None))

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mergers) == 8 and len(set(mergers)) == 1
    options = {"url": "http://rewards:1", "model": None}
    changes = [{"url": "http://rewards:2"}, {"model": ENCODER}, {"api_key": "k"}, {"engine": "vllm"}]
    assert len({mergers[0], *(shared_merger(**options | change) for change in changes)}) == 5


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_a_working_merger():
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        assert shared_merger(url=url).submit(ITEMS[0]).result().reward == SCORES[0]
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        child = context.Process(target=lambda: answers.put(shared_merger(url=url).submit(ITEMS[1]).result(60).reward))
        child.start()
        try:
            assert answers.get(timeout=60) == SCORES[1]
        finally:
            child.kill()

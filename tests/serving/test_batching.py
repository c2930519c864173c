import asyncio
import math
import random
import threading

import pytest
from support import fakes

from polar_rm.attention.prefixes import PrefixStore
from polar_rm.encoding.sequences import TokenSequence
from polar_rm.records import ScoreItem
from polar_rm.rewards.outcomes import Failure
from polar_rm.scoring.scorer import Scorer
from polar_rm.serving import batching
from polar_rm.serving.batching import Batcher, Overloaded

ENCODER = fakes.encoder()


def sequence(prompt, output, reference="the fox"):
    return TokenSequence.from_ids(fakes.ids_of(ScoreItem(prompt, reference, output), ENCODER), ENCODER)


def expected(sequences):
    return [fakes.fake_score([*s.head, *s.tail]) for s in sequences]


def serve(work, model, **options):
    async def run():
        batcher = Batcher(model, **options)
        batcher.start()
        try:
            return await asyncio.wait_for(work(batcher), 120)
        finally:
            await batcher.stop()

    return asyncio.run(run())


def random_sequences(rng, n):
    return [sequence(rng.choice(fakes.WORDS), " ".join(rng.choices(fakes.WORDS, k=rng.randint(0, 9)))) for _ in range(n)]


def test_concurrent_requests_get_their_own_scores_in_order():
    rng = random.Random(0)
    requests = [random_sequences(rng, rng.randint(0, 12)) for _ in range(200)]
    model = fakes.FakeModel(delay=0.002)

    async def work(batcher):
        async def one(request):
            await asyncio.sleep(rng.random() / 5)
            return await batcher.submit(request)

        return await asyncio.gather(*map(one, requests)), (batcher.waiting_sequences, batcher.waiting_tokens)

    results, waiting = serve(work, model, batch_tokens=300)
    assert results == [expected(request) for request in requests]
    assert waiting == (0, 0)
    assert len(model.threads) == 1 and "MainThread" not in model.threads
    assert len(model.calls) < len(requests)  # merged
    assert max(sum(tree.n_tokens for tree in trees) for trees in model.calls) <= 300


def test_requests_about_one_prompt_share_a_tree():
    model = fakes.FakeModel()
    requests = [[sequence("over a river", word)] for word in fakes.WORDS] + [[sequence("other", "fox")]]

    async def work(batcher):
        return await asyncio.gather(*map(batcher.submit, requests))

    assert serve(work, model) == [expected(request) for request in requests]
    [trees] = model.calls
    assert [len(tree.branches) for tree in trees] == [len(fakes.WORDS), 1]


def test_clients_that_ask_again_after_a_batch_are_served_together(monkeypatch):
    monkeypatch.setattr(batching, "_PAUSE_SHARE", 1)
    monkeypatch.setattr(batching, "_LONGEST_PAUSE", 10)
    model = fakes.FakeModel(delay=0.3)

    async def work(batcher):
        async def ask(seconds):
            for word in fakes.WORDS[:3]:
                await batcher.submit([sequence("over a river", word)])
                await asyncio.sleep(seconds)

        await asyncio.gather(ask(0.01), ask(0.05))

    serve(work, model)
    assert [sum(len(tree.branches) for tree in trees) for trees in model.calls] == [2, 2, 2]


def test_a_full_batch_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(batching, "_PAUSE_SHARE", 1e6)
    monkeypatch.setattr(batching, "_LONGEST_PAUSE", 1e6)
    requests = [[sequence("over a river", " ".join([word] * 9))] for word in fakes.WORDS]

    async def work(batcher):
        return await asyncio.gather(*map(batcher.submit, requests))

    assert serve(work, fakes.FakeModel(), batch_tokens=10) == [expected(request) for request in requests]


def test_a_group_larger_than_a_batch_is_served_in_parts():
    model = fakes.FakeModel()
    request = [sequence("p", " ".join([word] * 9)) for word in fakes.WORDS * 4]

    async def work(batcher):
        return await batcher.submit(request)

    assert serve(work, model, batch_tokens=60) == expected(request)
    assert len(model.calls) > 5


def test_a_busy_prompt_does_not_starve_others():
    model = fakes.FakeModel(delay=0.01)
    busy = [sequence("busy", " ".join([word] * 9)) for word in fakes.WORDS]

    async def work(batcher):
        async def ask(request):
            while not done.is_set():
                await batcher.submit([request])

        done = asyncio.Event()
        tasks = [asyncio.create_task(ask(request)) for request in busy]
        while len(model.calls) < 3:
            await asyncio.sleep(0.005)
        try:
            return await asyncio.wait_for(batcher.submit([sequence("other", "fox")]), 20)
        finally:
            done.set()
            await asyncio.gather(*tasks)

    result = serve(work, model, batch_tokens=60)
    assert result == expected([sequence("other", "fox")])


def test_only_the_bad_tree_fails():
    bad = sequence("over", "lazy lazy lazy")

    def fail(ids):
        if ids == [*bad.head, *bad.tail]:
            raise RuntimeError("a kernel broke")

    requests = [[sequence("other", "fox")], [bad], [sequence("quick", "dog"), sequence("near", "bank")]]

    async def work(batcher):
        return await asyncio.gather(*map(batcher.submit, requests))

    first, second, third = serve(work, fakes.FakeModel(fail=fail))
    assert (first, third) == (expected(requests[0]), expected(requests[2]))
    assert second == [Failure("model_error", "the model failed: RuntimeError")]


def test_numbers_that_are_not_finite_are_failures():
    def model(trees):
        return [[math.nan if i == 1 else math.inf if i == 2 else 0.5 for i in range(len(tree.branches))] for tree in trees]

    async def work(batcher):
        return await batcher.submit([sequence("p", word) for word in ("fox", "dog", "bank")])

    good, *bad = serve(work, model)
    assert good == 0.5
    assert [failure.code for failure in bad] == ["non_finite", "non_finite"]
    for too_few in (lambda trees: [], lambda trees: [[0.5] for _ in trees]):
        assert [failure.code for failure in serve(work, too_few)] == ["model_error"] * 3


def test_a_full_queue_refuses_and_then_goes_on():
    model = fakes.FakeModel(delay=0.1)
    request = [sequence("p", word) for word in fakes.WORDS]

    async def work(batcher):
        first = asyncio.create_task(batcher.submit([sequence("q", "fox")]))
        await asyncio.sleep(0.05)  # the model is scoring it now
        second = asyncio.create_task(batcher.submit(request))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.submit(request)
        return [await first, await second, await batcher.submit(request)]

    limit = sum(map(len, request))
    results = serve(work, model, max_waiting_tokens=limit)
    assert results[1:] == [expected(request), expected(request)]


def test_a_queue_below_its_limit_takes_a_request_of_any_size():
    model = fakes.FakeModel(delay=0.1)
    small, large = [sequence("q", "fox")], [sequence("p", word) for word in fakes.WORDS]

    async def work(batcher):
        first = asyncio.create_task(batcher.submit(large))  # into an empty queue
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(batcher.submit(request)) for request in (small, large)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.submit(small)
        return await asyncio.gather(first, *rest)

    limit = len(small[0]) + 1
    assert serve(work, model, max_waiting_tokens=limit) == [expected(large), expected(small), expected(large)]
    assert serve(lambda batcher: batcher.submit(small), model, max_waiting_tokens=0) == expected(small)


def test_a_cancelled_request_leaves_the_queue():
    gate = threading.Event()
    model = fakes.FakeModel(gate=gate)

    async def work(batcher):
        first = asyncio.create_task(batcher.submit([sequence("q", "fox")]))
        while not model.calls:
            await asyncio.sleep(0.01)
        leaving = asyncio.create_task(batcher.submit([sequence("p", word) for word in fakes.WORDS]))
        staying = asyncio.create_task(batcher.submit([sequence("p", "fox")]))
        await asyncio.sleep(0)
        leaving.cancel()
        gate.set()
        return await first, await staying, (batcher.waiting_sequences, batcher.waiting_tokens)

    _, staying, waiting = serve(work, model)
    assert staying == expected([sequence("p", "fox")])
    assert waiting == (0, 0)
    assert sum(len(tree.branches) for trees in model.calls for tree in trees) == 2


def test_tokens_of_kept_prefixes_are_not_counted_as_computed(checkpoint):
    """A group that arrives in two pieces; the second computes its branch alone."""
    _, model = checkpoint
    store = PrefixStore(1 << 24)
    scorer = Scorer(model, prefixes=store)
    items = [ScoreItem("the quick brown fox " * 6, "a dog", output) for output in ("lazy", "a turtle")]
    ids = [model.encoder.encode_outputs(item.prompt, "a dog", [item.output])[0][1] for item in items]
    pieces = [TokenSequence(tuple(tree.prefix), tree.branches[0], True) for tree in ids]
    stats = []

    async def work(batcher):
        return [await batcher.submit([piece]) for piece in pieces]

    scores = serve(work, scorer.score_trees, prefixes=store, on_batch=stats.append)
    assert [score for [score] in scores] == Scorer(model).score_outputs(
        prompt=items[0].prompt, reference="a dog", outputs=[item.output for item in items]
    )
    assert [each.tree_tokens for each in stats] == [len(pieces[0]), len(pieces[1].tail)]

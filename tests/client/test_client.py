import asyncio
import json
import math
import multiprocessing
import random
import re
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import httpx
import numpy as np
import pyarrow
import pytest
from support import fakes, reward_servers, tiny
from support.raw_server import answering

from polar_rm.client.asynchronous import AsyncRewardClient
from polar_rm.client.blocking import RewardClient
from polar_rm.client.official import RewardModelClient
from polar_rm.errors import EncoderMismatch, PolarError, ScoreError
from polar_rm.records import ScoreItem
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.outcomes import Failure, Reward, rewards
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.uncertainty import Uncertainty
from polar_rm.scoring.scorer import Scorer
from polar_rm.serving.guard import Limits

ENCODER = fakes.encoder(max_length=200, max_response_length=60)
URL = "http://rewards:1"


def random_items(n=40, seed=0):
    rng = random.Random(seed)

    def text():
        return " ".join(rng.choices(fakes.WORDS, k=rng.randint(0, 9)))

    groups = [(text(), text()) for _ in range(5)]
    return [ScoreItem(*rng.choice(groups), text(), rng.choice(["sft", "pretrain"])) for _ in range(n)]


ITEMS = random_items()
SCORES = [fakes.fake_score(fakes.ids_of(item, ENCODER)) for item in ITEMS]


def scored(server, items=ITEMS, **options):
    options = {"model": ENCODER, "items_per_request": 7} | options

    async def run():
        async with AsyncRewardClient(URL, transport=server.transport, **options) as client:
            return await client.score(items)

    return asyncio.run(run())


@pytest.fixture(scope="module")
def url():
    with fakes.running(fakes.make(encode=ENCODER)) as address:
        yield address


@pytest.mark.parametrize(("owner", "task"), [("sglang", ""), ("vllm", "classify"), ("vllm", "token_classify"), ("lmdeploy", "")])
def test_foreign_engines_are_recognised_and_sent_ids(owner, task):
    engine = reward_servers.Engine(owner, pooling_task=task, reverse=True)
    outcomes = scored(engine)
    assert [outcome.reward for outcome in outcomes] == SCORES
    assert [outcome.n_tokens for outcome in outcomes] == [len(fakes.ids_of(item, ENCODER)) for item in ITEMS]
    sent = [ids for path, body in engine.requests for ids in body.get("input_ids") or body["input"]]
    assert sorted(sent[: len(ITEMS)]) == sorted(fakes.ids_of(item, ENCODER) for item in ITEMS) or task


def test_our_server_gets_texts(url):
    with RewardClient(url) as client:
        outcomes = client.score(ITEMS)
        assert client.score([]) == []
    assert [outcome.reward for outcome in outcomes] == SCORES
    assert rewards(outcomes) == SCORES
    with RewardClient(url, model=ENCODER) as client:
        assert rewards(client.score_ids([fakes.ids_of(item, ENCODER) for item in ITEMS])) == SCORES
    with pytest.raises(EncoderMismatch), RewardClient(url, model=fakes.encoder(max_length=100, max_response_length=10)) as client:
        client.score(ITEMS)


def measure(trees):
    """Fake scores, each with the length of its sequence as its only feature."""
    sequences = [[tree.sequence(branch) for branch in range(len(tree.branches))] for tree in trees]
    return [[(fakes.fake_score(ids), np.array([len(ids)], np.float32)) for ids in group] for group in sequences]


@pytest.mark.parametrize("owner", ["polar-rm", "sglang", "vllm"])
def test_anchored_rewards_come_from_every_server(owner, tmp_path):
    """Of ours with its own card and deviation, of the others with the card of the model's folder."""
    card = Calibration.from_rewards([-9.0, 9.0], temperature=100.0)
    tiny.reward_model(tmp_path / "lm", settings=ENCODER.settings).save(tmp_path / "model")
    card.save(tmp_path / "model")
    items = [item for item in ITEMS if item.reference][:9]
    if owner == "polar-rm":
        scale = Scale(card, Uncertainty(np.full((1, 1), 2.0, np.float32), 1.0))
        model = fakes.FakeModel()
        model.measure = measure
        with fakes.running(fakes.make(model, ENCODER, scale=scale)) as url, RewardClient(url) as client:
            outcomes = client.score([*items, ScoreItem("over", "", "fox")], anchored=True)
            plain, found = client.score(items), client.calibration()
            encoder = ENCODER
    else:
        with RewardClient(URL, model=tmp_path / "model", transport=reward_servers.Engine(owner).transport) as client:
            outcomes = client.score([*items, ScoreItem("over", "", "fox")], anchored=True)
            plain, found, encoder = client.score(items), client.calibration(), client.encoder
    assert found.temperature == 100.0 and found.quantiles == card.quantiles
    assert all(outcome.anchor_fields() == {} for outcome in plain)
    assert outcomes[-1].code == "invalid_item" and "the reference is empty" in outcomes[-1].message
    for item, outcome in zip(items, outcomes[:-1], strict=True):
        own = fakes.fake_score(fakes.ids_of(replace(item, output=item.reference), encoder))
        assert (outcome.reward, outcome.anchor) == (fakes.fake_score(fakes.ids_of(item, encoder)), own)
        assert outcome.probability == pytest.approx(1 / (1 + math.exp(-(outcome.reward - own) / 100)))
        lengths = [len(fakes.ids_of(replace(item, output=output), encoder)) for output in (item.output, item.reference)]
        assert outcome.deviation == (2.0 * abs(lengths[0] - lengths[1]) if owner == "polar-rm" else None)


def test_a_card_of_another_model_is_refused_before_anything_is_sent(tmp_path):
    """F11."""
    tiny.reward_model(tmp_path / "lm", settings=ENCODER.settings).save(tmp_path / "model")
    Calibration.from_rewards([-9.0, 9.0], temperature=1.0).save(tmp_path / "model")
    values = json.loads((tmp_path / "model/calibration.json").read_text())
    (tmp_path / "model/calibration.json").write_text(json.dumps(values | {"weights": "0"}))
    engine = reward_servers.Engine("vllm")
    with RewardClient(URL, model=tmp_path / "model", transport=engine.transport) as client:
        assert isinstance(client.score(ITEMS[:1])[0], Reward)
        for work in (client.calibration, lambda: client.score(ITEMS[:1], anchored=True)):
            with pytest.raises(PolarError, match="belongs to another model"):
                work()
    assert len(engine.requests) == 1


def test_a_card_that_cannot_be_read_and_an_absent_server_are_told():
    class Odd(reward_servers.Engine):
        def reply(self, request):
            return httpx.Response(200, json={"data": [{"owned_by": "polar-rm", "calibration": {"n": 1}}]})

    with (
        RewardClient(URL, transport=Odd("polar-rm").transport) as client,
        pytest.raises(PolarError, match="http://rewards:1: the server's calibration card can't be read"),
    ):
        client.calibration()
    with RewardClient("http://127.0.0.1:9", first_contact=0.1) as client, pytest.raises(PolarError, match="no server answers"):
        client.calibration()


def test_cuts_are_reported_by_every_server(url):
    item = ScoreItem("fox " * 100, "dog " * 100, "bank " * 100)
    with RewardClient(url) as client:
        [ours] = client.score([item])
    [theirs] = scored(reward_servers.Engine("sglang"), [item])
    assert ours == theirs
    assert ours.cut.prompt and ours.cut.reference and ours.cut.output


def test_threads_share_a_client(url):
    with RewardClient(url, max_concurrency=4) as client:
        results = {}
        threads = [threading.Thread(target=lambda i=i: results.update({i: client.score(ITEMS[i::8])})) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(rewards(results[i]) == SCORES[i::8] for i in range(8))


def test_requests_in_flight_are_bounded():
    engine = reward_servers.Engine("sglang")
    assert rewards(scored(engine, max_concurrency=3, items_per_request=1)) == SCORES
    assert engine.max_active == 3


def test_transient_errors_are_retried():
    busy = [
        httpx.Response(503, headers={"Retry-After": "0"}),
        httpx.Response(429, json={"error": {"message": "full"}}),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.Response(502, text="<html>"),
    ]
    assert rewards(scored(reward_servers.Engine("vllm", replies=busy))) == SCORES


def test_the_deadline_ends_retries_with_a_typed_failure():
    engine = reward_servers.Engine("vllm", replies=[httpx.Response(503, json={"error": {"message": "still loading"}})] * 1000)
    outcomes = scored(engine, deadline=1.5)
    assert {type(outcome) for outcome in outcomes} == {Failure}
    assert outcomes[0].code == "unavailable" and "still loading" in outcomes[0].message
    with pytest.raises(ScoreError, match=r"40 of 40 items have no reward; first item 1: unavailable: HTTP 503: still loading"):
        rewards(outcomes)


@pytest.mark.parametrize(("owner", "model"), [("sglang", ENCODER), ("polar-rm", None)])
def test_no_retry_comes_before_the_time_of_retry_after(owner, model):
    engine = reward_servers.Engine(owner, replies=[httpx.Response(503, headers={"Retry-After": "30"})])
    outcomes = scored(engine, model=model, deadline=20, items_per_request=64)
    assert {outcome.code for outcome in outcomes} == {"unavailable"} and "(1 attempts)" in outcomes[0].message


def test_proxies_of_the_environment_are_not_used(url, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with RewardClient(url, deadline=5) as client:
        assert rewards(client.score(ITEMS[:2])) == SCORES[:2]


def test_a_reply_that_trickles_in_gets_no_more_time():
    answers = []
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
    with answering(head, pause=0.05, endless=True) as (url, _):
        client = RewardClient(url, engine="polar", timeout=0.5, deadline=1.0)
        thread = threading.Thread(target=lambda: answers.extend(client.score(ITEMS[:2])), daemon=True)
        thread.start()
        thread.join(20)
    assert [outcome.code for outcome in answers] == ["unavailable"] * 2 and "no answer within" in answers[0].message


def test_an_attempt_that_hangs_is_followed_by_another():
    class Hanging(reward_servers.Engine):
        async def __call__(self, request):
            if request.url.path != "/v1/models" and not self.requests:
                self.requests.append(None)
                await asyncio.sleep(10)
                raise AssertionError("the client did not give up")
            return await super().__call__(request)

    assert rewards(scored(Hanging("sglang"), ITEMS[:2], timeout=0.5, deadline=20)) == SCORES[:2]


def test_a_server_that_is_absent_is_an_error_after_first_contact(caplog):
    """A1, H9: it used to take ten silent minutes."""
    with RewardClient("http://127.0.0.1:9", first_contact=2) as client:
        outcomes = client.score(ITEMS[:2])
        with pytest.raises(PolarError, match="no server answers at http://127.0.0.1:9: connection refused; is the reward server"):
            client.check()
    assert [outcome.code for outcome in outcomes] == ["unavailable"] * 2
    assert outcomes[0].message.startswith("no server answers at http://127.0.0.1:9: connection refused")
    assert caplog.messages[0].startswith("reward server http://127.0.0.1:9: connection refused; trying for")
    with RewardClient("http://no-such-host.invalid:1", first_contact=0.1) as client:
        assert "no such name" in client.score(ITEMS[:1])[0].message


def gone():
    error = httpx.ConnectError("All connection attempts failed")
    error.__cause__ = ConnectionRefusedError()
    return error


@pytest.mark.parametrize("named", [False, True])
def test_a_server_that_restarts_later_is_waited_for(named, caplog, monkeypatch):
    """A1: ``first_contact`` counts until a server has answered; then the deadline counts, and the log reports the outage."""
    monkeypatch.setattr(random, "uniform", lambda low, high: min(high, 0.01))  # between attempts
    engine = reward_servers.Engine("sglang", replies=[gone()] * 5)
    if named:  # for a named engine any answer is enough
        engine = reward_servers.Engine("nobody's", replies=[gone()] * 5)
        engine.scored = lambda path, body, scores: httpx.Response(200, json={"data": [{"probs": [s]} for s in scores]})
    options = {"engine": "vllm"} if named else {}
    assert rewards(scored(engine, ITEMS[:1], first_contact=0.0, **options)) == SCORES[:1]
    assert len(engine.requests) == 6
    assert len(caplog.messages) == 2  # at the beginning and the end of the outage; another would come after half a minute
    assert "rewards:1: connection refused; trying for 600 s more" in caplog.messages[0]
    assert "answers again" in caplog.messages[1]
    caplog.clear()
    monkeypatch.setattr("polar_rm.client.outages._REPORT_SECONDS", 0.0)
    scored(reward_servers.Engine("sglang", replies=[gone()] * 5), ITEMS[:1])
    assert len(caplog.messages) == 6


def test_a_last_attempt_without_time_does_not_hide_what_an_earlier_one_met(monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.001)
    engine = reward_servers.Engine("vllm", replies=[gone(), *(TimeoutError() for _ in range(5000))])
    [outcome] = scored(engine, ITEMS[:1], engine="vllm", first_contact=1.0, deadline=1.0)
    assert outcome.code == "unavailable"
    assert re.match(r"connection refused, then (no answer within|the deadline has passed)", outcome.message)


def test_a_wrong_server_is_reported_with_the_url():
    """H9: the message of a 404 did not name the URL."""
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        client = RewardClient(url, engine="lmdeploy")  # our server has LMDeploy's route, but not with this body
        assert rewards(client.score_ids([fakes.ids_of(ITEMS[0], ENCODER)])) == SCORES[:1]
        client.close()

    class Other(reward_servers.Engine):
        def reply(self, request):
            return httpx.Response(404, text="nginx")

    [outcome] = scored(Other("nginx"), ITEMS[:1])
    assert outcome.code == "refused" and outcome.message == "HTTP 404 from http://rewards:1/v1/models: nginx"


def test_a_single_item_that_meets_a_full_queue_is_sent_again():
    """cli-1: with many items the fault was hidden, because their halves were sent again as after a refusal."""
    engine = reward_servers.Engine("vllm", replies=[httpx.Response(429, json={"error": {"message": "full"}})] * 2)
    assert rewards(scored(engine, ITEMS[:1])) == SCORES[:1]
    assert [body for _, body in engine.requests] == [engine.requests[0][1]] * 3


def test_a_refusal_hits_only_the_bad_item():
    bad = fakes.ids_of(ITEMS[11], ENCODER)
    outcomes = scored(reward_servers.Engine("vllm", refuses=lambda ids: ids == bad))
    assert isinstance(outcomes[11], Failure) and outcomes[11].code == "refused" and "too long" in outcomes[11].message
    same = [i for i, item in enumerate(ITEMS) if fakes.ids_of(item, ENCODER) == bad]
    assert [outcome.reward for i, outcome in enumerate(outcomes) if i not in same] == [
        score for i, score in enumerate(SCORES) if i not in same
    ]


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_refusal_of_all_items_is_not_retried(status):
    engine = reward_servers.Engine("sglang", replies=[httpx.Response(status)] * 100)
    outcomes = scored(engine, items_per_request=64)
    assert {outcome.code for outcome in outcomes} == {"refused"} and len(engine.requests) == 1


@pytest.mark.parametrize(("status", "refuses"), [(401, True), (403, True), (404, False), (500, False)])
def test_a_named_engine_needs_no_list_of_models_but_a_key_that_is_accepted(status, refuses):
    class Closed(reward_servers.Engine):
        def reply(self, request):
            return httpx.Response(status) if request.url.path == "/v1/models" else super().reply(request)

    engine = Closed("sglang")
    outcomes = scored(engine, ITEMS[:2], engine="sglang")
    if refuses:
        assert {outcome.code for outcome in outcomes} == {"refused"} and not engine.requests
    else:
        assert rewards(outcomes) == SCORES[:2]


def test_items_that_cannot_be_encoded_fail_alone(url):
    items = [ITEMS[0], ScoreItem("p", None, "o"), ScoreItem("p", "r", "half \ud83d"), ITEMS[1]]
    with RewardClient(url) as client:
        answers = [scored(reward_servers.Engine("sglang"), items), client.score(items)]
    for first, no_reference, no_unicode, last in answers:
        assert [first.reward, last.reward] == SCORES[:2]
        assert no_reference.code == "invalid_item" and "reference" in no_reference.message
        assert no_unicode.code == "invalid_item" and "surrogate" in no_unicode.message


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"data": []}),
        httpx.Response(200, json={"data": [{"index": 0, "probs": ["x"]}]}),
        httpx.Response(200, json={"data": [{"index": 1, "probs": [0.5]}]}),
        httpx.Response(200, json={"data": [{"index": 0, "probs": []}]}),
        httpx.Response(200, json={"data": [{"index": 0}]}),
        httpx.Response(200, json=5),
        httpx.Response(200, json=[None]),
        httpx.Response(200, json={"data": [{"index": 0, "probs": [True]}]}),
        httpx.Response(200, json={"data": [{"index": 0, "probs": [10**400]}]}),
        httpx.Response(200, json={"data": [{"index": None, "probs": [1]}]}),
        httpx.Response(200, content=b"[" * 200_000),
        httpx.ByteStream(b"not gzip"),
    ],
)
def test_replies_of_another_shape_give_no_reward(reply):
    if isinstance(reply, httpx.ByteStream):  # a Response with its content would be decompressed here already
        reply = httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=reply)
    [outcome] = scored(reward_servers.Engine("vllm", replies=[reply]), ITEMS[:1])
    assert outcome.code == "bad_reply"


def test_rows_without_an_index_give_no_reward():
    reply = httpx.Response(200, json={"data": [{"index": None, "probs": [1]}] * 2})
    assert [outcome.code for outcome in scored(reward_servers.Engine("vllm", replies=[reply]), ITEMS[:2])] == ["bad_reply"] * 2


@pytest.mark.parametrize(
    ("reward", "code"), [("NaN", "non_finite"), ("1" * 400, "bad_reply"), ('"1"', "bad_reply"), ("true", "bad_reply")]
)
def test_replies_of_our_own_route_are_checked_too(reward, code):
    content = f'{{"results": [{{"outputs": [{{"reward": {reward}, "n_tokens": 3, "cut": {{}}}}]}}]}}'
    [outcome] = scored(reward_servers.Engine("polar-rm", replies=[httpx.Response(200, text=content)]), ITEMS[:1])
    assert outcome.code == code


def test_a_redirect_is_reported_as_one():
    engine = reward_servers.Engine("vllm", replies=[httpx.Response(307, headers={"Location": "https://other/"})])
    outcomes = scored(engine, ITEMS[:2])
    assert {outcome.code for outcome in outcomes} == {"bad_reply"} and len(engine.requests) == 1
    assert "HTTP 307: a redirect to https://other/" in outcomes[0].message


def test_scores_that_are_not_finite_give_no_reward():
    content = b'{"data": [{"index": 0, "probs": [NaN]}, {"index": 1, "probs": [0.5]}]}'
    items = [ScoreItem("p", "r", "a"), ScoreItem("p", "r", "b")]
    first, second = scored(reward_servers.Engine("vllm", replies=[httpx.Response(200, content=content)]), items)
    assert first.code == "non_finite" and second == Reward(0.5, len(fakes.ids_of(items[1], ENCODER)))


def test_a_wrong_key_is_not_retried():
    with fakes.running(fakes.make(encode=ENCODER, api_key="k")) as url:
        with RewardClient(url, api_key="other") as client:
            [outcome] = client.score(ITEMS[:1])
            assert outcome.code == "refused" and "401" in outcome.message
        with RewardClient(url, api_key="k") as client:
            assert rewards(client.score(ITEMS)) == SCORES


def test_a_keys_newline_is_stripped_and_a_key_that_no_header_can_hold_is_refused():
    sent = []

    class Keyed(reward_servers.Engine):
        def reply(self, request):
            sent.append(request.headers["authorization"])
            return super().reply(request)

    assert rewards(scored(Keyed("vllm"), ITEMS[:1], api_key="abc\n")) == SCORES[:1]
    assert set(sent) == {"Bearer abc"}
    for bad in ("sécret", "two\nlines", "a b", "\n"):
        with pytest.raises(PolarError, match="api_key: expected a key of printable ASCII") as error:
            RewardClient(URL, api_key=bad)
        assert bad not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_use_the_client():
    with (
        fakes.running(fakes.make(encode=ENCODER, api_key="k")) as url,
        RewardClient(url, model=ENCODER, api_key="k") as client,  # the child's client gets the same options
    ):
        assert rewards(client.score(ITEMS[:2])) == SCORES[:2]
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        child = context.Process(target=lambda: answers.put(rewards(client.score(ITEMS[2:4]))))
        child.start()
        try:
            assert answers.get(timeout=20) == SCORES[2:4]
        finally:
            child.kill()
        assert rewards(client.score(ITEMS[4:6])) == SCORES[4:6]


def test_requests_too_large_for_the_server_are_split():
    with fakes.running(fakes.make(encode=ENCODER, limits=Limits(items=3))) as url, RewardClient(url) as client:
        assert rewards(client.score(ITEMS)) == SCORES


def test_mistakes_in_the_set_up_raise():
    with pytest.raises(PolarError, match="not that of polar-rm, vLLM"):
        scored(reward_servers.Engine("llama.cpp"))
    with pytest.raises(PolarError, match="set model="):
        scored(reward_servers.Engine("vllm"), model=None)
    with pytest.raises(PolarError, match="unknown engine 'tgi'"):
        RewardClient(URL, engine="tgi")
    for bad in ("ftp://x", "http://", "", "http://http://127.0.0.1:30000", "http://127.0.0.1:30000/get_reward"):
        with pytest.raises(PolarError, match="not a server's address"):
            RewardClient(bad)


@pytest.mark.parametrize("server_type", ["sglang", "vllm", "lmdeploy"])
def test_the_drop_in_has_the_official_interface(checkpoint, server_type):
    folder, model = checkpoint
    data = [{"prompt": i.prompt, "reference": i.reference, "output": i.output, "wrapper": i.wrapper} for i in ITEMS]
    data[0] = {key: [{"role": "user", "content": data[0][key]}] for key in ("prompt", "reference", "output")}
    del data[1]["wrapper"]
    items = [ScoreItem(d["prompt"], d["reference"], d["output"], d.get("wrapper", "sft")) for d in data]
    expected = [scored.reward for scored in Scorer(model).score(items)]
    flavour = server_type.replace("sglang", "vllm")
    with fakes.running(fakes.make(Scorer(model).score_trees, model.encoder, flavour=flavour)) as url:
        client = RewardModelClient(str(folder), server_type=server_type, server_address=url.removeprefix("http://"))
        assert client(data) == pytest.approx(expected, abs=2e-5)
        encoded = client.encode(data)
        assert encoded[2].endswith("[UNUSED_TOKEN_130]") and encoded[2].count("<|reward|>") == 1
        assert getattr(client, f"{server_type}_request_reward")(encoded) == pytest.approx(expected, abs=2e-5)
        assert client.encode(data[2]) == encoded[2] and client.encode(encoded[:2]) == encoded[:2]
        with pytest.raises(PolarError, match="last token"):
            client(["no item"])
        with pytest.raises(PolarError, match="expected an item"):
            client([{"prompt": "p", "reference": "r"}])


def test_the_drop_ins_limits_are_the_checkpoints_unless_set(checkpoint):
    folder, _ = checkpoint
    item = {"prompt": "p", "reference": "r", "output": "bank river " * 60}
    lengths = [
        len(RewardModelClient(folder, **options).encode(item))
        for options in ({}, {"max_response_length": 20}, {"max_response_length": 20, "response_cut_side": "left"})
    ]
    assert lengths[0] > lengths[1]
    with pytest.raises(PolarError, match="server_type"):
        RewardModelClient(folder, server_type="tgi")


def test_the_drop_in_takes_an_address_with_a_scheme_and_refuses_nonsense(checkpoint):
    """H9."""
    folder, model = checkpoint
    item = {"prompt": "p", "reference": "r", "output": "o"}
    with fakes.running(fakes.make(Scorer(model).score_trees, model.encoder)) as url:
        for address in (url, f"{url}/", url.removeprefix("http://")):
            assert len(RewardModelClient(folder, server_address=address, timeout=30, deadline=60)([item])) == 1
    for bad in (
        "http://http://127.0.0.1:30000",
        "127.0.0.1:30000/get_reward",
        "http://h:1/v1",
        "h:port",
        "h",
        "http://h:99999",
        "",
    ):
        with pytest.raises(PolarError, match="not a server's address"):
            RewardModelClient(folder, server_address=bad)
    client = RewardModelClient(folder, server_address="127.0.0.1:9", deadline=0.2)
    with pytest.raises(ScoreError, match="connection refused"):
        client([item])


def test_the_drop_in_respects_timeout_and_deadline(checkpoint, caplog):
    folder, _ = checkpoint
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        client = RewardModelClient(folder, server_address=address, timeout=0.3, deadline=3)
        with pytest.raises(ScoreError, match="no answer within"):
            client([{"prompt": "p", "reference": "r", "output": "o"}])
    # The message of the first attempt: the last one only has the rest of the deadline.
    assert "no answer within 0.3 s" in caplog.messages[0]


def test_the_drop_in_raises_where_the_official_client_gives_none(checkpoint):
    folder, _ = checkpoint
    with fakes.running(fakes.make(encode=ENCODER, api_key="k")) as url:
        client = RewardModelClient(folder, server_address=url.removeprefix("http://"))
        with pytest.raises(ScoreError, match="refused"):
            client([{"prompt": "p", "reference": "r", "output": "o"}])


def test_the_client_imports_without_torch_and_transformers():
    # From version 18 on, pyarrow does not need numpy.
    numpy = '"numpy", ' if int(pyarrow.__version__.split(".")[0]) >= 18 else ""
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "fastapi", "uvicorn", {numpy}"prometheus_client"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import polar_rm.client, polar_rm.rewards.transforms
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

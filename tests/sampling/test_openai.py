import asyncio
import json
import threading
import time
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from support import stub

from polar_rm.errors import PolarError
from polar_rm.sampling.backends import openai
from polar_rm.sampling.backends.openai import OpenAIPolicy
from polar_rm.sampling.base import Machine, NoSample, PolicyDown, Request, Sample


def policy(server, **changes):
    values = {"name": "p", "family": "f", "kind": "chat", "model": "m", "base_url": server.url, "retries": 2, "timeout": 5}
    return OpenAIPolicy.model_validate(values | {"decoding": {"max_new_tokens": 7}} | changes)


def ask(served_policy, count=1, prompt="fox"):
    """Outcomes by sample_id."""
    outcomes = {}
    requests = [Request("p", f"{prompt}{i}", i, 1000 + i) for i in range(count)]
    served_policy.open(Machine()).run(
        requests, lambda request, outcome: outcomes.update({request.sample_id: outcome}), threading.Event()
    )
    return outcomes


def test_chat_and_base_requests_carry_the_decoding_and_their_own_seed(server):
    chat = policy(server, system="Be brief.", stop=["\n"], extra_body={"repetition_penalty": 1.0})
    assert ask(chat) == {0: Sample("fox0 0", "stop", 3)}
    [body] = server.bodies
    assert body == {
        "path": "/v1/chat/completions",
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "fox0"}],
        "n": 1,
        "max_tokens": 7,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 50,
        "seed": 1000,
        "stop": ["\n"],
        "repetition_penalty": 1.0,
    }
    base = policy(server, kind="base", template="Q: {prompt}\nA:", unsupported=["top_k", "seed"], decoding={"top_k": 0})
    ask(base)
    body = server.bodies[-1]
    assert (body["path"], body["prompt"]) == ("/v1/completions", "Q: fox0\nA:")
    assert not {"top_k", "seed", "messages"} & body.keys()


def test_every_sampling_field_can_be_left_out(server):
    """21: servers that refuse top_p beside temperature, or any limit under the old name."""
    fields = ["temperature", "top_p", "top_k", "seed", "stop", "n", "max_tokens"]
    ask(policy(server, unsupported=fields, stop=["\n"], decoding={"top_p": 1, "top_k": 0}))
    assert server.bodies[-1].keys() == {"path", "model", "messages"}
    for field in fields:
        ask(policy(server, unsupported=[field], stop=["\n"], decoding={"top_p": 1, "top_k": 0}))
        assert server.bodies[-1].keys() == {"path", "model", "messages", *fields} - {field}
    ask(policy(server, max_tokens_key="max_completion_tokens"))
    assert server.bodies[-1]["max_completion_tokens"] == 7 and "max_tokens" not in server.bodies[-1]
    ask(policy(server, max_tokens_key="max_completion_tokens", unsupported=["max_tokens"]))
    assert not {"max_tokens", "max_completion_tokens"} & server.bodies[-1].keys()


def reply(content):
    return 200, {}, json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}).encode()


def test_a_list_of_text_parts_is_one_text(server):
    """21."""
    server.respond = lambda *_: reply([{"type": "text", "text": "The sea"}, {"type": "text", "text": " is salty."}])
    assert ask(policy(server))[0] == Sample("The sea is salty.", "stop", None)
    for other in ([{"type": "image_url", "image_url": "x"}], [{"type": "text"}], ["text"], {"type": "text", "text": "x"}):
        server.respond = lambda *_, other=other: reply(other)
        assert ask(policy(server, retries=0))[0].kind == "garbled"


def test_text_of_a_plain_continuation_keeps_its_blanks_and_a_template_drops_them(server):
    server.respond = lambda body, _: stub.good(body, "  jumps ")
    assert ask(policy(server, kind="base"))[0].text == "  jumps "
    assert ask(policy(server, kind="base", template="Q: {prompt}"))[0].text == "jumps"


def test_the_key_comes_from_the_environment_and_appears_nowhere(server, monkeypatch):
    with pytest.raises(PolarError, match="variable POLAR_TEST_KEY is not set"):
        policy(server, api_key_env="POLAR_TEST_KEY").open(Machine())
    monkeypatch.setenv("POLAR_TEST_KEY", "sk-secret")
    keyed = policy(server, api_key_env="POLAR_TEST_KEY")
    ask(keyed)
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in keyed.model_dump_json()
    server.respond = lambda *_: stub.error(400, "bad key sk-secret in your request")
    assert ask(keyed)[0] == NoSample("refused", "HTTP 400: bad key *** in your request")
    server.respond = lambda *_: stub.error(401, "bad key sk-secret")
    with pytest.raises(PolicyDown, match=r"the key was refused \(HTTP 401: bad key \*\*\*\)"):
        ask(keyed)


@pytest.mark.parametrize("blank", ["\r", "\n", "\r\n", " "])
def test_blanks_around_the_key_are_no_part_of_it(server, monkeypatch, blank):
    monkeypatch.setenv("POLAR_TEST_KEY", f"sk-secret{blank}")
    assert isinstance(ask(policy(server, api_key_env="POLAR_TEST_KEY"))[0], Sample)
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize("key", ["sk-sécret", "sk-se cret", "sk-se\ncret"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(server, monkeypatch, key):
    monkeypatch.setenv("POLAR_TEST_KEY", key)
    with pytest.raises(PolarError, match="POLAR_TEST_KEY: expected a key of printable ASCII") as refused:
        policy(server, api_key_env="POLAR_TEST_KEY").open(Machine())
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize("status", [400, 401, 200])
def test_no_part_of_the_key_remains_where_a_message_is_cut(server, monkeypatch, status):
    monkeypatch.setenv("POLAR_TEST_KEY", "sk-secret")
    server.respond = lambda *_: (status, {}, b"x" * 195 + b" sk-secret")
    try:
        message = ask(policy(server, api_key_env="POLAR_TEST_KEY", retries=0))[0].message
    except PolicyDown as error:
        message = str(error)
    assert "sk-" not in message and "xxx ***" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"api_key_env": "sk-live-123"}, "NAME of an environment variable"),
        ({"base_url": "http://user:sk-live-123@host/v1"}, "must not hold credentials"),
        ({"base_url": "localhost:8000"}, "expected a URL such as http"),
        ({"base_url": "http://localhost:99999/v1"}, "Port out of range 0-65535"),
        ({"extra_body": {"min_p": 0.1, "temperature": 0.2, "seed": 1}}, "extra_body can't hold temperature, seed"),
        ({"extra_body": {"stop": ["x"]}}, "extra_body can't hold stop"),
        ({"extra_body": {"max_completion_tokens": 5}}, "extra_body can't hold max_completion_tokens"),
        ({"unsupported": ["top_k"]}, "set decoding.top_k: 0"),
        ({"unsupported": ["top_p"]}, "set decoding.top_p: 1, which"),
        ({"unsupported": ["temperature"], "decoding": {"temperature": 0.5}}, "set decoding.temperature: 1, which"),
    ],
)
def test_settings_that_are_refused(server, change, message):
    with pytest.raises(ValidationError, match=message):
        policy(server, **change)


def test_extra_body_may_hold_nothing_that_a_body_holds_anyway(server):
    for kind in ("chat", "base"):
        for name in policy(server, kind=kind, stop=["x"]).body(Request("p", "fox", 0, 1)):
            with pytest.raises(ValidationError, match=f"extra_body can't hold {name}:"):
                policy(server, extra_body={name: 1})


GOOD = stub.good({"prompt": "x"})[2]


@pytest.mark.parametrize(
    ("answer", "kind", "message", "asked"),
    [
        ((200, {"Content-Type": "text/html"}, b"<html>Login</html>"), "garbled", "no completion: <html>Login</html>", 3),
        ((200, {}, GOOD[: len(GOOD) // 2]), "garbled", "no completion: {", 3),
        ((200, {}, b""), "garbled", "an empty answer (no content type)", 3),
        ((200, {}, b"[]"), "garbled", "no completion", 3),
        ((200, {}, b"[" * 100_000), "garbled", "no completion", 3),
        ((500, {}, b"[" * 100_000), "server_error", "HTTP 500: [[[", 3),
        ((200, {}, b'{"choices": [{"text": 3}]}'), "garbled", "no completion", 3),
        ((200, {}, b'{"choices": [{"text": "\\ud83d"}]}'), "garbled", "no completion", 3),
        ((200, {"Content-Length": "9999", "Connection": "close"}, GOOD), "garbled", "broke off", 3),
        (None, "garbled", "broke off", 3),
        (stub.error(503, "starting"), "server_error", "HTTP 503: starting", 3),
        (stub.error(429, "slow down", Retry_After="0"), "rate_limited", "HTTP 429: slow down", 3),
        (stub.good({"prompt": "x"}, " \n"), "empty", "returned no text", 1),
        ((200, {}, b'{"choices": [{"text": null}]}'), "empty", "returned no text", 1),
        (stub.error(400, "This model's maximum context length is 8 tokens"), "too_long", "maximum context", 1),
        (stub.error(413, "big"), "too_long", "HTTP 413", 1),
        (stub.error(400, "content filter"), "refused", "HTTP 400: content filter", 1),
        ((302, {"Location": "https://elsewhere"}, b""), "refused", "HTTP 302 to https://elsewhere", 1),
    ],
)
def test_every_bad_answer_is_a_failure_with_its_reason(server, answer, kind, message, asked):
    server.respond = lambda *_: answer
    failure = ask(policy(server, kind="base"))[0]
    assert failure.kind == kind
    assert message in failure.message
    assert failure.attempts == len(server.bodies) == asked


@pytest.mark.parametrize("count", [-5, 10**30, True])
def test_a_count_of_tokens_that_can_not_be_is_unknown(server, count):
    content = {"choices": [{"text": "x", "finish_reason": "stop"}], "usage": {"completion_tokens": count}}
    server.respond = lambda *_: (200, {}, json.dumps(content).encode())
    assert ask(policy(server, kind="base"))[0] == Sample("x", "stop", None)


def test_failures_with_a_success_between_them_do_not_stop_the_policy(server):
    server.respond = lambda body, number: stub.good(body) if number % 3 == 0 else stub.error(500, "bug")
    assert len(ask(policy(server, concurrency=1, retries=0), 9)) == 9


def test_all_tokens_are_asked_for_as_servers_say_it(server):
    ask(policy(server, decoding={"top_k": 0}))
    assert server.bodies[0]["top_k"] == -1


def test_a_silent_server_is_a_timeout(server):
    server.respond = lambda body, _: time.sleep(0.5) or stub.good(body)
    assert ask(policy(server, timeout=0.1, retries=1))[0] == NoSample("timeout", "no answer within 0.1 s", 2)


def test_trouble_that_passes_is_no_trouble(server):
    answers = [stub.error(503, "starting"), stub.error(429, "slow", Retry_After="0.3"), (200, {}, b"<html>")]
    server.respond = lambda body, number: answers[number - 1] if number <= 3 else stub.good(body)
    assert isinstance(ask(policy(server, retries=3))[0], Sample)
    assert server.times[2] - server.times[1] >= 0.3  # Retry-After was honoured


@pytest.mark.parametrize(("status", "message"), [(404, "no such model or URL"), (403, "access was refused")])
def test_an_unknown_model_stops_the_policy_at_once(server, status, message):
    server.respond = lambda *_: stub.error(status, "The model `m` does not exist.")
    with pytest.raises(PolicyDown, match=f"model 'm': {message} .*does not exist"):
        ask(policy(server, concurrency=1), 20)
    assert len(server.bodies) == 1


def test_a_server_that_is_gone_stops_the_policy_after_three_requests():
    with stub.served() as gone:
        url = gone
    with pytest.raises(PolicyDown, match="no connection.*3 requests in a row failed"):
        ask(policy(url, concurrency=2), 20)


def test_a_server_that_is_not_there_at_the_start_is_told_within_seconds(monkeypatch):
    monkeypatch.setattr(openai, "START_PATIENCE_S", 0.3)
    monkeypatch.setattr(openai, "BACKOFF_S", 50.0)  # the pauses before the address answered are short
    with stub.served() as gone:
        url = gone
    with pytest.raises(PolicyDown, match="connection refused .no server has answered here"):
        ask(policy(url, concurrency=2, retries=6), 20)


def test_a_server_that_answered_once_keeps_the_patience_of_all_attempts(monkeypatch):
    monkeypatch.setattr(openai, "START_PATIENCE_S", 0.0)
    with stub.served() as gone:
        url = gone
    backend = policy(url, concurrency=1).open(Machine())
    backend.was_reached = True
    with pytest.raises(PolicyDown, match=r"no connection.*\(3 requests in a row failed\)"):
        backend.run([Request("p", "x", i, i) for i in range(9)], lambda *_: None, threading.Event())
    with stub.served() as served:
        backend = policy(served).open(Machine())
        backend.run([Request("p", "x", 1, 1)], lambda *_: None, threading.Event())
    assert backend.was_reached


def test_one_request_that_always_fails_does_not_stop_the_policy(server):
    server.respond = lambda body, _: stub.error(500, "bug") if "fox3" in json.dumps(body) else stub.good(body)
    outcomes = ask(policy(server, concurrency=2), 12)
    assert outcomes.pop(3).kind == "server_error"
    assert len(outcomes) == 11 and all(isinstance(outcome, Sample) for outcome in outcomes.values())


def test_connections_are_limited(server):
    server.respond = lambda body, _: time.sleep(0.03) or stub.good(body)
    ask(policy(server, concurrency=3), 12)
    assert server.max_in_progress == 3


@pytest.mark.parametrize(("per_minute", "gap"), [(1200, 0.05), (None, 0.0)])
def test_requests_are_spaced_evenly_and_a_pause_holds_all_of_them_back(monkeypatch, per_minute, gap):
    now, turns = [100.0], []

    async def sleep(seconds):
        now[0] += seconds

    async def workers():
        limiter = openai._RateLimiter(per_minute)

        async def worker():
            for _ in range(2):
                await limiter.acquire()
                turns.append(round(now[0] - 100, 6))

        await asyncio.gather(*(worker() for _ in range(4)))
        limiter.pause(0.6)
        await asyncio.gather(*(worker() for _ in range(2)))

    monkeypatch.setattr(openai, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(openai, "asyncio", SimpleNamespace(Lock=asyncio.Lock, sleep=sleep))
    asyncio.run(workers())
    resumed = 7 * gap + 0.6
    assert turns == pytest.approx([n * gap for n in range(8)] + [resumed + n * gap for n in range(4)])


def test_a_server_that_asks_to_wait_is_left_alone_by_all_workers(server):
    server.respond = lambda body, number: stub.error(429, "slow", Retry_After="0.6") if number == 1 else stub.good(body)
    outcomes = ask(policy(server, concurrency=8, requests_per_minute=600), 8)
    assert all(isinstance(outcome, Sample) for outcome in outcomes.values())
    assert server.times[1] - server.times[0] >= 0.6


def test_a_stop_ends_a_run_at_once(server):
    released, stop = threading.Event(), threading.Event()
    server.respond = lambda body, _: released.wait(60) and stub.good(body)
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    policy(server, concurrency=2, timeout=300).open(Machine()).run(
        [Request("p", "x", i, i) for i in range(50)], lambda *_: None, stop
    )
    released.set()
    assert time.monotonic() - began < 30 and len(server.bodies) <= 2  # it waited for no answer, and sent no further request

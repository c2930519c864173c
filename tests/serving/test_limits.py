"""Requests that exceed a limit, are malformed or lack the key get a status and a reason in JSON, never a hang or a score."""

import asyncio
import json
import logging
import socket
import threading
import time

import httpx
import pytest
from support import fakes

from polar_rm.common.http import is_loopback
from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem
from polar_rm.serving.address import api_key, bind
from polar_rm.serving.guard import Limits

ENCODER = fakes.encoder(max_length=400, max_response_length=100)
ROUTES = ["/classify", "/pooling", "/v1/embeddings", "/get_reward", "/v1/score"]


def ids(word="fox"):
    return fakes.ids_of(ScoreItem("p", "r", word), ENCODER)


def refused(reply, status, kind):
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert (error["code"], error["type"]) == (status, kind)
    assert error["message"]


def test_bodies_and_items_have_a_limit():
    with fakes.running(fakes.make(encode=ENCODER, limits=Limits(body_bytes=5000, items=3))) as url:
        refused(fakes.HTTP.post(f"{url}/classify", json={"text": ["x" * 6000]}), 413, "too_large")

        def stream():
            for _ in range(10):
                yield b" " * 1000

        refused(
            fakes.HTTP.post(f"{url}/classify", content=stream(), headers={"content-type": "application/json"}), 413, "too_large"
        )
        assert fakes.HTTP.post(f"{url}/classify", json={"input_ids": [ids()] * 3}).status_code == 200
        refused(fakes.HTTP.post(f"{url}/classify", json={"input_ids": [ids()] * 4}), 413, "too_large")
        item = {"prompt": "p", "reference": "r", "outputs": ["a", "b"]}
        refused(fakes.HTTP.post(f"{url}/v1/score", json={"items": [item, item]}), 413, "too_large")
        assert fakes.HTTP.post(f"{url}/v1/score", json={"items": [item, {}]}).status_code == 200
        refused(fakes.HTTP.post(f"{url}/v1/score", json={"items": [item, {}, {}]}), 413, "too_large")
        rewards = {"query": ["ab"] * 4, "prompts": ["a"] * 4, "labels": ["r"] * 4}
        refused(fakes.HTTP.post(f"{url}/get_reward", json=rewards), 413, "too_large")
        assert fakes.HTTP.post(f"{url}/get_reward", json={key: rows[:3] for key, rows in rewards.items()}).status_code == 200


def test_a_prompt_counts_for_each_of_its_outputs():
    item = {"prompt": "x" * 1000, "reference": "r" * 900, "outputs": ["a" * 50] * 3}
    messages = {**item, "prompt": [{"role": "user", "content": "x" * 1000}]}
    with fakes.running(fakes.make(encode=ENCODER, limits=Limits(body_bytes=4100))) as url:
        for body in (item, messages):
            assert fakes.HTTP.post(f"{url}/v1/score", json={"items": [body]}).status_code == 200
            refused(fakes.HTTP.post(f"{url}/v1/score", json={"items": [body, {**item, "prompt": "p"}]}), 413, "too_large")
            refused(fakes.HTTP.post(f"{url}/v1/score", json={"items": [{**body, "outputs": ["a"] * 4}]}), 413, "too_large")


def test_all_bodies_in_memory_have_a_limit_and_are_released():
    app = fakes.make(encode=ENCODER, limits=Limits(body_bytes=1000))
    head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"

    def held(n_bytes):
        until = time.monotonic() + 60
        while app._held_bytes != n_bytes:
            assert time.monotonic() < until
            time.sleep(0.01)

    with fakes.running(app) as url:
        host, port = url.removeprefix("http://").split(":")
        connections = [socket.create_connection((host, int(port)), timeout=20) for _ in range(8)]
        for connection in connections:
            connection.sendall(head + b" " * 999)
        held(8 * 999)
        body = {"input_ids": [ids()]}
        reply = fakes.HTTP.post(f"{url}/classify", json=body)
        refused(reply, 503, "unavailable")
        assert reply.headers["retry-after"]
        for connection in connections:
            connection.close()
        held(0)
        assert fakes.HTTP.post(f"{url}/classify", json=body).status_code == 200
        held(0)


def test_lists_and_objects_have_a_limit_and_brackets_in_texts_have_none():
    """F3: eight million lists of one number, 30 MB, stopped the server for minutes."""
    with fakes.running(fakes.make(encode=ENCODER, limits=Limits(items=10))) as url:
        limit = 64 * 10 + 10_000
        for body in ({"input": [[1]] * limit}, {"items": [{}] * limit}, {"labels": [{"a": []}] * (limit // 2)}):
            refused(fakes.HTTP.post(f"{url}/classify", json=body), 413, "too_large")
        text = '[{"\\"[' * limit
        item = {"prompt": text, "reference": "r", "outputs": [text]}
        assert fakes.HTTP.post(f"{url}/v1/score", json={"items": [item]}).status_code == 200
        reply = fakes.HTTP.post(f"{url}/classify", json={"input_ids": [1] * (1_100_000)})
        refused(reply, 400, "invalid_request")


def test_a_body_that_is_not_sent_as_json_is_refused():
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        reply = fakes.HTTP.post(f"{url}/classify", content=b'{"text": "x"}', headers={"Content-Type": "text/plain"})
        refused(reply, 400, "invalid_request")
        assert "application/json" in reply.json()["error"]["message"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_that_is_compressed_in_whatever_way_is_refused(coding):
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"input_ids": [ids()]}).encode()
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        reply = fakes.HTTP.post(f"{url}/classify", content=body, headers=headers | {"Content-Encoding": coding})
        refused(reply, 415, "invalid_request")
        assert coding in reply.json()["error"]["message"]
        plain = fakes.HTTP.post(f"{url}/classify", content=body, headers=headers | {"Content-Encoding": "Identity"})
        assert plain.status_code == 200


def test_an_answer_that_takes_too_long_is_503():
    gate = threading.Event()
    with fakes.running(fakes.make(fakes.FakeModel(gate=gate), ENCODER, limits=Limits(seconds=2))) as url:
        refused(fakes.HTTP.post(f"{url}/classify", json={"input_ids": [ids()]}, timeout=60), 503, "timeout")
        gate.set()


def test_a_full_queue_is_429():
    model = fakes.FakeModel(delay=0.5)
    app = fakes.make(model, ENCODER, batching={"max_waiting_tokens": 10})

    async def ask(url):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(client.post("/classify", json={"input_ids": [ids(word)]}) for word in fakes.WORDS * 3))

    with fakes.running(app) as url:
        replies = asyncio.run(ask(url))
    statuses = {reply.status_code for reply in replies}
    assert statuses == {200, 429}
    for reply in replies:
        if reply.status_code == 429:
            refused(reply, 429, "overloaded")
            assert reply.headers["retry-after"]


def waiting(url, count):
    """Wait until this many sequences are in the queue."""
    line = f"polar_waiting_sequences {float(count)}"
    until = time.monotonic() + 60
    while line not in fakes.HTTP.get(f"{url}/metrics", timeout=60).text.splitlines():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_client_that_hangs_up_leaves_the_queue():
    gate = threading.Event()
    model = fakes.FakeModel(gate=gate)
    with fakes.running(fakes.make(model, ENCODER)) as url:
        host, port = url.removeprefix("http://").split(":")
        bodies = [json.dumps({"input_ids": [ids(word)]}).encode() for word in fakes.WORDS[:4]]
        connections = []
        for count, body in enumerate(bodies):
            connection = socket.create_connection((host, int(port)))
            head = "POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            connections.append(connection)
            while not model.calls:
                time.sleep(0.02)
            waiting(url, count)  # the model is scoring the first one
        for connection in connections:
            connection.close()
        waiting(url, 0)
        gate.set()
        assert fakes.HTTP.post(f"{url}/classify", json={"input_ids": [ids("river")]}, timeout=60).status_code == 200
    assert sum(len(tree.branches) for trees in model.calls for tree in trees) == 2


def test_a_body_that_never_comes_is_408():
    with fakes.running(fakes.make(encode=ENCODER, limits=Limits(seconds=0.5))) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(
                b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_the_key():
    with fakes.running(fakes.make(encode=ENCODER, api_key="sécret")) as url:
        body = {"input_ids": [ids()]}
        wrong = ["Bearer wrong", "Bearer", "Basic c2VjcmV0", "Basic sécret".encode(), "sécret".encode()]
        for headers in ({}, *({"Authorization": value} for value in wrong)):
            for path in [*ROUTES, "/nowhere", "/health"]:
                refused(fakes.HTTP.post(url + path, json=body, headers=headers), 401, "authentication_error")
            for path in ("/metrics", "/v1/models"):
                refused(fakes.HTTP.get(url + path, headers=headers), 401, "authentication_error")
        for scheme in ("Bearer", "bearer", "BEARER"):
            good = {"Authorization": f"{scheme} sécret".encode()}
            assert fakes.HTTP.post(f"{url}/classify", json=body, headers=good).status_code == 200
        assert {fakes.HTTP.get(url + path).status_code for path in ("/", "/health", "/ready", "/openapi.json")} == {200}


def test_draining():
    app = fakes.make(encode=ENCODER)
    with fakes.running(app) as url:
        assert fakes.HTTP.get(f"{url}/ready").status_code == 200
        app.draining = True
        refused(fakes.HTTP.post(f"{url}/classify", json={"input_ids": [ids()]}), 503, "unavailable")
        refused(fakes.HTTP.get(f"{url}/ready"), 503, "unavailable")
        assert fakes.HTTP.get(f"{url}/health").status_code == 200


def test_logs_hold_no_texts_unless_asked(caplog):
    item = {"prompt": "a secret prompt", "reference": "r", "outputs": ["o"]}
    for log_texts in (False, True):
        caplog.clear()
        with caplog.at_level(logging.INFO, "polar_rm"), fakes.running(fakes.make(encode=ENCODER, log_texts=log_texts)) as url:
            reply = fakes.HTTP.post(f"{url}/v1/score", json={"items": [item]})
            fakes.HTTP.post(f"{url}/v1/score", json={"items": [{"prompt": "a secret prompt"}], "transform": "a secret"})
        fields = [record.fields for record in caplog.records if record.message == "request"]
        assert [row["status"] for row in fields] == [200, 400]
        assert (fields[0]["route"], fields[0]["items"]) == ("/v1/score", 1)
        assert fields[0]["request"] == reply.headers["x-request-id"]
        assert ("secret" in json.dumps(fields)) == log_texts


def test_metrics_count_requests_items_and_shared_tokens():
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        item = {"prompt": "the quick fox", "reference": "r", "outputs": ["a", "b", "c"]}
        fakes.HTTP.post(f"{url}/v1/score", json={"items": [item, {}]})
        fakes.HTTP.get(f"{url}/some/random/path")
        text = fakes.HTTP.get(f"{url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['polar_requests_total{route="/v1/score",status="200"}'] == "1.0"
    assert values['polar_items_total{outcome="ok"}'] == "3.0" and values['polar_items_total{outcome="invalid_item"}'] == "1.0"
    assert float(values["polar_computed_tokens_total"]) < float(values["polar_sequence_tokens_total"])
    assert values["polar_waiting_tokens"] == "0.0"
    assert "random" not in text


def test_other_machines_need_a_key(monkeypatch):
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5
    with pytest.raises(PolarError, match="lets other machines in"):
        api_key("0.0.0.0", None, allow_open=False)
    assert api_key("0.0.0.0", None, allow_open=True) is None
    monkeypatch.setenv("SOME_KEY", "k")
    assert api_key("0.0.0.0", "SOME_KEY", allow_open=False) == "k"
    monkeypatch.setenv("SOME_KEY", "")
    with pytest.raises(PolarError, match="SOME_KEY"):
        api_key("127.0.0.1", "SOME_KEY", allow_open=False)


def test_a_port_in_use_is_an_error():
    with bind("127.0.0.1", 0) as first, pytest.raises(PolarError, match="can't be bound"):
        bind("127.0.0.1", first.getsockname()[1])
    with pytest.raises(PolarError, match="can't be bound"):
        bind("no such host", 1)

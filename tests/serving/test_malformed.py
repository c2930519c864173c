"""Almost valid, huge and contradictory requests get a status below 500 and a reason in JSON, never a hang."""

import gzip
import json
import os
import random
import socket

import pytest
from support import fakes

from polar_rm.encoding.sequences import render
from polar_rm.records import ScoreItem
from polar_rm.scoring.scorer import Scorer

ROUTES = ["/classify", "/pooling", "/v1/embeddings", "/get_reward", "/v1/score"]
KINDS = 16
COUNT = int(os.environ.get("MALFORMED_REQUESTS", "600"))
ODD = [None, True, -1, 0, 1e308, 2**70, "", "\x00", [], {}, [[]], [{}], [[[1]]], {"a": {"a": {}}}, "\ud800", ["x", 1], [None]]


@pytest.fixture(scope="module")
def served(checkpoint):
    _, model = checkpoint
    with fakes.running(fakes.make(Scorer(model).score_trees, model.encoder)) as url:
        yield url.removeprefix("http://"), model.encoder


def good_bodies(encoder):
    ids = fakes.ids_of(ScoreItem("p", "r", "fox"), encoder)
    rendered = render(ids, encoder)
    return [
        {"text": [rendered]},
        {"input_ids": [ids]},
        {"input": [rendered], "use_activation": True},
        {"query": ["ab"], "prompts": ["a"], "labels": ["r"]},
        {"items": [{"prompt": "p", "reference": "r", "outputs": ["o"]}], "transform": "raw"},
    ]


def malformed(rng: random.Random, kind: int, good: list[dict]) -> tuple[bytes, dict[str, str]]:
    """A body of one of ``KINDS`` kinds, and the headers that differ from correct ones."""
    body = rng.choice(good)
    key = rng.choice(list(body))
    text = json.dumps(body).encode()
    match kind:
        case 0:
            body = {**body, key: rng.choice(ODD)}
        case 1:
            body = {rng.choice([*"abc", "\ud800", "\x00", "input", "text", "items", "labels"]): rng.choice(ODD), **body}
        case 2:
            body = rng.choice(ODD)
        case 3:
            return text[: rng.randrange(len(text))], {}
        case 4:
            changed = bytearray(text)
            for _ in range(rng.randint(1, 5)):
                changed[rng.randrange(len(text))] = rng.randrange(256)
            return bytes(changed), {}
        case 5:
            deep = [b"[" * 50_000, b'{"a":' * 20_000, b'{"input":' + b"[" * 50_000 + b"]" * 50_000 + b"}", b'{"labels":' * 900]
            return rng.choice(deep), {}
        case 6:
            number = rng.choice(["NaN", "-Infinity", "1e400", "-1", "9" * 5000, "1.5", str(2**31), "0.1e-400", "1" * 30])
            return text.replace(b'["', f'[{number}, "'.encode()).replace(b"[[", f"[[{number}, ".encode()), {}
        case 7:  # invalid ids, and ids of other tokens
            ids = [rng.choice([-1, -(2**40), 10**6, 2**31 - 1, 2**63, rng.randrange(400)]) for _ in range(rng.randint(0, 300))]
            body = {rng.choice(["input", "input_ids"]): rng.choice([ids, [ids], [ids, ids], [ids, "x"]])}
        case 8:
            return rng.choice(
                [b"\xff\xfe", b'{"text": ["\xc3\x28"]}', b'"\xed\xa0\x80"', text.decode().encode("utf-16"), b""]
            ), {}
        case 9:
            kind = rng.choice(["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"])
            return text, {"Content-Type": kind}
        case 10:  # a gzip bomb of 16 MiB, or no gzip at all
            compressed = rng.choice([gzip.compress(b" " * (16 << 20)), text])
            return compressed, {"Content-Encoding": rng.choice(["gzip", "deflate", "br", "zstd", "\xe9"])}
        case 11:  # the connection ends before the body
            return text, {"Content-Length": str(len(text) + rng.randint(1, 1000))}
        case 12:  # the rest of the body is no valid request
            return text, {"Content-Length": str(rng.randrange(len(text)))}
        case 13:
            return text, {"Content-Length": rng.choice(["-1", "x", "1e3", "", "99999999999999999999", "0x10"])}
        case 14:  # a key twice: the last value counts, as in other JSON parsers
            return text[:-1] + b"," + json.dumps({key: rng.choice(ODD)}).encode()[1:], {}
        case _:
            return b"%x\r\n%b\r\n0\r\n\r\n" % (rng.choice([len(text), 1, 0, 2**40]), text), {"Transfer-Encoding": "chunked"}
    return json.dumps(body).encode(), {}


def post(address: str, path: str, content: bytes, headers: dict[str, str], *, end: bool = False) -> tuple[int, bytes]:
    """(status, body) over a plain socket, because HTTP libraries would correct such requests. Status 0: the server hung up.
    end: close our side after sending."""
    host, port = address.split(":")
    headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
    if "Transfer-Encoding" in headers:
        del headers["Content-Length"]
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + "".join(
        f"{k}: {v}\r\n" for k, v in headers.items()
    )
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            connection.sendall(head.encode("latin-1") + b"\r\n" + content)
            if end:
                connection.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except (ConnectionResetError, BrokenPipeError):
            return 0, b""
    if not received:
        return 0, b""
    # A client that has closed its side ignores this interim response.
    head, _, body = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def rewards(served):
    address, _ = served
    item = {"prompt": "over", "reference": "the dog", "outputs": ["the fox", "a river"]}
    status, body = post(address, "/v1/score", json.dumps({"items": [item]}).encode(), {})
    assert status == 200
    return [row["reward"] for row in json.loads(body)["results"][0]["outputs"]]


def test_malformed_requests_get_a_reason_and_change_nothing(served):
    address, encoder = served
    rng = random.Random(0)
    before = rewards(served)
    good = good_bodies(encoder)
    statuses = []
    for number in range(COUNT):
        kind = number % KINDS
        content, headers = malformed(rng, kind, good)
        path = rng.choice(ROUTES)
        status, body = post(address, path, content, headers, end=kind in (11, 15))
        statuses.append(status)
        case = (kind, path, content[:200], headers, status, body[:300])
        # The server's HTTP library answers invalid HTTP itself, in plain text. An incomplete body needs no answer.
        if kind in (11, 15) and status in (0, 499):
            continue
        if kind in (12, 13, 15) and status == 400 and b"Invalid HTTP request" in body:
            continue
        assert 200 <= status < 500, case
        if status >= 400:
            error = json.loads(body)["error"]
            assert error["code"] == status and error["message"], case
            assert error["type"] in ("invalid_request", "invalid_item", "too_large"), case
    assert statuses.count(200) < COUNT / 4  # some odd bodies are valid
    assert rewards(served) == before


@pytest.mark.parametrize("text", ["a" * 300_000, "\n" * 300_000, "<|im_" * 50_000 + "end|>" * 50_000, "</s>" * 250_000])
def test_texts_of_megabytes_are_answered(served, text):
    address, _ = served
    bodies = {
        "/classify": {"text": text * 30},
        "/pooling": {"input": [text * 30]},
        "/v1/score": {"items": [{"prompt": "p", "reference": text, "outputs": ["o"]}]},
        "/get_reward": {"query": ["p" + text], "prompts": ["p"], "labels": ["r"]},
    }
    statuses = {path: post(address, path, json.dumps(body).encode(), {})[0] for path, body in bodies.items()}
    assert statuses == {"/classify": 400, "/pooling": 400, "/v1/score": 200, "/get_reward": 200}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body", [{"messages": [{"role": "user", "content": "x"}]}, {"prompt": "p", "responses": ["a"]}, {"item": []}, [1], {}]
)
def test_a_body_of_another_shape_gets_an_example_that_is_accepted(served, path, body):
    status, reply = post(served[0], path, json.dumps(body).encode(), {})
    message = json.loads(reply)["error"]["message"]
    assert status == 400 and "\n" not in message
    _, _, example = message.partition(f"; a body of {path} is, for example, ")
    status, reply = post(served[0], path, example.removesuffix("; /openapi.json describes all").encode(), {})
    assert status == 200, reply


@pytest.mark.parametrize("body", [{"text": 3}, {"items": 3}, {"items": [], "transform": "x"}])
def test_a_wrong_value_gets_no_example(served, body):
    status, reply = post(served[0], "/classify" if "text" in body else "/v1/score", json.dumps(body).encode(), {})
    assert status == 400 and b"for example" not in reply


def test_an_unknown_path_and_a_wrong_method_are_told_what_there_is(served):
    status, reply = post(served[0], "/v1/chat/completions", b"{}", {})
    message = json.loads(reply)["error"]["message"]
    assert status == 404
    for path in (*(f"POST {route}" for route in ROUTES), "GET / (a page for a browser)", "GET /health", "GET /openapi.json"):
        assert path in message
    with socket.create_connection(served[0].split(":"), timeout=60) as connection:
        connection.sendall(b"GET /v1/score HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        reply = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert b" 405 " in reply and b"use POST; a body of /v1/score is, for example, {" in reply

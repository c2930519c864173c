"""The HTTP client: addresses, keys, proxies, and every way in which a server fails to answer as a typed result."""

import asyncio
import contextlib
import gzip
import threading
import time

import pytest
from support.raw_server import answering

from polar_rm.common.http import NoReply, Reply, Transport, is_address, key_from_environment, server_url
from polar_rm.errors import PolarError
from polar_rm.rft.config import RewardConfig
from polar_rm.sampling.backends.openai import OpenAIPolicy
from polar_rm.sampling.base import Machine
from polar_rm.serving.address import api_key


def http(body, *headers, status="200 OK"):
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def send(url, method="POST", path="/x", body=None, until=None, **options):
    async def run():
        async with Transport(url, **options) as transport:
            return await transport.send(method, path, body, *([] if until is None else [until]))

    return asyncio.run(run())


def test_retry_after_may_be_a_date():
    response = Reply(429, {"retry-after": "Wed, 21 Oct 2065 07:28:00 GMT"}, b"")
    assert response.retry_after > 1e8
    assert Reply(429, {"retry-after": "soon"}, b"").retry_after is None
    for past in ("Wed, 21 Oct 2015 07:28:00 GMT", "-5"):
        assert Reply(429, {"retry-after": past}, b"").retry_after == 0.0


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_nobody_waits_for_ever(value):
    assert Reply(429, {"retry-after": value}, b"").retry_after is None


def test_error_messages_of_every_kind_of_server_are_read():
    for body in (b'{"error": {"message": "why"}}', b'{"error": "why"}', b'{"message": "why"}', b'{"detail": "why"}'):
        assert Reply(400, {}, body).message == "why"
    for content in (b"<html>", b"[1]", b"", b"{}", b"[" * 200_000):
        assert Reply(502, {}, content).message is None


def test_a_reply_that_trickles_in_gets_no_more_time():
    """B18: with a timeout for each read, a reply of one byte a minute never ends."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"
    with answering(head, pause=0.05, endless=True) as (url, _):
        assert send(url, timeout=0.5) == NoReply("timeout", "no answer within 0.5 s")
        assert send(url, until=time.monotonic() - 1).kind == "timeout"
        # The same holds for sampling's policy.
        values = {"name": "p", "family": "f", "kind": "base", "model": "m", "base_url": f"{url}/v1", "retries": 0, "timeout": 0.5}
        from polar_rm.sampling.base import Request

        outcomes = []
        policy = OpenAIPolicy.model_validate(values | {"decoding": {"max_new_tokens": 7}})
        policy.open(Machine()).run([Request("p", "x", 0, 0)], lambda _, outcome: outcomes.append(outcome), threading.Event())
        assert (outcomes[0].kind, outcomes[0].message) == ("timeout", "no answer within 0.5 s")


def test_the_size_of_replies_is_bounded_after_decompression():
    bomb = http(gzip.compress(b" " * (1 << 20)), "Content-Encoding: gzip")
    for content in (http(b" " * 5000), bomb):
        with answering(content) as (url, _):
            assert send(url, max_reply_bytes=4000) == NoReply("too_large", "the reply has more than 4,000 bytes")
    with answering(bomb) as (url, _):
        assert len(send(url).content) == 1 << 20


def test_every_failure_has_its_kind():
    assert send("http://127.0.0.1:9") == NoReply("absent", "connection refused")
    assert send("http://no-such-host.invalid:1").kind == "absent"
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf") as (url, _):
        assert send(url).kind == "broken"
    with answering(b"") as (url, _):
        assert send(url).kind == "broken"
    with answering(http(b"no gzip", "Content-Encoding: gzip")) as (url, _):
        assert send(url).kind == "unreadable"
    with answering(http(b"{}", status="503 Busy")) as (url, _):
        assert send(url).status == 503


def test_the_key_goes_to_the_server_and_into_no_message():
    moved = http(b"", "Location: http://127.0.0.1:9/?sk-secret", status="302 Found")
    with answering(moved) as (url, received):
        reply = send(url, api_key="sk-secret")
    assert b"Authorization: Bearer sk-secret\r\n" in received[0] and len(received) == 1
    assert reply.status == 302 and reply.headers["location"] == "http://127.0.0.1:9/?***"
    transport = Transport("http://127.0.0.1:9", api_key="sk-secret")
    assert transport.error_text(Reply(400, {}, b"x" * 195 + b" sk-secret")) == "x" * 195 + " ***"


def test_every_connection_is_kept_for_the_next_request():
    async def run():
        connections, together = [], asyncio.Barrier(4)

        async def answer(reader, writer):
            connections.append(writer)
            with contextlib.suppress(asyncio.IncompleteReadError):
                while await reader.readuntil(b"\r\n\r\n"):
                    await together.wait()  # all four requests have been sent
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Transport(url, max_connections=4) as transport:
            for _ in range(3):
                assert {reply.status for reply in await asyncio.gather(*(transport.send("GET", "/") for _ in range(4)))} == {200}
        server.close()
        return len(connections)

    assert asyncio.run(run()) == 4


def test_texts_with_half_characters_can_be_sent():
    with answering(http(b"{}")) as (url, received):
        send(url, body={"text": "\ud800 ü"})
    assert received[0].endswith('{"text": "\\ud800 ü"}'.encode()) and b"Content-Type: application/json\r\n" in received[0]


@pytest.fixture
def proxies(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://user:pass@127.0.0.1:9")


def test_a_proxy_is_used_only_where_it_may_be_and_messages_name_it(proxies, monkeypatch):
    """H26."""
    with answering(http(b"{}")) as (url, _):
        for address in (url, url.replace("127.0.0.1", "localhost")):
            for use_proxies in (True, False):
                assert send(address, proxies=use_proxies).status == 200
    reply = send("http://policies.example", proxies=True)
    assert reply == NoReply("absent", "connection refused through the proxy http://127.0.0.1:9 of the environment")
    assert "proxy" not in send("http://policies.invalid", proxies=False).message
    monkeypatch.setenv("no_proxy", "policies.invalid")
    assert "proxy" not in send("http://policies.invalid", proxies=True).message
    monkeypatch.setenv("http_proxy", "strange://127.0.0.1:9")
    with pytest.raises(PolarError, match="can't be requested through the proxy strange://127.0.0.1:9 of the environment"):
        send("http://policies.example", proxies=True)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:30000", "http://127.0.0.1:30000"),
        ("http://h:1/", "http://h:1"),
        (" https://h \n", "https://h"),
        ("[::1]:5", "http://[::1]:5"),
        ("http://[::1]:5/", "http://[::1]:5"),
        ("node-7:8000", "http://node-7:8000"),
    ],
)
def test_addresses(address, url):
    """H9."""
    assert server_url(address) == url and is_address(address.strip())


BAD = [
    "http://http://h:1",
    "h:1/get_reward",
    "http://h:1/v1",
    "h",
    "h:port",
    "http://h:99999",
    "ftp://h",
    "http://",
    "",
    "http://h ost",
]


@pytest.mark.parametrize("address", [*BAD, "http://h:1?x=1", "http://h:1#x", "http://h:0", "//h:1"])
def test_texts_that_are_not_addresses(address):
    with pytest.raises(PolarError, match="not a server's address.*expected http://HOST:PORT"):
        server_url(address)
    with pytest.raises(PolarError, match="credentials") as error:
        server_url("http://me:secret@h:1")
    assert "secret" not in str(error.value)
    assert server_url("http://h:1/v1/", path=True) == "http://h:1/v1"
    assert not is_address("runs/rm/model") and not is_address("C:\\models")


def readers():
    """Every function that reads a key's environment variable."""
    policy = {
        "name": "p",
        "family": "f",
        "kind": "base",
        "model": "m",
        "base_url": "http://127.0.0.1:9/v1",
        "api_key_env": "SOME_KEY",
    }
    return {
        "server": lambda: api_key("127.0.0.1", "SOME_KEY", allow_open=False),
        "rft": lambda: RewardConfig(source="http://127.0.0.1:9", api_key_env="SOME_KEY").open(),
        "sampling": lambda: OpenAIPolicy.model_validate(policy).open(Machine()),
        "parity": lambda: key_from_environment("SOME_KEY", "--api-key-env"),
    }


@pytest.mark.parametrize("reader", ["server", "rft", "sampling", "parity"])
def test_a_keys_variable_is_read_by_one_rule(reader, monkeypatch):
    """B17: four readers had four rules, and a variable that was set but empty sent requests without a key."""
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(PolarError, match="the environment variable SOME_KEY is not set"):
        readers()[reader]()
    for empty in ("", " ", "\n"):
        monkeypatch.setenv("SOME_KEY", empty)
        with pytest.raises(PolarError, match="SOME_KEY is set, but it is empty"):
            readers()[reader]()
    for bad in ("sk-sécret", "sk-se cret", "sk-se\ncret"):
        monkeypatch.setenv("SOME_KEY", bad)
        with pytest.raises(PolarError, match="SOME_KEY: expected a key of printable ASCII") as error:
            readers()[reader]()
        assert "sk-" not in str(error.value)
    monkeypatch.setenv("SOME_KEY", "k\r\n")
    assert key_from_environment("SOME_KEY", "x") == api_key("127.0.0.1", "SOME_KEY", allow_open=False) == "k"

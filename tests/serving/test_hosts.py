"""F14: no web page may reach a server without a key, under any name and with any kind of body."""

import asyncio

import pytest
from support import fakes

from polar_rm.serving.guard import _Body
from polar_rm.serving.hosts import Hosts

ENCODER = fakes.encoder()
BODY = {"items": [{"prompt": "over", "reference": "the dog", "outputs": ["fox"]}]}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def url():
    with fakes.running(fakes.make(encode=ENCODER)) as address:
        yield address


def status(url, headers, path="/v1/score"):
    if path == "/v1/score":
        return fakes.HTTP.post(url + path, json=BODY, headers=headers).status_code
    return fakes.HTTP.get(url + path, headers=headers).status_code


@pytest.mark.parametrize("path", ["/v1/score", "/v1/models", "/metrics", "/", "/health", "/openapi.json"])
def test_only_the_names_of_this_machine_are_answered_to(url, path):
    port = url.rpartition(":")[2]
    for host in ("localhost", "127.0.0.1", "[::1]", f"localhost:{port}", "LOCALHOST:1", f"[::1]:{port}"):
        assert status(url, {"Host": host}, path) == 200
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "10.0.0.1", "127.0.0.1.evil.example", "x"):
        assert status(url, {"Host": host}, path) == 403


def test_pages_of_another_origin_are_refused(url):
    host = url.partition("://")[2]
    assert status(url, {"Origin": url}) == 200
    assert status(url, {"Origin": url, "Sec-Fetch-Site": "same-origin"}) == 200
    for origin in ("http://evil.example", f"http://evil.example:{host.rpartition(':')[2]}", "null", "http://127.0.0.1:1"):
        assert status(url, {"Origin": origin}) == 403
    assert status(url, {"Sec-Fetch-Site": "cross-site"}) == 403
    assert status(url, {"Sec-Fetch-Site": "cross-site"}, "/metrics") == 403
    assert status(url, {"Sec-Fetch-Site": "cross-site"}, "/") == 200  # a link to our page


def test_with_a_key_any_name_is_answered_to():
    with fakes.running(fakes.make(encode=ENCODER, api_key="k")) as url:
        headers = {"Host": "rewards.example", "Origin": "https://rewards.example", "Authorization": "Bearer k"}
        assert status(url, headers) == 200
        assert status(url, {"Host": "rewards.example"}) == 401


def test_a_server_without_a_key_answers_to_the_names_that_it_is_given():
    with fakes.running(fakes.make(encode=ENCODER, hosts=Hosts("127.0.0.1", ("rewards.example",)))) as url:
        assert status(url, {"Host": "rewards.example"}) == 200 == status(url, {"Host": "localhost"})
        assert status(url, {"Host": "evil.example"}) == 403


def test_a_server_for_other_machines_answers_only_to_names_that_nobody_else_can_own():
    def answers(hosts, host):
        return hosts.refusal("/v1/score", {b"host": host.encode()}) is None

    for bound in ("0.0.0.0", "::"):
        everywhere = Hosts(bound, ("rewards.example",))
        assert all(
            answers(everywhere, host) for host in ("10.1.2.3:30000", "[fe80::1]:1", "trainer:30000", "rewards.example", "")
        )
        assert not any(answers(everywhere, host) for host in ("evil.example", "10.1.2.3.evil.example:30000", "a.rewards.example"))
    named = Hosts("node7.cluster")
    assert answers(named, "node7.cluster:30000") and answers(named, "localhost")
    assert not answers(named, "10.1.2.3:30000") and not answers(named, "trainer")


@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "text/json"])
def test_a_body_must_be_sent_as_json(url, kind):
    """The check does not depend on the framework: a page of another origin can send these types without a preflight request."""
    headers = {} if kind is None else {"Content-Type": kind}
    request = fakes.HTTP.build_request("POST", f"{url}/v1/score", content=b'{"items": []}', headers=headers)
    reply = fakes.HTTP.send(request)
    assert reply.status_code == 400 and "send JSON as application/json" in reply.json()["error"]["message"]
    for good in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        assert fakes.HTTP.post(f"{url}/v1/score", content=b'{"items": []}', headers={"Content-Type": good}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_load_balancers_may_send_head_requests(url, path):
    reply = fakes.HTTP.head(url + path)
    assert reply.status_code == 200 and reply.content == b""
    assert int(reply.headers["content-length"]) == len(fakes.HTTP.get(url + path).content)


def test_an_incomplete_body_is_refused():
    """gua-4: also if the received part is valid JSON."""
    messages = [
        {"type": "http.request", "body": b'{"items": []}', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive():
        return messages.pop(0)

    body = _Body(receive, 1000)
    reply = asyncio.run(body.read(lambda _: True))
    assert reply.status_code == 499 and body.content == b""

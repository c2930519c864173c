"""F3: what a body may cost the event loop before its items are scored; large ones leave gaps for small requests."""

from __future__ import annotations

import asyncio
import json
import random
import threading

import pytest
from support import fakes

from polar_rm.serving import app as app_module
from polar_rm.serving import bodies
from polar_rm.serving.bodies import LARGE_BODY, MAX_VALUES, Turns, count_json
from polar_rm.serving.guard import Limits

ENCODER = fakes.encoder(max_length=400, max_response_length=100)
JSON = {"content-type": "application/json"}


def drawn(rng, depth=0):
    """Any JSON value, with signs in its texts that count outside of texts."""
    kind = rng.random()
    if depth > 4 or kind < 0.3:
        return rng.choice([1, 2.5, True, None, 'a"\\,:[{', 'é"', "\\\\", "", '\\"'])
    if kind < 0.6:
        return [drawn(rng, depth + 1) for _ in range(rng.randint(0, 5))]
    return {rng.choice('abc"\\[,') + str(index): drawn(rng, depth + 1) for index in range(rng.randint(0, 5))}


def counted(value):
    """Separators (a colon counts four) and lists of a parsed value."""
    if not isinstance(value, list | dict):
        return 0, 0
    inner = list(value.values() if isinstance(value, dict) else value)
    parts = [counted(each) for each in inner]
    own = max(0, len(inner) - 1) + (4 * len(inner) if isinstance(value, dict) else 0)
    return own + sum(part[0] for part in parts), 1 + sum(part[1] for part in parts)


@pytest.mark.parametrize("piece", [1, 3, 7, 1 << 17])
def test_values_are_counted_as_the_parser_finds_them(monkeypatch, piece):
    monkeypatch.setattr(bodies, "_PIECE", piece)
    rng = random.Random(piece)
    for number in range(300):
        value = drawn(rng)
        separators, lists = counted(value)
        content = json.dumps(value, ensure_ascii=bool(number % 2), indent=[None, 2][number % 3 == 0]).encode()
        assert count_json(content, 10**9, 10**9) == (1 + separators + lists, lists), content


def test_counting_ends_beyond_a_limit_and_takes_any_bytes():
    assert count_json(b"[" * (1 << 20), 10**9, 10) == (1 + (1 << 17), 1 << 17)
    assert count_json(b"," * (1 << 20), 10, 10**9)[0] == 1 + (1 << 17)
    assert count_json(b"\\" * 99, 9, 9) == count_json(b"", 9, 9) == (1, 0)


def post(url, path, content):
    return fakes.HTTP.post(url + path, content=content, headers=JSON)


@pytest.fixture(scope="module")
def url():
    with fakes.running(fakes.make(encode=ENCODER, limits=Limits(items=10))) as address:
        yield address


@pytest.mark.parametrize(
    "content",
    [
        b'{"input":[' + b"1," * MAX_VALUES + b"1]}",
        b'{"input":[' + b'"a",' * MAX_VALUES + b'"a"]}',
        b'{"input":"a","x":{' + b",".join(b'"%d":1' % number for number in range(MAX_VALUES // 4)) + b"}}",
    ],
    ids=["numbers", "texts", "keys"],
)
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(url, monkeypatch, content):
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    reply = post(url, "/classify", content)
    monkeypatch.undo()
    assert reply.status_code == 413
    assert "more than 2,097,152 values in one body" in reply.json()["error"]["message"]


def test_texts_may_hold_any_signs_and_the_most_that_our_client_sends_is_taken(url):
    text = '[{,:\\"' * 50_000
    item = {"prompt": text, "reference": "r", "outputs": ["o"]}
    assert post(url, "/v1/score", json.dumps({"items": [item]}).encode()).status_code == 200
    longest = {"input_ids": [[5] * 16_384] * 64}
    reply = post(url, "/classify", json.dumps(longest).encode())
    assert "64 items in one request; the limit is 10" in reply.json()["error"]["message"]  # so its values were not too many


def test_json_in_another_encoding_is_not_counted_wrongly_but_refused(url):
    """Python's parser takes UTF-16, in which no quote would be found where it is."""
    reply = post(url, "/classify", json.dumps({"input": ["a"]}).encode("utf-16"))
    assert reply.status_code == 400
    assert "not JSON in UTF-8" in reply.json()["error"]["message"]


@pytest.mark.parametrize("item", ["1", "{}", '"a"', "[]", '{"prompt":1}'])
def test_items_are_counted_before_each_is_told_what_is_wrong_with_it(url, monkeypatch, item):
    """Two million numbers, 4 MB, took 14 s."""
    monkeypatch.setattr(app_module.polar, "explain", lambda *_: pytest.fail("an item was explained"))
    reply = post(url, "/v1/score", f'{{"items":[{",".join([item] * 11)}]}}'.encode())
    assert reply.status_code == 413
    assert "11 items in one request; the limit is 10" in reply.json()["error"]["message"]


@pytest.mark.parametrize("field", ["prompt", "outputs", "keys"])
def test_one_item_with_many_mistakes_tells_its_first(url, monkeypatch, field):
    many = 5000
    item = {"prompt": "p", "reference": "r", "outputs": ["o"]}
    if field == "keys":
        item |= {f"key{number}": 1 for number in range(many)}
    else:
        item[field] = [{}] * many
    told = []
    explain = app_module.polar.explain
    monkeypatch.setattr(app_module.polar, "explain", lambda errors: told.append(len(errors)) or explain(errors))
    [result] = post(url, "/v1/score", json.dumps({"items": [item]}).encode()).json()["results"]
    assert result["error"]["code"] == "invalid_item"
    assert told and told[0] < 10


@pytest.mark.parametrize("key", ["query", "prompts"])
def test_a_list_of_the_trainers_body_ends_at_its_first_mistake(url, monkeypatch, key):
    told = []
    explain = app_module.explain
    monkeypatch.setattr(app_module, "explain", lambda errors: told.append(len(errors)) or explain(errors))
    body = {"query": ["a"], "prompts": ["a"], "labels": ["a"]} | {key: [1] * 5000}
    assert post(url, "/get_reward", json.dumps(body).encode()).status_code == 400
    assert told == [1]


def test_outputs_are_counted_before_items_are_made_of_them(url, monkeypatch):
    monkeypatch.setattr(app_module.polar.ItemBody, "items", lambda _: pytest.fail("items were made"))
    item = {"prompt": "p", "reference": "r", "outputs": ["o"] * 11}
    assert post(url, "/v1/score", json.dumps({"items": [item]}).encode()).status_code == 413


def test_large_bodies_take_turns_and_leave_pauses(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bodies.time, "perf_counter", lambda: clock[0])

    async def run():
        turns, events, pauses = Turns(), [], []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_later", lambda delay, call: pauses.append((delay, call)))

        async def large(name, parse_s):
            async with turns.turn(LARGE_BODY + 1) as end:
                events.append(f"{name} begins")
                clock[0] += parse_s
                end()
                end()  # the end of its block ends no other's turn
                events.append(f"{name} parsed")

        first, second = asyncio.ensure_future(large("first", 2.0)), asyncio.ensure_future(large("second", 3.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        async with turns.turn(LARGE_BODY) as end:
            events.append("small")
            end()
        await first
        assert events == ["first begins", "first parsed", "small"]
        [(delay, release)] = pauses
        assert delay == 2.0
        release()
        await second
        assert events[3:] == ["second begins", "second parsed"]
        assert [delay for delay, _ in pauses] == [2.0, 3.0]

    asyncio.run(run())


def test_a_large_bodys_turn_is_over_when_it_is_parsed_and_not_when_it_is_scored():
    """Else a large request that waits for the model would keep the next one from being parsed."""
    padding = " " * (LARGE_BODY + 1)
    ids = fakes.ids_of(fakes.ScoreItem("p", "r", "o"), ENCODER)
    gate = threading.Event()
    model = fakes.FakeModel(gate=gate)
    body = f'{{"input_ids": [{ids}]{padding}}}'.encode()
    with fakes.running(fakes.make(model, ENCODER)) as url:
        replies = []
        threads = [threading.Thread(target=lambda: replies.append(post(url, "/classify", body).status_code)) for _ in range(2)]
        for thread in threads:
            thread.start()
        broken = post(url, "/classify", b'{"input_ids": [' + padding.encode())  # parsed behind both
        assert broken.status_code == 400
        assert replies == []
        gate.set()
        for thread in threads:
            thread.join(60)
    assert replies == [200, 200]

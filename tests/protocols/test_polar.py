"""Our own protocol."""

import json
import math
from typing import get_args

import pytest
from support import fakes
from support.scored_items import ENCODER, IDS, ITEMS, SCORES, TEXTS

from polar_rm.client.blocking import RewardClient
from polar_rm.encoding.texts import Note as TextNote
from polar_rm.protocols import polar
from polar_rm.protocols.base import BadReply
from polar_rm.records import ScoreItem
from polar_rm.rewards.outcomes import Note
from polar_rm.rewards.transforms import transform


def test_own_protocol(post):
    groups = [
        {
            "prompt": ITEMS[0].prompt,
            "reference": [{"role": "assistant", "content": "Beijing."}],
            "outputs": [i.output for i in ITEMS[:3]],
        },
        {"prompt": "over", "reference": "the dog", "outputs": ["the fox"], "wrapper": "pretrain"},
    ]
    reply = post("/v1/score", {"items": groups})
    rows = [row for result in reply["results"] for row in result["outputs"]]
    assert [row["reward"] for row in rows] == SCORES == [row["score"] for row in rows]
    assert [row["n_tokens"] for row in rows] == [len(ids) for ids in IDS]
    assert [row["index"] for row in rows] == [0, 1, 2, 0]
    for name in ("group_zscore", "whiten", "tanh"):
        reply = post("/v1/score", {"items": groups, "transform": name})
        scores = [[row["score"] for row in result["outputs"]] for result in reply["results"]]
        assert scores == transform(name, [SCORES[:3], SCORES[3:]])
    assert "calibration card" in post("/v1/score", {"items": groups, "transform": "percentile"}, 400)["error"]["message"]


def test_a_transform_that_is_refused_costs_no_work():
    model = fakes.FakeModel()
    with fakes.running(fakes.make(model, ENCODER)) as url:
        body = {"items": [{"prompt": "over", "reference": "the dog", "outputs": ["the fox"]}], "transform": "percentile"}
        assert fakes.HTTP.post(f"{url}/v1/score", json=body).status_code == 400
    assert not model.calls


def test_cuts_are_reported(post):
    item = {"prompt": "fox " * 100, "reference": "dog " * 100, "outputs": ["river", "bank " * 100]}
    short, long = post("/v1/score", {"items": [item]})["results"][0]["outputs"]
    assert short["cut"]["output"] == 0 and long["cut"]["output"] > 0
    assert all(row["cut"]["prompt"] > 0 and row["cut"]["reference"] > 0 and row["n_tokens"] <= 200 for row in (short, long))


def test_what_a_reader_should_know_is_noted(post):
    item = {"prompt": "fox", "reference": "dog", "outputs": ["river", "bank " * 100, "  ", "<think>on and on"]}
    rows = post("/v1/score", {"items": [item]})["results"][0]["outputs"]
    assert [row["notes"] for row in rows] == [[], ["truncated"], ["empty"], ["unfinished_thinking"]]


def test_notes_of_lengths_and_thinking_reach_the_client():
    """The same as of `Scorer`, by our own route, and of ids that are encoded by the client."""
    encode = fakes.encoder(max_length=200, max_response_length=60, thinking="strip")
    items = [
        ScoreItem("fox", "dog", "river"),
        ScoreItem("fox", "dog", "<think>a</think>river"),
        ScoreItem("fox " * 100, "d", "r"),
    ]
    longest = len(fakes.ids_of(items[2], encode))
    wanted = [(), ("thinking_stripped",), ("truncated", "beyond_positions")]
    with fakes.running(fakes.make(encode=encode, max_positions=longest - 1)) as url:
        with RewardClient(url) as client:
            assert [outcome.notes for outcome in client.score(items)] == wanted
        with RewardClient(url, model=encode, engine="vllm") as client:  # whose positions it does not know
            assert [outcome.notes for outcome in client.score(items)] == [(), ("thinking_stripped",), ("truncated",)]
    with fakes.running(fakes.make(encode=encode, max_positions=longest)) as url, RewardClient(url) as client:
        assert client.score(items)[2].notes == ("truncated",)


def test_a_reply_of_an_earlier_server_has_no_notes_and_odd_ones_are_no_reply():
    body = polar.request_for_items([ScoreItem("p", "r", "o")])
    row = {"index": 0, "reward": 1.5, "score": 1.5, "n_tokens": 3, "cut": {"prompt": 0, "reference": 0, "output": 0}}
    read = [polar.read_outcomes(body, {"results": [{"outputs": [row | more]}]}) for more in ({}, {"notes": ["empty"]})]
    assert [outcome.notes for [outcome] in read] == [(), ("empty",)]
    for notes in ("empty", [1], None, {"empty": 1}):
        with pytest.raises(BadReply):
            polar.read_outcomes(body, {"results": [{"outputs": [row | {"notes": notes}]}]})


def test_the_document_names_all_notes():
    schema = fakes.make(encode=ENCODER).app.openapi()["components"]["schemas"]["ScoredOutput"]
    assert set(schema["properties"]["notes"]["items"]["enum"]) == set(get_args(Note)) >= set(get_args(TextNote))
    assert "notes" in schema["required"]


def test_one_bad_item_fails_alone(post):
    good = {"prompt": "over", "reference": "the dog", "outputs": ["the fox"], "wrapper": "pretrain"}
    bad = [
        {"prompt": "p"},
        {**good, "outputs": []},
        {**good, "output": "x"},
        {**good, "reference": None},
        5,
        {**good, "prompt": []},
    ]
    reply = post("/v1/score", {"items": [good, *bad, good]})
    first, *failed, last = reply["results"]
    assert first["outputs"][0]["reward"] == last["outputs"][0]["reward"] == SCORES[3]
    assert [row["error"]["code"] for row in failed] == ["invalid_item"] * len(bad)
    assert "reference" in failed[0]["error"]["message"] and "output" in failed[2]["error"]["message"]


def test_failures_are_typed():
    model = fakes.FakeModel(fail=lambda ids: 1 / (len(ids) - len(IDS[1])))
    with fakes.running(fakes.make(model, ENCODER)) as url:
        items = [{"prompt": i.prompt, "reference": i.reference, "outputs": [i.output], "wrapper": i.wrapper} for i in ITEMS[1::2]]
        failed, good = fakes.HTTP.post(f"{url}/v1/score", json={"items": items}).json()["results"]
        assert failed["outputs"][0]["error"]["code"] == "model_error" and good["outputs"][0]["reward"] == SCORES[3]
        reply = fakes.HTTP.post(f"{url}/classify", json={"text": TEXTS[:2]})
        assert reply.status_code == 500 and reply.json()["error"]["type"] == "model_error"
    with fakes.running(fakes.make(lambda trees: [[math.nan] * len(tree.branches) for tree in trees], ENCODER)) as url:
        reply = fakes.HTTP.post(f"{url}/classify", json={"text": TEXTS[:1]})
        assert reply.status_code == 500 and reply.json()["error"]["type"] == "non_finite"


def test_texts_with_half_characters_fail_alone(url):
    headers = {"content-type": "application/json"}
    body = json.dumps(
        {"items": [{"prompt": "over", "reference": "the dog", "outputs": ["\ud800", "the fox"], "wrapper": "pretrain"}]}
    )
    reply = fakes.HTTP.post(f"{url}/v1/score", content=body, headers=headers)
    bad, good = reply.json()["results"][0]["outputs"]
    assert bad["error"]["code"] == "invalid_item" and good["reward"] == SCORES[3]
    reply = fakes.HTTP.post(f"{url}/classify", content='{"text": ["\\ud800"]}', headers=headers)
    assert reply.status_code == 400


GOOD = {"prompt": "over", "reference": "the dog", "outputs": ["the fox"], "wrapper": "pretrain"}


@pytest.mark.parametrize("length", [1, 100, 4_000, 30_000, 300_000])
def test_half_a_character_in_a_text_of_any_length_fails_alone(url, length):
    """B3: long texts gave a TypeError, and status 500 for the other items too."""
    bad = [{**GOOD, field: "x" * length + "\ud800"} for field in ("prompt", "reference")]
    bad.append({**GOOD, "outputs": ["\ud800" + "x" * length]})
    body = json.dumps({"items": [GOOD, *bad, GOOD]})
    reply = fakes.HTTP.post(f"{url}/v1/score", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 200, reply.text
    rows = [result["outputs"][0] for result in reply.json()["results"]]
    assert rows[0]["reward"] == rows[-1]["reward"] == SCORES[3]
    assert [row["error"]["code"] for row in rows[1:-1]] == ["invalid_item"] * 3
    assert all("surrogate" in row["error"]["message"] for row in rows[1:-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": [{"role": "user"}]}, "prompt.0.content: Field required"),
        ({"prompt": [{"content": "x"}]}, "prompt.0.role: Field required"),
        ({"prompt": [{"role": "user", "content": 5}]}, "prompt.0.content: expected a string or a list, not a number"),
        ({"prompt": 5}, "prompt: expected a string or a list, not a number"),
        ({"reference": None}, "reference: expected a string or a list, not null"),
        ({"outputs": ["x", {"role": "assistant"}]}, "outputs.1: expected a string or a list, not an object"),
        ({"outputs": ["x", ["y"]]}, "outputs.1.0: Input should be a valid dictionary or object to extract fields from"),
        ({"outputs": "x"}, "outputs: Input should be a valid list"),
        ({"prompt": 5, "reference": 5}, "prompt: expected a string or a list, not a number (and 1 more)"),
        ({"str": 5}, "str: Extra inputs are not permitted"),
        ({"my key": 5}, "my key: Extra inputs are not permitted"),
        ({"reference": ["4", "four"]}, "reference: a list of texts; did you mean references: [...]?"),
        ({"refrences": ["4"]}, "refrences: unknown key; did you mean references: [...]?"),
    ],
)
def test_the_reason_is_that_of_the_type_which_was_meant(post, changes, message):
    """H18: it was always the error of the union's first type: "prompt.str: Input should be a valid string"."""
    [result] = post("/v1/score", {"items": [{**GOOD, **changes}]})["results"]
    assert result["error"] == {"code": "invalid_item", "message": message}


def test_an_unknown_key_near_a_missing_one_is_told_with_the_form_of_the_value(post):
    """Rows of files have `output`, and items of the route have `outputs`: it was "outputs: Field required (and 1 more)"."""
    meant = {"output": "outputs: [...]", "refrence": "reference", "wraper": "wrapper"}
    items = [{"prompt": "over", "reference": "the dog", "output": "the fox"}]
    items += [{"prompt": "over", "refrence": "the dog", "outputs": ["the fox"]}, {**GOOD, "wraper": "sft"}]
    items[2].pop("wrapper")
    messages = [result["error"]["message"] for result in post("/v1/score", {"items": items})["results"]]
    assert messages == [f"{key}: unknown key; did you mean {name}?" for key, name in meant.items()]


def test_parts_of_a_message_are_one_text_and_other_parts_are_refused(post):
    """H18, 23: content parts and null content."""
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "fox"}]
    messages = {**GOOD, "outputs": [[{"role": "assistant", "content": content}] for content in ("the fox", parts)]}
    first, second = post("/v1/score", {"items": [messages]})["results"][0]["outputs"]
    assert first["reward"] == second["reward"] == SCORES[3]
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    bad = {**GOOD, "outputs": [[{"role": "assistant", "content": content}] for content in (image, None)]}
    rows = post("/v1/score", {"items": [bad]})["results"][0]["outputs"]
    assert [row["error"]["code"] for row in rows] == ["invalid_item"] * 2
    assert "image_url" in rows[0]["error"]["message"]


def test_characters_of_messages_count_in_all_scored_keys():
    call = {"function": {"name": "f", "arguments": "x" * 10}}
    message = {"role": "assistant", "content": [{"type": "text", "text": "y" * 20}], "tool_calls": [call], "note": "z" * 99}
    assert 30 <= polar.text_length([message]) < 60
    assert polar.text_length(("ab", [{"role": "user", "content": "cd"}], None)) == 4
    [group] = polar.request_for_items([ScoreItem([message], "r", "o")])["items"]
    assert group["prompt"] == [{key: message[key] for key in ("role", "content", "tool_calls")}]


def test_an_output_that_repeats_the_prompt_fails_alone(post):
    """H4: the message names the field and the remedy; the other output is scored."""
    user = {"role": "user", "content": "over"}
    outputs = [[user, {"role": "assistant", "content": "the fox"}], "the fox"]
    [item] = post("/v1/score", {"items": [{"prompt": "over", "reference": "the dog", "outputs": outputs}]})["results"]
    bad, good = item["outputs"]
    assert bad["error"]["code"] == "invalid_item"
    assert "field 'output': expected the answer alone, but it begins with the prompt" in bad["error"]["message"]
    assert isinstance(good["reward"], float)

"""Every protocol over a real socket, against what its clients send and read."""

import base64
import json
import math
import struct
import threading

import pytest
from support import fakes, tiny

from polar_rm.encoding.sequences import render
from polar_rm.protocols import wire
from polar_rm.records import ScoreItem
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.transforms import transform
from polar_rm.scoring.scorer import Scorer
from polar_rm.serving.batching import Batcher

ENCODER = fakes.encoder(max_length=200, max_response_length=60)
ITEMS = [ScoreItem("What is the capital?", "Beijing.", output) for output in ("Beijing", "Shanghai is larger.", "")]
ITEMS += [ScoreItem("over", "the dog", "the fox", "pretrain")]
IDS = [fakes.ids_of(item, ENCODER) for item in ITEMS]
TEXTS = [render(ids, ENCODER) for ids in IDS]
SCORES = [fakes.fake_score(ids) for ids in IDS]


def official_request(server_type, address, texts):
    """The three request methods of the official client: what they post and how they read the reply."""
    if server_type == "sglang":
        reply = fakes.HTTP.post(f"http://{address}/classify", json={"model": "POLAR-7B", "text": texts}, timeout=30).json()
        return [row["embedding"][0] for row in reply]
    reply = fakes.HTTP.post(f"http://{address}/pooling", json={"input": texts}, timeout=30).json()
    if server_type == "vllm":
        return [row["data"][-1][0] for row in reply["data"]]
    return [row["data"] for row in reply["data"]]


@pytest.fixture(scope="module")
def url():
    with fakes.running(fakes.make(encode=ENCODER)) as address:
        yield address


@pytest.fixture
def post(url):
    def send(path, body, status=200):
        reply = fakes.HTTP.post(url + path, json=body, timeout=60)
        assert reply.status_code == status, reply.text
        return reply.json()

    return send


@pytest.mark.parametrize("server_type", ["sglang", "vllm"])
def test_official_client_in_the_default_flavour(url, server_type):
    assert official_request(server_type, url.removeprefix("http://"), TEXTS) == SCORES


def test_official_client_of_lmdeploy_and_the_third_flavour():
    with fakes.running(fakes.make(encode=ENCODER, flavour="lmdeploy")) as url:
        assert official_request("lmdeploy", url.removeprefix("http://"), TEXTS) == SCORES
    with fakes.running(fakes.make(encode=ENCODER, flavour="vllm-classify")) as url:
        reply = fakes.HTTP.post(f"{url}/pooling", json={"input": TEXTS}).json()
        assert [row["data"] for row in reply["data"]] == [[score] for score in SCORES]


@pytest.mark.parametrize("server_type", ["sglang", "vllm", "lmdeploy"])
def test_official_client_gets_the_scorers_rewards(tmp_path, server_type):
    model = tiny.reward_model(tmp_path)
    scorer = Scorer(model)
    texts = [render(fakes.ids_of(item, model.encoder), model.encoder) for item in ITEMS]
    with fakes.running(fakes.make(scorer.score_trees, model.encoder, flavour=server_type.replace("sglang", "vllm"))) as url:
        got = official_request(server_type, url.removeprefix("http://"), texts)
    assert got == pytest.approx([scored.reward for scored in scorer.score(ITEMS)], abs=2e-5)


def test_sglang_ids_and_single_inputs(post):
    rows = post("/classify", {"input_ids": IDS, "model": "any", "rid": "x"})
    assert [row["embedding"] for row in rows] == [[score] for score in SCORES]
    assert [row["meta_info"]["prompt_tokens"] for row in rows] == [len(ids) for ids in IDS]
    assert post("/classify", {"text": TEXTS[0]})["embedding"] == [SCORES[0]]
    assert post("/classify", {"input_ids": IDS[1]})["embedding"] == [SCORES[1]]


@pytest.mark.parametrize(("value", "expected"), [(TEXTS, SCORES), (IDS, SCORES), (TEXTS[0], SCORES[:1]), (IDS[0], SCORES[:1])])
def test_vllm_takes_texts_and_ids_alone_or_in_lists(post, value, expected):
    reply = post("/classify", {"model": "rm", "input": value})
    assert [row["probs"] for row in reply["data"]] == [[score] for score in expected]
    assert [row["index"] for row in reply["data"]] == list(range(len(expected)))
    assert reply["usage"]["prompt_tokens"] == sum(map(len, IDS[: len(expected)]))


def test_a_sigmoid_only_on_request(post):
    for path, key in (("/classify", "probs"), ("/pooling", "data")):
        [row] = post(path, {"input": [TEXTS[0]], "use_activation": True})["data"]
        value = row[key][0] if key == "probs" else row[key][0][0]
        assert value == pytest.approx(1 / (1 + math.exp(-SCORES[0])))
        assert post(path, {"input": [TEXTS[0]], "use_activation": None})["data"] == post(path, {"input": [TEXTS[0]]})["data"]
    assert wire.sigmoid(-1000.0) == 0.0 and wire.sigmoid(1000.0) == 1.0


def test_special_tokens_can_be_left_to_the_sender(post):
    [row] = post("/classify", {"input": ["<s>" + TEXTS[0]], "add_special_tokens": False})["data"]
    assert row["probs"] == [SCORES[0]]


def test_embeddings_as_openai_asks_for_them(post):
    reply = post("/v1/embeddings", {"model": "rm", "input": TEXTS})
    assert [row["embedding"] for row in reply["data"]] == [[score] for score in SCORES]
    reply = post("/v1/embeddings", {"model": "rm", "input": IDS, "encoding_format": "base64"})
    values = [struct.unpack("<f", base64.b64decode(row["embedding"]))[0] for row in reply["data"]]
    assert values == pytest.approx(SCORES)


def test_openrlhf(post):
    prompt = "<|im_start|>user\nWhat is the capital?<|im_end|>\n<|im_start|>assistant\n"
    raw = "What is the capital?"
    body = {
        "query": [prompt + "Shanghai.<|im_end|>\n", prompt + "fox</s>", prompt],
        "prompts": [prompt] * 3,
        "labels": ["Beijing.", {"reference": [{"role": "assistant", "content": "Beijing."}], "prompt": raw}, {"reference": ""}],
    }
    reply = post("/get_reward", body)
    items = [ScoreItem(prompt, "Beijing.", "Shanghai."), ScoreItem(raw, "Beijing.", "fox"), ScoreItem(prompt, "", "")]
    assert reply["rewards"] == [fakes.fake_score(fakes.ids_of(item, ENCODER)) for item in items]
    assert all(0 <= score <= 1 for score in reply["scores"])
    assert {len(values) for values in reply["extra_logs"].values()} == {3}


def test_openrlhf_answers_are_found_behind_prompts_that_decode_otherwise():
    prompt = "<s>user: Isn't it , well ?</s>\n<|assistant|>\nReasoning is off. "
    item = wire.openrlhf_item(prompt.replace(" ,", ",") + "the answer<eos>", prompt, "ref")
    assert item == ScoreItem(prompt, "ref", "the answer")


def test_openrlhf_answers_are_found_behind_prompts_that_lost_their_beginning():
    turns = "".join(f"<|im_start|>user\nAnd how high is mount {i}?<|im_end|>\n<|im_start|>assistant\n" for i in range(9))
    item = wire.openrlhf_item(turns[-300:] + "Quite high.<|im_end|>", turns, "ref")
    assert item == ScoreItem(turns, "ref", "Quite high.")


def test_openrlhf_answers_are_cut_off_in_the_encoders_thread(post, monkeypatch):
    threads = set()
    item_of = wire.openrlhf_item

    def watched(*row):
        threads.add(threading.current_thread().name)
        return item_of(*row)

    monkeypatch.setattr(wire, "openrlhf_item", watched)
    post("/get_reward", {"query": ["ab"], "prompts": ["a"], "labels": ["r"]})
    assert threads == {"encoder_0"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"query": [""], "prompts": ["b"], "labels": ["r"]}, "does not begin with its prompt"),
        ({"query": ["a"], "prompts": ["b"], "labels": ["r"]}, "does not begin with its prompt"),
        ({"query": ["a"], "prompts": ["a"], "labels": [None]}, "label"),
        ({"query": ["a"], "prompts": ["a"], "labels": [""]}, "label_key"),
        ({"query": ["a"], "prompts": ["a"], "labels": [" \n"]}, "label_key"),
        ({"query": ["a"], "prompts": ["a"], "labels": [{"reference": " "}]}, "label_key"),
        ({"query": ["a"], "prompts": ["a"], "labels": [[{"role": "assistant", "content": ""}]]}, "label_key"),
        ({"query": ["a"], "prompts": ["a"], "labels": [{"answer": "r"}]}, "label"),
        ({"query": ["a", "b"], "prompts": ["a"], "labels": ["r"]}, "one length"),
    ],
)
def test_openrlhf_never_gets_a_made_up_reward(post, body, reason):
    assert reason in post("/get_reward", body, 400)["error"]["message"]


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
        got = [[row["score"] for row in result["outputs"]] for result in reply["results"]]
        assert got == transform(name, [SCORES[:3], SCORES[3:]])
    assert "calibration card" in post("/v1/score", {"items": groups, "transform": "percentile"}, 400)["error"]["message"]


def test_percentiles_with_a_card():
    app = fakes.make(encode=ENCODER)
    card = Calibration.from_rewards([*SCORES, -1000.0, 1000.0])
    from polar_rm.serving.app import create_app
    from polar_rm.serving.service import Service

    app = create_app(Service("rm", ENCODER, Batcher(fakes.FakeModel()), card))
    row = {"query": ["overthe fox"], "prompts": ["over"], "labels": ["the dog"]}
    with fakes.running(app) as url:
        body = {"items": [{"prompt": "over", "reference": "the dog", "outputs": ["the fox"], "wrapper": "pretrain"}]}
        reply = fakes.HTTP.post(f"{url}/v1/score", json={**body, "transform": "percentile"}).json()
        assert reply["results"][0]["outputs"][0]["score"] == card.percentile(SCORES[3])
        assert "percentile" in fakes.HTTP.get(f"{url}/v1/models").json()["data"][0]["transforms"]
        reply = fakes.HTTP.post(f"{url}/get_reward", json=row).json()
        assert reply["scores"] == [card.percentile(reply["rewards"][0])] != [wire.sigmoid(reply["rewards"][0])]


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


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/classify", {"text": ["not rendered"]}, "item 0: the last token must be"),
        ("/classify", {"text": [TEXTS[0], TEXTS[0] + "more"]}, "item 1: the last token"),
        ("/classify", {"text": TEXTS, "input_ids": IDS}, "exactly one"),
        ("/classify", {"input_ids": [[1, 2.5]]}, "integer"),
        ("/classify", {"input_ids": [IDS[0], [10**9]]}, "vocabulary"),
        ("/classify", {"input_ids": [IDS[0][:-1]]}, "last token"),
        ("/classify", {"input_ids": [[5] * 500]}, "max_length 200"),
        ("/classify", {"text": []}, "empty"),
        ("/classify", {"messages": [{"role": "user", "content": "x"}]}, "input: Field required"),
        ("/pooling", {"input": TEXTS, "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ("/pooling", {"input": {}}, "input"),
        ("/v1/score", {"items": [], "transfrom": "raw"}, "transfrom"),
        ("/v1/score", {"items": [], "transform": "zscore"}, "transform"),
        ("/v1/score", {}, "items"),
    ],
)
def test_bad_bodies_get_a_reason_without_the_users_text(post, path, body, reason):
    message = post(path, body, 400)["error"]["message"]
    assert reason in message
    assert "capital" not in message


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


def test_the_document_describes_every_route_with_a_working_example(url, post):
    document = fakes.HTTP.get(f"{url}/openapi.json").json()
    posts = {path: row["post"] for path, row in document["paths"].items() if "post" in row}
    assert set(posts) == {"/classify", "/pooling", "/v1/embeddings", "/get_reward", "/v1/score"}
    for path, operation in posts.items():
        assert {"200", "4XX", "5XX"} == set(operation["responses"])
        for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
            post(path, example["value"])

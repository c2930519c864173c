"""The engines' protocols over a real socket, compared with what their clients send and read."""

import base64
import math
import struct

import pytest
from pydantic import TypeAdapter
from support import fakes, tiny
from support.scored_items import ENCODER, IDS, ITEMS, SCORES, TEXTS

from polar_rm.encoding.sequences import render
from polar_rm.protocols import PROTOCOLS, BadReply, InputProtocol, lmdeploy, openrlhf
from polar_rm.protocols.base import sigmoid
from polar_rm.records import ScoreItem
from polar_rm.scoring.scorer import Scorer


def official_request(server_type, address, texts):
    """The three request methods of the official client: the bodies that they post, and how they read the reply."""
    if server_type == "sglang":
        reply = fakes.HTTP.post(f"http://{address}/classify", json={"model": "POLAR-7B", "text": texts}, timeout=30).json()
        return [row["embedding"][0] for row in reply]
    reply = fakes.HTTP.post(f"http://{address}/pooling", json={"input": texts}, timeout=30).json()
    if server_type == "vllm":
        return [row["data"][-1][0] for row in reply["data"]]
    return [row["data"] for row in reply["data"]]


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
        scores = official_request(server_type, url.removeprefix("http://"), texts)
    assert scores == pytest.approx([scored.reward for scored in scorer.score(ITEMS)], abs=2e-5)


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
    assert sigmoid(-1000.0) == 0.0 and sigmoid(1000.0) == 1.0


def test_special_tokens_can_be_left_to_the_sender(post):
    """The server adds no BOS: with the sender's BOS the text is the item, without it another sequence."""
    ids = IDS[0]
    for text, expected in (("<s>" + TEXTS[0], ids), (TEXTS[0], ids[1:])):
        for path, key in (("/classify", "probs"), ("/pooling", "data")):
            [row] = post(path, {"input": [text], "add_special_tokens": False})["data"]
            score = row[key][0] if key == "probs" else row[key][0][0]
            assert score == fakes.fake_score(expected)
    assert ids[1:] != ids and fakes.fake_score(ids[1:]) != SCORES[0]


def test_embeddings_as_openai_asks_for_them(post):
    reply = post("/v1/embeddings", {"model": "rm", "input": TEXTS})
    assert [row["embedding"] for row in reply["data"]] == [[score] for score in SCORES]
    reply = post("/v1/embeddings", {"model": "rm", "input": IDS, "encoding_format": "base64"})
    values = [struct.unpack("<f", base64.b64decode(row["embedding"]))[0] for row in reply["data"]]
    assert values == pytest.approx(SCORES)


@pytest.mark.parametrize("use_activation", [True, False, None])
def test_pooling_in_base64_is_the_score_that_was_asked_for(post, use_activation):
    body = {"input": IDS, "encoding_format": "base64", "use_activation": use_activation}
    values = [struct.unpack("<f", base64.b64decode(row["data"]))[0] for row in post("/pooling", body)["data"]]
    assert values == pytest.approx([1 / (1 + math.exp(-score)) for score in SCORES] if use_activation else SCORES)


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
    assert "capital" not in message.partition("; a body of ")[0]  # behind it is an example of ours


def test_the_document_describes_every_route_with_a_working_example(url, post):
    document = fakes.HTTP.get(f"{url}/openapi.json").json()
    posts = {path: row["post"] for path, row in document["paths"].items() if "post" in row}
    assert set(posts) == {"/classify", "/pooling", "/v1/embeddings", "/get_reward", "/v1/score"}
    for path, operation in posts.items():
        assert {"200", "4XX", "5XX"} == set(operation["responses"])
        for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
            post(path, example["value"])


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: f"{protocol.name}")
def test_each_protocol_reads_what_it_answers(url, protocol):
    """One table: the server accepts what ``build_request`` builds, and ``read_reply`` finds the rewards in its reply."""
    items = ITEMS[:3]
    flavour = "lmdeploy" if protocol is lmdeploy.POOLING else "vllm"
    with fakes.running(fakes.make(encode=ENCODER, flavour=flavour)) as address:
        for values in [IDS[:3], TEXTS[:3]] if isinstance(protocol, InputProtocol) else [items]:
            body = protocol.build_request("rm", values)
            protocol.request.model_validate(body)
            reply = fakes.HTTP.post(address + protocol.path, json=body)
            assert reply.status_code == 200, reply.text
            assert protocol.read_reply(reply.json(), 3) == SCORES[:3]
            TypeAdapter(protocol.reply).validate_json(reply.content)
            for other in (1, 4):
                with pytest.raises(BadReply):
                    protocol.read_reply(reply.json(), other)
        for bad in (None, 5, [], {}, {"data": 5}, {"data": [None] * 3}, {"rewards": "abc"}, {"results": [[]]}, [[1.0]] * 3):
            with pytest.raises(BadReply):
                protocol.read_reply(bad, 3)


def test_a_request_that_a_protocol_cannot_carry_is_none():
    continued = ScoreItem("over", "the dog", "the fox", "pretrain")
    assert openrlhf.GET_REWARD.build_request("rm", [continued]) is None


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A model whose checkpoint cleans up spaces, as official ones do."""
    settings = tiny.EncoderSettings(max_length=400, max_response_length=100, clean_up=True)
    return tiny.reward_model(tmp_path_factory.mktemp("rm"), settings=settings)


SPACED = [
    ("if ( !( a .b ) ) , so ?", "from 'react' , don 't"),
    ("Isn't it ?", "we 've met , haven 't we ?"),
    ("a . b", " ' x ' ! "),
]


@pytest.mark.parametrize("server_type", ["sglang", "vllm", "lmdeploy"])
def test_texts_of_the_official_client_get_the_scores_of_their_items(converted, server_type):
    """C1: the client's fast tokenizer keeps spaces that the checkpoint removes; ten of 25 items of code got other scores."""
    scorer = Scorer(converted)
    items = [ScoreItem(prompt, reference, "x , y") for prompt, reference in SPACED]
    texts = [f"{item.prompt}\n{item.reference}<|reward|>{item.prompt}\n{item.output}[UNUSED_TOKEN_130]" for item in items]
    assert all(
        render(fakes.ids_of(item, converted.encoder), converted.encoder) != text for item, text in zip(items, texts, strict=True)
    )
    with fakes.running(fakes.make(scorer.score_trees, converted.encoder, flavour=server_type.replace("sglang", "vllm"))) as url:
        scores = official_request(server_type, url.removeprefix("http://"), texts)
    assert scores == pytest.approx([scored.reward for scored in scorer.score(items)], abs=2e-5)

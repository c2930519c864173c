"""A reward after every turn, over ``/v1/score`` and by the clients."""

import asyncio
import json

import pytest
from support import fakes, reward_servers, tiny

from polar_rm.client.asynchronous import AsyncRewardClient
from polar_rm.client.blocking import RewardClient
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.records import ScoreItem
from polar_rm.rewards.outcomes import Failure
from polar_rm.scoring.scorer import Scorer
from polar_rm.serving.guard import Limits

ENCODER = fakes.encoder(max_length=300, max_response_length=100)


def said(*texts):
    """Messages of assistant and user in turn."""
    return [{"role": ("assistant", "user")[i % 2], "content": text} for i, text in enumerate(texts)]


TALK = said("the quick fox", "and the dog?", "a lazy dog by the river", "why?", "it's 12,345.6 metres high, isn't it?")
SILENT = [{"role": "user", "content": "x"}]
ITEMS = [
    ScoreItem("what jumps?", said("the fox"), TALK),
    ScoreItem("p", "r", "the fox"),
    ScoreItem("p", "r", SILENT),
    ScoreItem("what jumps?", said("the fox"), TALK[:4]),
    ScoreItem("p", ("r", "s"), "a"),
    ScoreItem("p", "", TALK),
]
ENDS = [[1, 3, 5], [1], None, [1, 3], None, [1, 3, 5]]
ALONE = [
    item.output if isinstance(item.output, str) else item.output[:end]
    for item, ends in zip(ITEMS, ENDS, strict=True)
    for end in ends or ()
]


def items_alone():
    """Every turn as an item of its own."""
    texts = iter(ALONE)
    return [
        [ScoreItem(item.prompt, item.reference, next(texts)) for _ in ends]
        for item, ends in zip(ITEMS, ENDS, strict=True)
        if ends
    ]


def checked(found, scores):
    """Failures are where they belong; the scores of the others are compared."""
    assert [None if isinstance(each, Failure) else [turn.message for turn in each] for each in found] == ENDS
    good = [each for each in found if not isinstance(each, Failure)]
    for turns, expected in zip(good, scores, strict=True):
        assert [turn.reward.reward for turn in turns] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert found[2].code == found[4].code == "invalid_item"
    assert "expected a message of the assistant" in found[2].message and "one reference" in found[4].message


@pytest.mark.parametrize("template", ["polar", "polar-chat"])
def test_turns_over_http_equal_separate_scoring(template, tmp_path):
    settings = EncoderSettings(max_length=300, max_response_length=60, template=template)
    model = tiny.reward_model(tmp_path, settings=settings)
    scorer = Scorer(model)
    scores = [[each.reward for each in scorer.score(group)] for group in items_alone()]
    calls = []
    app = fakes.make(lambda trees: calls.append(trees) or Scorer(model).score_trees(trees), model.encoder)
    with fakes.running(app) as url, RewardClient(url) as client:
        found = client.score_turns(ITEMS)
        checked(found, scores)
        whole = client.score([ITEMS[0]])
    assert found[0][-1].reward.reward == pytest.approx(whole[0].reward, rel=1e-5, abs=1e-5)
    assert found[0][-1].reward.n_tokens == whole[0].n_tokens and found[0][0].reward.n_tokens < whole[0].n_tokens
    [tree] = [tree for trees in calls for tree in trees if len(tree.shared) == 3 and tree.prefix[0] == calls[0][0].prefix[0]][:1]
    assert tree.n_tokens < sum(tree.length(i) for i in range(3)) / 1.5, "what turns have in common is computed once"


@pytest.mark.parametrize("owner", ["sglang", "vllm", "lmdeploy"])
def test_to_other_engines_each_turn_goes_as_an_item(owner):
    engine = reward_servers.Engine(owner)

    async def run():
        options = {"model": ENCODER, "items_per_request": 3, "transport": engine.transport}
        async with AsyncRewardClient("http://rewards:1", **options) as client:
            return await client.score_turns(ITEMS)

    checked(asyncio.run(run()), [[fakes.fake_score(fakes.ids_of(item, ENCODER)) for item in group] for group in items_alone()])


def post(url, status, item=None, **body):
    item = item or {"prompt": "what jumps?", "reference": "fox", "outputs": [TALK, "fox", SILENT]}
    reply = fakes.HTTP.post(f"{url}/v1/score", json={"items": [item], "each_turn": True, **body})
    assert reply.status_code == status, reply.text
    return reply.json()


def test_each_output_has_turns_or_a_typed_error():
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        talk, text, silent = post(url, 200)["results"][0]["outputs"]
        assert [turn["message"] for turn in talk["turns"]] == [1, 3, 5] and [turn["message"] for turn in text["turns"]] == [1]
        assert set(talk["turns"][0]) == {"message", "reward", "n_tokens", "cut", "notes"}
        assert talk["reward"] == talk["score"] == talk["turns"][-1]["reward"]
        assert silent["error"]["code"] == "invalid_item" and "the assistant" in silent["error"]["message"]
        several = {"prompt": "p", "references": ["r", "s"], "outputs": ["a", "b"]}
        outputs = post(url, 200, several)["results"][0]["outputs"]
        assert [row["error"]["code"] for row in outputs] == ["invalid_item"] * 2 and "one reference" in outputs[0]["error"][
            "message"
        ]
        for option in ({"transform": "anchored"}, {"combine": "best"}, {"anchor": True}, {"transform": "tanh"}):
            assert "raw rewards only" in post(url, 400, **option)["error"]["message"]
        assert "turns" not in post(url, 200, each_turn=False)["results"][0]["outputs"][0]
        document = fakes.HTTP.get(f"{url}/openapi.json").json()["components"]["schemas"]
        assert "each_turn" in json.dumps(document["ScoreRequest"]) and "turns" in document["ScoredOutput"]["properties"]


def test_a_turn_without_a_score_fails_its_output_alone():
    bad = fakes.ids_of(ScoreItem("what jumps?", "fox", TALK[:3]), ENCODER)

    def fail(ids):
        if ids == bad:
            raise RuntimeError("no")

    with fakes.running(fakes.make(fakes.FakeModel(fail=fail), ENCODER)) as url:
        talk, text, _ = post(url, 200)["results"][0]["outputs"]
    assert talk["error"]["code"] == "model_error" and talk["error"]["message"].startswith("turn 1: ")
    assert "reward" in text


def test_turns_count_against_the_limits_of_a_request():
    talk = said(*["a fox"] * 9)
    item = {"prompt": "p" * 50, "reference": "r", "outputs": [talk]}
    with fakes.running(fakes.make(encode=ENCODER, limits=Limits(items=4))) as url:
        assert "5 items in one request; the limit is 4" in post(url, 413, item)["error"]["message"]
        with RewardClient(url) as client:
            first, second = client.score_turns([ScoreItem("p", "r", talk), ScoreItem("p", "r", talk[:3])])
        assert first.code == "refused" and "5 items" in first.message and len(second) == 2
    with fakes.running(fakes.make(encode=ENCODER, limits=Limits(body_bytes=400))) as url:
        message = post(url, 413, {**item, "outputs": [said(*["a"] * 15)]})["error"]["message"]
    assert "characters in one request" in message or "bytes" in message

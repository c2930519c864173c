"""References scored as candidates, over ``/v1/score``: what is given, what it costs, and who has to ask for it."""

import asyncio
import math
import shutil

import numpy as np
import pytest
import torch
from support import fakes

from polar_rm.encoding.sequences import TokenSequence
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import ScoreItem
from polar_rm.rewards.calibration import Calibration, Distribution
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.uncertainty import UNCERTAINTY, Uncertainty
from polar_rm.scoring.scorer import Scorer
from polar_rm.serving import launch
from polar_rm.serving.app import create_app
from polar_rm.serving.batching import Batcher
from polar_rm.serving.config import ServeConfig
from polar_rm.serving.guard import Limits
from polar_rm.serving.service import Service

ENCODER = fakes.encoder(max_length=200, max_response_length=60)
PROMPT, REFERENCE, OUTPUTS = "over", "the dog", ["the fox", "the dog", "bank"]
ITEM = {"prompt": PROMPT, "reference": REFERENCE, "outputs": OUTPUTS}
CARD = Calibration.from_rewards(
    [-300.0, 300.0], anchored=Distribution.from_rewards([-5.0, 0.0]), temperature=50.0, n_pairs=9, n_prompts=3, ece_after=0.02
)
FACTOR = np.array([[1.0, 0.0], [2.0, 3.0]], np.float32)


def features(ids):
    return np.array([len(ids), ids[-2]], np.float32)


class MeasuredModel(fakes.FakeModel):
    """Also counts the calls that ask for features."""

    measured = 0

    def measure(self, trees):
        self.measured += 1
        sequences = [[tree.sequence(i) for i in range(len(tree.branches))] for tree in trees]
        return [
            [(score, features(ids)) for score, ids in zip(*pair, strict=True)]
            for pair in zip(self(trees), sequences, strict=True)
        ]


def app(model, scale, **options):
    return fakes.make(model, ENCODER, scale=scale, **options)


def ids(output):
    return fakes.ids_of(ScoreItem(PROMPT, REFERENCE, output), ENCODER)


SCORES = [fakes.fake_score(ids(output)) for output in OUTPUTS]
ANCHORED = [score - SCORES[1] for score in SCORES]
PROBABILITIES = [1 / (1 + math.exp(-value / 50)) for value in ANCHORED]
DEVIATIONS = [float(np.linalg.norm(FACTOR @ (features(ids(output)) - features(ids(REFERENCE))))) for output in OUTPUTS]


def rows(url, status=200, **body):
    reply = fakes.HTTP.post(f"{url}/v1/score", json={"items": [ITEM], **body})
    assert reply.status_code == status, reply.text
    return reply.json()["results"][0]["outputs"] if status == 200 else reply.json()["error"]["message"]


def test_a_calibrated_model_gives_anchor_probability_and_deviation_to_who_asks():
    model = MeasuredModel()
    with fakes.running(app(model, Scale(CARD, Uncertainty(FACTOR, 1.0)))) as url:
        plain = rows(url)
        assert [set(row) for row in plain] == [{"index", "reward", "score", "n_tokens", "cut", "notes"}] * 3
        assert (len(model.calls), model.measured, len(model.calls[0][0].branches)) == (1, 0, 3)
        for name, scores in (("raw", SCORES), ("anchored", ANCHORED), ("probability", PROBABILITIES)):
            found = rows(url, transform=name, anchor=name == "raw")
            assert [row["reward"] for row in found] == SCORES
            assert [row["score"] for row in found] == pytest.approx(scores)
            assert [row["anchor"] for row in found] == [SCORES[1]] * 3
            assert [row["probability"] for row in found] == pytest.approx(PROBABILITIES)
            assert [row["deviation"] for row in found] == pytest.approx(DEVIATIONS)
            assert found[1]["probability"] == 0.5 and found[1]["deviation"] == 0.0
        # The reference joins the tree of its outputs, and nobody else's.
        assert model.measured == 3 and all(len(trees) == 1 for trees in model.calls)
        zscores = rows(url, transform="group_zscore", anchor=True)
        assert sum(row["score"] for row in zscores) == pytest.approx(0) and zscores[0]["anchor"] == SCORES[1]


def test_a_model_without_a_card_gives_anchors_alone():
    model = fakes.FakeModel()
    with fakes.running(app(model, Scale())) as url:
        found = rows(url, transform="anchored")
        assert [row["score"] for row in found] == ANCHORED
        assert [set(row) - {"index", "reward", "score", "n_tokens", "cut", "notes"} for row in found] == [{"anchor"}] * 3
        calls = len(model.calls)
        assert "'probability' needs a calibration card" in rows(url, 400, transform="probability")
        assert len(model.calls) == calls


def test_the_model_card_tells_transforms_and_calibration():
    old = Calibration.from_rewards([1.0, 2.0])
    for card, transforms in (
        (None, ["raw", "group_zscore", "whiten", "tanh", "anchored"]),
        (old, ["raw", "group_zscore", "whiten", "tanh", "percentile", "anchored"]),
        (CARD, ["raw", "group_zscore", "whiten", "tanh", "percentile", "anchored", "probability"]),
    ):
        with fakes.running(app(fakes.FakeModel(), Scale(card))) as url:
            [found] = fakes.HTTP.get(f"{url}/v1/models").json()["data"]
            assert found["transforms"] == transforms
            assert (Calibration.from_json(found["calibration"]) if card else found.get("calibration")) == card


def test_an_item_with_an_empty_reference_fails_alone():
    with fakes.running(app(MeasuredModel(), Scale(CARD, Uncertainty(FACTOR, 1.0)))) as url:
        body = {"items": [{**ITEM, "reference": ""}, ITEM, {"prompt": 5}], "transform": "probability"}
        empty, good, bad = fakes.HTTP.post(f"{url}/v1/score", json=body).json()["results"]
        assert {row["error"]["code"] for row in empty["outputs"]} == {"invalid_item"}
        assert "the reference is empty" in empty["outputs"][0]["error"]["message"]
        assert [row["score"] for row in good["outputs"]] == pytest.approx(PROBABILITIES)
        assert bad["error"]["code"] == "invalid_item"


def test_an_item_whose_anchor_or_output_fails_has_no_reward():
    def fail(sequence):
        if sequence == bad:
            raise RuntimeError("no memory")

    model = MeasuredModel(fail=fail)
    with fakes.running(app(model, Scale(CARD, Uncertainty(FACTOR, 1.0)))) as url:
        for name, message in ((REFERENCE, "the reference itself: the model failed"), ("the fox", "the model failed")):
            bad = ids(name)
            body = {"items": [{**ITEM, "outputs": ["the fox"]}, {**ITEM, "reference": "bank"}], "anchor": True}
            failed, good = fakes.HTTP.post(f"{url}/v1/score", json=body).json()["results"]
            # A tree fails as a whole.
            assert failed["outputs"][0]["error"]["code"] == "model_error"
            assert "the model failed: RuntimeError" in failed["outputs"][0]["error"]["message"], message
            assert [row["anchor"] for row in good["outputs"]] == [good["outputs"][2]["reward"]] * 3


def test_anchors_count_for_the_limits():
    with fakes.running(app(fakes.FakeModel(), Scale(), limits=Limits(items=3))) as url:
        assert len(rows(url)) == 3
        assert "4 items in one request; the limit is 3" in rows(url, 413, anchor=True)
    characters = 3 * len(PROMPT) + len(REFERENCE) + sum(map(len, OUTPUTS))
    with fakes.running(app(fakes.FakeModel(), Scale(), limits=Limits(body_bytes=characters + 200))) as url:
        long = {**ITEM, "reference": "r" * 120}
        assert fakes.HTTP.post(f"{url}/v1/score", json={"items": [long]}).status_code == 200
        assert fakes.HTTP.post(f"{url}/v1/score", json={"items": [long], "anchor": True}).status_code == 413


def test_requests_with_and_without_features_share_a_batch():
    async def run():
        model = MeasuredModel()
        batcher = Batcher(model, model.measure, window=0.05)
        batcher.start()
        sequences = [TokenSequence.from_ids(ids(output), ENCODER) for output in OUTPUTS]
        plain, measured = await asyncio.gather(batcher.submit(sequences), batcher.measure(sequences))
        await batcher.stop()
        return model, plain, measured

    model, plain, measured = asyncio.run(run())
    assert (len(model.calls), model.measured) == (1, 1)
    assert plain == SCORES == [score for score, _ in measured]
    assert [found.tolist() for _, found in measured] == [features(ids(output)).tolist() for output in OUTPUTS]


def test_a_batcher_without_features_says_so():
    with pytest.raises(TypeError, match="without a function that measures features"):
        asyncio.run(Batcher(fakes.FakeModel()).measure([]))


@pytest.fixture(scope="module")
def scaled(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaled") / "model"
    shutil.copytree(checkpoint[0], folder)
    hidden = len(checkpoint[1].head)
    factor = np.random.default_rng(0).normal(size=(hidden, hidden)).astype(np.float32)
    Uncertainty(factor, 1.0).save(folder)
    Calibration.from_rewards([-1.0, 1.0], temperature=3.0).save(folder)
    return folder


def test_the_server_gives_what_the_scorer_gives(scaled):
    scale = Scale.load(scaled)
    scorer = Scorer(RewardModel.from_pretrained(scaled), scale=scale)
    batcher = Batcher(scorer.score_trees, scorer.measure_trees)
    expected = list(scorer.score([ScoreItem(PROMPT, REFERENCE, output) for output in OUTPUTS], anchored=True))
    with fakes.running(create_app(Service("rm", scorer.model.encoder, batcher, scale))) as url:
        for row, reward in zip(rows(url, transform="probability"), expected, strict=True):
            assert (row["reward"], row["anchor"], row["score"]) == (reward.reward, reward.anchor, reward.probability)
            assert row["deviation"] == pytest.approx(reward.deviation, rel=1e-5)


def test_a_server_does_not_start_with_the_scale_of_another_model(scaled, tmp_path, monkeypatch):
    """F11. Told before the weights are loaded."""
    model = RewardModel.from_pretrained(scaled)
    with torch.no_grad():
        model.backbone.score.weight.mul_(2)
    model.save(tmp_path / "other")
    monkeypatch.setattr(launch.RewardModel, "from_pretrained", None)
    for name in ("calibration.json", UNCERTAINTY):
        (tmp_path / "other/calibration").mkdir(exist_ok=True)
        shutil.copy(scaled / name, tmp_path / "other" / name)
        with pytest.raises(launch.PolarError, match="belongs to another model"):
            launch.serve(ServeConfig(model=tmp_path / "other"), listener=None, key=None)
        (tmp_path / "other" / name).unlink()

"""The files of a model folder about the scale of its rewards: they belong to one model, and they anchor rewards."""

import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem
from polar_rm.rewards.anchors import AnchoredItems
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.outcomes import Failure, Reward
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.uncertainty import UNCERTAINTY, Uncertainty

FACTOR = np.array([[2.0, 0.0], [1.0, 1.0]], np.float32)


def folder(path, weights=b"a"):
    path.mkdir()
    (path / "config.json").write_text('{"polar": {"encoder": {"hash": "e1"}}}')
    (path / "model.safetensors").write_bytes(weights * 1000)
    return path


def test_both_files_belong_to_one_model_and_are_not_part_of_its_weights(tmp_path):
    """F11. Files in the subfolder change neither the model's identity nor the weights that engines load."""
    first, second = folder(tmp_path / "first"), folder(tmp_path / "second", b"b")
    assert Scale.load(first) == Scale()
    Uncertainty(np.asfortranarray(FACTOR), 0.25).save(first)
    Calibration.from_rewards([1.0, 2.0]).save(first)
    scale = Scale.load(first)
    assert scale.uncertainty.factor.tolist() == FACTOR.tolist() and scale.uncertainty.prior_precision == 0.25
    assert [path.name for path in first.glob("*.safetensors")] == ["model.safetensors"]
    (second / UNCERTAINTY).parent.mkdir()
    (second / UNCERTAINTY).write_bytes((first / UNCERTAINTY).read_bytes())
    with pytest.raises(
        PolarError, match=r"uncertainty.safetensors: the uncertainty belongs to another model \(different weights\)"
    ):
        Scale.load(second)
    (first / "config.json").write_text('{"polar": {"encoder": {"hash": "e2"}}}')
    for kind in (Calibration, Uncertainty):
        with pytest.raises(PolarError, match=r"different encoder\); make one with this model: polar calibrate .*first PAIRS"):
            kind.load(first)


@pytest.mark.parametrize("damage", ["text", "no metadata", "vector", "not finite", "other type"])
def test_damaged_files_are_reported(tmp_path, damage):
    path = folder(tmp_path / "model") / UNCERTAINTY
    path.parent.mkdir()
    factor = {
        "vector": np.zeros(4, np.float32),
        "not finite": np.full((2, 2), np.nan, np.float32),
        "other type": np.zeros((2, 2), np.float16),
    }.get(damage, FACTOR)
    save_file(
        {"factor": factor}, path, None if damage == "no metadata" else {"prior_precision": "1.0", "encoder": "e1", "weights": ""}
    )
    if damage == "text":
        path.write_text("x")
    with pytest.raises(PolarError, match="uncertainty.safetensors: not the uncertainty of a head"):
        Uncertainty.load(path.parent.parent)


def test_features_of_another_width_are_refused():
    with pytest.raises(PolarError, match="a head with 2 features, the model has 3"):
        Uncertainty(FACTOR, 1.0).deviations(np.zeros((1, 3), np.float32))


def test_outcomes_get_the_fields_that_the_model_supports():
    outcomes = [Reward(-1.0, 9), Failure("non_finite", "x"), Reward(0.5, 9), Reward(0.5, 9)]
    anchors = [Reward(1.0, 9), Reward(1.0, 9), Reward(0.5, 9), Failure("model_error", "y")]
    differences = np.array([[1, 1], [0, 0], [0, 0], [0, 0]], np.float32)
    bare = Scale().anchor(outcomes, anchors, differences)
    assert bare[:3] == [Reward(-1.0, 9, anchor=1.0), outcomes[1], Reward(0.5, 9, anchor=0.5)]
    assert bare[3] == Failure("model_error", "the reference itself: y")
    assert (bare[0].anchored, bare[2].anchored, Reward(1.0, 9).anchored) == (-2.0, 0.0, None)
    full = Scale(Calibration.from_rewards([0.0, 1.0], temperature=4.0), Uncertainty(FACTOR, 1.0)).anchor(
        outcomes, anchors, differences
    )
    assert full[0].probability == pytest.approx(1 / (1 + math.exp(0.5)))
    assert full[0].deviation == pytest.approx(math.sqrt(8))
    assert (full[2].probability, full[2].deviation) == (0.5, 0.0)
    assert Scale(Calibration.from_rewards([0.0, 1.0])).anchor(outcomes, anchors)[0].probability is None


def test_each_group_has_one_anchor_whose_candidate_is_the_reference():
    items = [ScoreItem("p", "r", "a"), ScoreItem("p", "s", "b"), ScoreItem("p", "r", "c"), ScoreItem("p", "r", "d", "pretrain")]
    anchors = [ScoreItem("p", "r", "r"), ScoreItem("p", "s", "s"), ScoreItem("p", "r", "r", "pretrain")]
    for empty in ("", " \n", [{"role": "assistant", "content": " "}]):
        plan = AnchoredItems.of([ScoreItem("p", empty, "x"), *items])
        assert plan == AnchoredItems(5, [1, 2, 3, 4], [*items, *anchors], [4, 5, 4, 6])
        scored = [Reward(float(number), 9) for number in range(7)]
        scored[5] = Failure("non_finite", "z")
        outcomes = plan.outcomes(scored, Scale(None, Uncertainty(FACTOR, 1.0)), np.arange(14, dtype=np.float32).reshape(7, 2))
        assert [outcomes[index].anchored for index in (1, 3, 4)] == [-4.0, -2.0, -3.0]
        assert outcomes[0].code == "invalid_item" and "the reference is empty" in outcomes[0].message
        assert outcomes[2] == Failure("non_finite", "the reference itself: z")
        assert outcomes[1].deviation == pytest.approx(math.hypot(2 * 8, 8 + 8))
    assert AnchoredItems.of([]).outcomes([], Scale()) == []
    # Scoring reports a reference that is no text.
    assert AnchoredItems.of([ScoreItem("p", None, "a")]).anchorable == [0]

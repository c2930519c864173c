"""Several references of one item: the plan, and one reward from several."""

import math

import pytest

from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem
from polar_rm.rewards.calibration import Calibration, Distribution
from polar_rm.rewards.combining import ReferencedItems, check_combine, combined_rewards
from polar_rm.rewards.outcomes import Cut, Failure, Reward
from polar_rm.rewards.scale import Scale

ITEMS = [ScoreItem("p", "r", "a", metadata={"n": 1}), ScoreItem("p", ("r", "s", "t"), "b"), ScoreItem("q", "u", "c")]
CARD = Calibration.from_rewards(
    [-300.0, 300.0], anchored=Distribution.from_rewards([-5.0, 0.0]), temperature=2.0, n_pairs=9, n_prompts=3, ece_after=0.02
)


def test_every_reference_is_an_item_and_items_come_back_in_order():
    plan = ReferencedItems.of(ITEMS)
    assert [(each.prompt, each.reference, each.output) for each in plan.to_score] == [
        ("p", "r", "a"),
        ("p", "r", "b"),
        ("p", "s", "b"),
        ("p", "t", "b"),
        ("q", "u", "c"),
    ]
    assert not plan.is_plain("mean") and ReferencedItems.of(ITEMS[:1]).is_plain("mean")
    assert not ReferencedItems.of(ITEMS[:1]).is_plain("best")  # another scale
    outcomes = plan.outcomes([Reward(float(i), 10) for i in range(5)], "mean", Scale())
    assert [each.reward for each in outcomes] == [0.0, (1 + 2 + 3) / 3, 4.0]
    assert [each.n_tokens for each in outcomes] == [10, 30, 10]


def test_an_item_fails_with_the_reason_of_the_reference_that_failed():
    scored = [Reward(1.0, 9), Reward(1.0, 9), Failure("non_finite", "NaN"), Reward(1.0, 9), Failure("model_error", "x")]
    outcomes = ReferencedItems.of(ITEMS).outcomes(scored, "mean", Scale())
    assert outcomes[1:] == [Failure("non_finite", "reference 2: NaN"), Failure("model_error", "x")]


@pytest.mark.parametrize("reference", [(), ("r",), ("r", ""), ("r", " \n"), None])
def test_invalid_references_are_left_to_whoever_checks_items(reference):
    item = ScoreItem("p", reference, "a")
    assert ReferencedItems.of([item]).to_score == [item]


def test_a_mean_is_anchored_by_the_mean_of_the_anchors():
    rewards = [
        Reward(3.0, 5, Cut(1, 0, 2), ("truncated",), anchor=1.0),
        Reward(-1.0, 7, Cut(0, 4, 0), ("truncated", "empty"), anchor=0.5),
    ]
    one = combined_rewards(rewards, "mean", Scale(CARD))
    assert (one.reward, one.anchor, one.anchored, one.n_tokens) == (1.0, 0.75, 0.25, 12)
    assert one.cut == Cut(1, 4, 2) and one.notes == ("truncated", "empty")
    assert one.probability == pytest.approx(1 / (1 + math.exp(-0.25 / 2))) and one.deviation is None
    raw = combined_rewards([Reward(3.0, 5), Reward(-1.0, 7)], "mean", Scale(CARD))
    assert (raw.reward, raw.anchor, raw.probability) == (1.0, None, None)


def test_the_best_is_the_highest_above_its_own_reference_not_the_highest_raw_one():
    rewards = [Reward(3.0, 5, anchor=4.0, probability=0.3), Reward(-1.0, 7, anchor=-3.0, probability=0.7, deviation=0.2)]
    best = combined_rewards(rewards, "best", Scale(CARD))
    assert (best.reward, best.anchor, best.anchored) == (2.0, 0.0, 2.0)
    assert (best.probability, best.deviation, best.n_tokens) == (0.7, 0.2, 12)
    assert combined_rewards(rewards[:1], "best", Scale(CARD)).reward == -1.0  # the same scale where there is one


def test_what_can_not_be_combined_is_refused():
    check_combine("best", "probability")
    with pytest.raises(PolarError, match="unknown way to combine references 'max'; known: mean, best"):
        check_combine("max", "raw")
    with pytest.raises(PolarError, match="percentiles are those of raw rewards"):
        check_combine("best", "percentile")

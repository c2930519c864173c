"""Objectives against their formulas written out pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from polar_rm.training.config import LossConfig
from polar_rm.training.losses import count_items, loss_sum, pair_indices, penalty_sum

SCORES = [0.3, -1.2, 2.0, 0.7, 0.7]
RANKS = [(0, 1, 1), (1, 0)]
PAIRS = [(0, 1), (0, 2), (4, 3)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def total(config: LossConfig) -> float:
    return float(loss_sum(torch.tensor(SCORES), pair_indices(RANKS), config))


def test_pairs_are_all_ordered_pairs():
    better, worse = pair_indices(RANKS)
    assert list(zip(better.tolist(), worse.tolist(), strict=True)) == PAIRS
    assert count_items(RANKS, LossConfig()) == 3


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("focal", [False, True])
def test_bradley_terry_and_its_variants(margin, smoothing, focal):
    expected = 0.0
    for better, worse in PAIRS:
        p = sigmoid(SCORES[better] - SCORES[worse] - margin)
        term = -(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p)
        expected += term * ((1 - 2 * max(0.0, p - 0.5)) ** 2 if focal else 1)
    assert total(LossConfig(margin=margin, label_smoothing=smoothing, focal=focal)) == pytest.approx(expected, rel=1e-5)


def test_listwise_is_each_winner_against_all_it_beats():
    config = LossConfig(objective="listwise")
    expected = 0.0
    for winner, losers in [(0, [1, 2]), (4, [3])]:
        total_weight = sum(math.exp(SCORES[i]) for i in [winner, *losers])
        expected -= math.log(math.exp(SCORES[winner]) / total_weight)
    assert total(config) == pytest.approx(expected, rel=1e-5)
    assert count_items(RANKS, config) == 2


@pytest.mark.parametrize("option", [{"margin": 0.5}, {"label_smoothing": 0.1}, {"focal": True}])
def test_listwise_refuses_options_of_pairs(option):
    with pytest.raises(ValidationError, match=f"{next(iter(option))}: only for bradley_terry"):
        LossConfig(objective="listwise", **option)
    LossConfig(objective="listwise", centring=0.01, log_barrier=0.01)


def test_listwise_of_two_is_bradley_terry():
    scores, pairs = torch.tensor([0.3, -0.4]), pair_indices([(0, 1)])
    assert loss_sum(scores, pairs, LossConfig(objective="listwise")) == pytest.approx(
        float(loss_sum(scores, pairs, LossConfig()))
    )


def test_listwise_is_stable_and_differentiable_where_scores_lie_far_apart():
    scores = torch.tensor([-400.0, 300.0, 1.0], requires_grad=True)
    loss = loss_sum(scores, pair_indices([(0, 1, 1)]), LossConfig(objective="listwise"))
    loss.backward()
    assert loss.item() == pytest.approx(700)
    assert scores.grad.tolist() == pytest.approx([-1, 1, 0])


def test_penalties():
    scores = torch.tensor([1.0, -2.0, 9.0])
    assert float(penalty_sum(scores, LossConfig())) == 0
    assert float(penalty_sum(scores, LossConfig(centring=0.01))) == pytest.approx(0.86)
    barrier = penalty_sum(scores[:2], LossConfig(log_barrier=0.5))
    assert float(barrier) == pytest.approx(-0.5 * (math.log(4 * 6) + math.log(7 * 3)), rel=1e-5)
    outside = torch.tensor([9.0, -6.0])  # the barrier is constant from a thousandth before the bounds on
    assert float(penalty_sum(outside, LossConfig(log_barrier=0.5))) == pytest.approx(-math.log(1e-3 * (10 - 1e-3)), rel=1e-3)


def test_equal_scores_lose_ln_2_per_pair():
    assert float(loss_sum(torch.zeros(5), pair_indices(RANKS), LossConfig())) == pytest.approx(3 * math.log(2))

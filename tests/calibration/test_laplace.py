"""The posterior of the head against dense matrices and a grid."""

import numpy as np
import pytest

from polar_rm.calibration import laplace
from polar_rm.calibration.abstention import abstention_curve, certainty
from polar_rm.calibration.laplace import Features, information, out_of_fold_deviations, posterior, prior_precision
from polar_rm.rewards.uncertainty import Uncertainty

HIDDEN = 7


@pytest.fixture
def features():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(60, HIDDEN)).astype(np.float32) @ np.diag([5, 3, 2, 1, 0.5, 0.1, 0]).astype(np.float32)
    better, worse = generator.integers(0, 30, 80), generator.integers(30, 60, 80)
    return Features(values, better, worse, generator.normal(size=HIDDEN))


def rewards(features):
    return features.values.astype(np.float64) @ features.head


def dense(features, pairs, temperature, precision):
    """H, pair by pair."""
    total = precision * np.eye(HIDDEN)
    for pair in pairs:
        d = features.values[features.better[pair]].astype(np.float64) - features.values[features.worse[pair]]
        p = 1 / (1 + np.exp(-(features.head @ d) / temperature))
        total += p * (1 - p) * np.outer(d, d) / temperature**2
    return total


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_deviations_equal_those_of_the_dense_inverse(features, monkeypatch, block):
    monkeypatch.setattr(laplace, "_BLOCK", block)
    r = rewards(features)
    differences = r[features.better] - r[features.worse]
    head = posterior(information(features, np.arange(80), differences, 1.7), features.head)
    covariance = np.linalg.inv(dense(features, range(80), 1.7, head.precision))
    assert head.factor.T @ head.factor == pytest.approx(covariance, rel=1e-9, abs=1e-12)
    uncertainty = Uncertainty(head.factor.astype(np.float32), head.precision)
    d = np.random.default_rng(1).normal(size=(5, HIDDEN)).astype(np.float32)
    assert uncertainty.deviations(d) == pytest.approx([np.sqrt(row @ covariance @ row) for row in d.astype(float)], rel=1e-4)
    assert uncertainty.deviations(np.zeros((1, HIDDEN), np.float32)).tolist() == [0.0]


def test_the_prior_has_the_maximum_evidence_of_a_grid():
    g, head = np.array([30.0, 4.0, 0.5, 0.0]), np.array([0.3, -0.2, 0.1, 0.4])
    precision = prior_precision(g, head)

    def evidence(precision):
        return len(g) / 2 * np.log(precision) - 0.5 * np.log(g + precision).sum() - precision / 2 * (head @ head)

    grid = precision * 1.01 ** np.arange(-400, 401)
    assert max(grid, key=evidence) == pytest.approx(precision, rel=0.011)
    assert precision * (head @ head) == pytest.approx((g / (g + precision)).sum())


def test_out_of_fold_deviations_do_not_depend_on_their_own_pairs(features):
    r = rewards(features)
    differences = r[features.better] - r[features.worse]
    folds = np.arange(80) % 4
    deviations = out_of_fold_deviations(features, differences, folds, 1.3, 0.2)
    for pair in (0, 1, 41, 79):
        others = [other for other in range(80) if folds[other] != folds[pair]]
        covariance = np.linalg.inv(dense(features, others, 1.3, 0.2))
        d = features.values[features.better[pair]].astype(np.float64) - features.values[features.worse[pair]]
        assert deviations[pair] == pytest.approx(np.sqrt(d @ covariance @ d))


def test_certainty_falls_with_deviation_and_temperature():
    one = np.array([1.0])
    plain = certainty(one, one, 0 * one)
    assert plain == pytest.approx([1.0])
    assert certainty(-2 * one, one, 0 * one) == pytest.approx([2.0])
    assert certainty(one, one, one) == pytest.approx([1 / np.sqrt(1 + np.pi / 8)])
    assert certainty(one, 2 * one, 0 * one) == pytest.approx([0.5])


def test_the_moderated_logit_equals_that_of_the_mean_probability():
    """Of sigmoid(d / T) under d ~ N(2, s^2), by Monte Carlo."""
    draws = np.random.default_rng(0).normal(2.0, 1.5, 400_000)
    mean = (1 / (1 + np.exp(-draws / 0.8))).mean()
    [logit] = certainty(np.array([2.0]), np.array([0.8]), np.array([1.5]))
    assert 1 / (1 + np.exp(-logit)) == pytest.approx(mean, abs=0.01)


def test_the_curve_keeps_the_most_certain_pairs():
    generator = np.random.default_rng(0)
    differences = generator.normal(0.5, 1, 1000)
    certain = np.abs(differences) * generator.uniform(0.5, 1.5, 1000)
    prompts = np.arange(1000) // 4
    rows = abstention_curve(differences, certain, prompts, resamples=400)
    assert [row["coverage"] for row in rows] == [1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5]
    for row in rows:
        kept = sorted(range(1000), key=lambda i: -certain[i])[: row["n_pairs"]]
        assert row["n_pairs"] == row["coverage"] * 1000
        assert row["accuracy"] == pytest.approx(sum(differences[i] > 0 for i in kept) / len(kept))
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
        assert row["gain"] == pytest.approx(row["accuracy"] - rows[0]["accuracy"])
    assert rows[0]["gain_ci95"] == [0.0, 0.0]
    assert 0 < rows[4]["gain_ci95"][0] < rows[4]["gain"] < rows[4]["gain_ci95"][1]
    plain = sorted(range(1000), key=lambda i: -abs(differences[i]))[:500]
    assert rows[-1]["accuracy_by_difference"] == pytest.approx(sum(differences[i] > 0 for i in plain) / 500)


def test_random_certainty_has_no_gain():
    generator = np.random.default_rng(0)
    rows = abstention_curve(generator.normal(0.5, 1, 4000), generator.random(4000), np.arange(4000), resamples=400)
    low, high = rows[4]["gain_ci95"]
    assert low < 0 < high


def test_the_intervals_of_the_curve_are_drawn_by_the_seed():
    generator = np.random.default_rng(0)
    pairs = generator.normal(0.5, 1, 200), generator.random(200), np.arange(200)
    first, again, other = (abstention_curve(*pairs, resamples=50, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert [row["accuracy"] for row in first] == [row["accuracy"] for row in other]
    assert all(row["ci95"] != another["ci95"] for row, another in zip(first, other, strict=True))

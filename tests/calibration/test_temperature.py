"""Temperature and calibration error against brute force."""

import math
import random

import numpy as np
import pytest

from polar_rm.calibration.temperature import (
    fit_temperature,
    folds_of,
    out_of_fold_temperatures,
    reliability,
    sigmoids,
)
from polar_rm.errors import NoTemperature
from polar_rm.evaluation.pairs import bradley_terry_loss


def drawn(n, temperature, seed=0):
    """Differences better minus worse of pairs whose order was drawn with P = sigmoid(d / temperature)."""
    generator = np.random.default_rng(seed)
    d = generator.normal(0, 3, n)
    return np.where(generator.random(n) < 1 / (1 + np.exp(-d / temperature)), d, -d)


@pytest.mark.parametrize("true", [0.05, 1.0, 40.0])
def test_the_temperature_is_the_best_of_a_grid(true):
    differences = drawn(400, true) * true
    fitted = fit_temperature(differences)

    def nll(temperature):
        return sum(
            math.log1p(math.exp(-d / temperature)) if d > 0 else -d / temperature + math.log1p(math.exp(d / temperature))
            for d in differences
        )

    grid = [fitted * 1.002**step for step in range(-500, 501)]
    best = min(grid, key=nll)
    assert best == pytest.approx(fitted, rel=0.0021)
    assert nll(fitted) <= nll(best)
    assert bradley_terry_loss(differences / fitted) == pytest.approx(nll(fitted) / len(differences))


def test_the_true_temperature_is_recovered():
    assert fit_temperature(drawn(40_000, 2.5)) == pytest.approx(2.5, rel=0.05)


def test_the_temperature_has_the_unit_of_the_reward():
    differences = drawn(200, 1.0)
    for scale in (1e-6, 1e6):
        assert fit_temperature(differences * scale) == pytest.approx(scale * fit_temperature(differences))


@pytest.mark.parametrize(
    ("differences", "reason"),
    [
        ([], "equal rewards"),
        ([0.0, 0.0], "equal rewards"),
        ([1.0, -1.0], "no higher rewards"),
        ([1.0, -3.0], "no higher rewards"),
        ([1.0, 0.0, 2.0], "harder pairs"),
    ],
)
def test_pairs_that_determine_no_temperature_are_refused(differences, reason):
    with pytest.raises(NoTemperature, match=reason):
        fit_temperature(np.array(differences))


def test_out_of_fold_temperatures_do_not_see_their_own_prompts():
    differences, prompts = drawn(300, 1.0), np.arange(300) // 3
    folds = folds_of(prompts)
    assert all(len({folds[i] for i in range(300) if prompts[i] == prompt}) == 1 for prompt in range(100))
    assert sorted(set(folds.tolist())) == [0, 1, 2, 3, 4]
    before = out_of_fold_temperatures(differences, folds)
    for fold in range(5):
        assert before[folds == fold] == pytest.approx(fit_temperature(differences[folds != fold]))
    changed = differences.copy()
    changed[folds == 2] *= 5
    after = out_of_fold_temperatures(changed, folds)
    assert (after[folds == 2] == before[folds == 2]).all()
    assert (after[folds != 2] != before[folds != 2]).all()


def test_a_fold_without_which_there_is_no_temperature_is_reported():
    with pytest.raises(NoTemperature, match="the pairs are too few: without one fold of the prompts, .* harder pairs"):
        out_of_fold_temperatures(np.array([1.0, 1.0, -0.5]), np.array([1, 1, 0]))


def test_two_prompts_are_two_folds():
    assert folds_of(np.array([0, 0, 1])).tolist() == [0, 0, 1]


def plain_error(logits, bins):
    rows = []
    for logit in logits:
        p = 1 / (1 + math.exp(-logit))
        rows.append((max(p, 1 - p), 1.0 if logit > 0 else 0.5 if logit == 0 else 0.0))
    rows.sort(key=lambda row: row[0])
    total, error, start = len(rows), 0.0, 0
    for number in range(bins):
        size = total // bins + (number < total % bins)
        part = rows[start : start + size]
        start += size
        confidence = sum(row[0] for row in part) / size
        accuracy = sum(row[1] for row in part) / size
        error += size / total * abs(accuracy - confidence)
    assert start == total
    return error


@pytest.mark.parametrize("n", [4, 15, 301])
def test_the_calibration_error_equals_that_of_a_plain_loop(n):
    rng = random.Random(n)
    logits = [rng.gauss(0.7, 2) for _ in range(n - 2)] + [0.0, 3.0]
    result = reliability(np.array(logits))
    assert result.error == pytest.approx(plain_error(logits, min(15, n)), abs=1e-12)
    assert result.counts.sum() == n and (np.diff(result.confidence) >= 0).all()
    assert result.confidence.min() >= 0.5 and result.confidence.max() <= 1


def test_exact_probabilities_have_an_error_equal_to_noise():
    generator = np.random.default_rng(1)
    size = np.abs(generator.normal(0, 2, 900))
    errors = []
    for _ in range(200):
        result = reliability(np.where(generator.random(900) < sigmoids(size), size, -size))
        errors.append(result.error)
    assert result.noise == pytest.approx(np.mean(errors), rel=0.1)


def test_the_temperature_removes_the_error_of_overconfident_probabilities():
    differences = drawn(6000, 6.0)
    assert reliability(differences).error > 0.1
    assert reliability(differences / fit_temperature(differences)).error < 0.03


def test_extreme_logits_do_not_overflow():
    with np.errstate(all="raise"):
        result = reliability(np.array([800.0, -800.0, 1e-300]))
    assert result.confidence[-1] == 1.0

import math

import numpy as np
import pytest

from polar_rm.errors import PolarError
from polar_rm.evaluation.statistics import bootstrap_intervals, paired_difference, resampled_means


def simulate(generator, n_prompts, spread=1.5):
    """Pairs of prompts that differ in difficulty: correctness [n_pairs, 1], prompts [n_pairs]; true accuracy 1/2."""
    sizes = generator.integers(1, 9, n_prompts)
    chance = 1 / (1 + np.exp(-spread * generator.standard_normal(n_prompts)))
    prompts = np.repeat(np.arange(n_prompts), sizes)
    return (generator.random(len(prompts)) < chance[prompts]).astype(float)[:, None], prompts


def test_means_equal_a_plain_loop_over_the_same_resamples():
    values, prompts = simulate(np.random.default_rng(3), 17)
    values = np.column_stack([values, np.random.default_rng(4).random(len(values))])
    result = resampled_means(values, prompts, resamples=50, seed=11)
    generator = np.random.default_rng(11)
    for row in result:
        drawn = [values[prompts == prompt] for prompt in generator.integers(17, size=17)]
        assert row == pytest.approx(np.concatenate(drawn).mean(axis=0), abs=1e-12)


def test_blocks_do_not_change_the_result(monkeypatch):
    values, prompts = simulate(np.random.default_rng(5), 23)
    whole = resampled_means(values, prompts, resamples=40, seed=1)
    monkeypatch.setattr("polar_rm.evaluation.statistics._BLOCK", 23 * 7)
    assert np.array_equal(whole, resampled_means(values, prompts, resamples=40, seed=1))


def test_prompts_may_be_any_integers_in_any_order():
    values, prompts = simulate(np.random.default_rng(6), 12)
    order = np.random.default_rng(7).permutation(len(values))
    (shuffled,) = bootstrap_intervals(values[order], prompts[order] * 10 + 5)
    assert bootstrap_intervals(values, prompts)[0] == pytest.approx(shuffled)


def test_interval_covers_the_truth_and_an_interval_over_pairs_would_not():
    generator = np.random.default_rng(0)
    covered = naive = 0
    for trial in range(200):
        values, prompts = simulate(generator, 60)
        (low, high) = bootstrap_intervals(values, prompts, resamples=300, seed=trial)[0]
        covered += low <= 0.5 <= high
        (low, high) = bootstrap_intervals(values, np.arange(len(prompts)), resamples=300, seed=trial)[0]
        naive += low <= 0.5 <= high
    assert 0.90 <= covered / 200 <= 0.98
    assert naive < covered - 10


def test_an_interval_covers_95_percent():
    """sta-e1: its coverage alone can't tell 95 from 90 percent."""
    _, prompts = simulate(np.random.default_rng(2), 50)
    values = np.random.default_rng(3).standard_normal((len(prompts), 1))
    means = np.sort(resampled_means(values, prompts, resamples=1000, seed=5)[:, 0])
    [(low, high)] = bootstrap_intervals(values, prompts, resamples=1000, seed=5)
    # Of a thousand sorted means, by linear interpolation: 25 lie below, 25 above.
    assert means[24] <= low <= means[25] and means[974] <= high <= means[975]
    assert means[24] < means[25] and means[974] < means[975]


def test_one_prompt_has_no_interval():
    values = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert bootstrap_intervals(values, np.array([4, 4])) == [None, None]
    result = paired_difference(values[:, 0], values[:, 1], np.array([4, 4]))
    assert result.ci95 is None and result.difference == 0.0
    assert "no interval" in str(result)


def test_the_seed_determines_the_interval():
    values, prompts = simulate(np.random.default_rng(8), 40)
    assert bootstrap_intervals(values, prompts, seed=1) == bootstrap_intervals(values, prompts, seed=1)
    assert bootstrap_intervals(values, prompts, seed=1) != bootstrap_intervals(values, prompts, seed=2)


def test_paired_interval_is_narrower_than_two_separate_ones():
    generator = np.random.default_rng(9)
    first, prompts = simulate(generator, 100)
    first = first[:, 0]
    # The second scorer errs where the first does, and on a tenth of the pairs more.
    second = np.where(generator.random(len(first)) < 0.1, 0.0, first)
    result = paired_difference(first, second, prompts)
    assert result.difference == pytest.approx(first.mean() - second.mean())
    assert result.ci95 is not None and 0 < result.ci95[0] < result.difference < result.ci95[1]
    (low, high), (other_low, other_high) = bootstrap_intervals(np.column_stack([first, second]), prompts)
    assert result.ci95[1] - result.ci95[0] < math.hypot(high - low, other_high - other_low) / 2
    assert (result.n_pairs, result.n_prompts) == (len(first), 100)
    assert paired_difference(second, first, prompts).difference == -result.difference


def test_paired_difference_refuses_other_pairs():
    with pytest.raises(PolarError, match="3 and 2 values of 3 pairs"):
        paired_difference(np.ones(3), np.ones(2), np.arange(3))
    with pytest.raises(PolarError, match="at least one pair"):
        paired_difference(np.ones(0), np.ones(0), np.arange(0))


def wilson(successes, n):
    """Wilson's score interval (1927) by its usual formula."""
    z = 1.959963984540054
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


@pytest.mark.parametrize("n", [2, 6, 100])
def test_the_interval_of_agreeing_prompts_is_wilsons(n):
    prompts = np.repeat(np.arange(n), 3)  # pairs of one prompt are one observation
    for right in (0, n):
        [result] = bootstrap_intervals(np.full((3 * n, 1), right / n), prompts)
        assert result == pytest.approx(wilson(right, n), abs=1e-12)


def test_a_difference_of_agreeing_prompts_has_an_interval():
    prompts = np.arange(6)
    u = wilson(0, 6)[1]  # at most this share of all prompts may differ
    same = paired_difference(np.ones(6), np.ones(6), prompts)
    assert same.difference == 0 and same.ci95 == pytest.approx((-u, u))
    always = paired_difference(np.ones(6), np.zeros(6), prompts)
    assert always.difference == 1 and always.ci95 == pytest.approx((1 - 2 * u, 1))


def test_one_prompt_that_differs_is_enough_for_the_bootstrap():
    values = np.ones((50, 1))
    values[0] = 0
    [(low, high)] = bootstrap_intervals(values, np.arange(50))
    assert low < 0.98 < high == 1.0

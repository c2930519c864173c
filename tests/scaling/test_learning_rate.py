"""The learning rate of a size: a parabola through three losses, and what is said where it does not help."""

import math

import numpy as np
import pytest

from polar_rm.scaling.config import LearningRates
from polar_rm.scaling.learning_rate import Tried, base_rate, pick, rates_to_try, rounded


def tried(rates, losses):
    return [Tried(lr, loss) for lr, loss in zip(rates, losses, strict=True)]


@pytest.mark.parametrize("best", [0.0006, 0.001, 0.0017])
def test_the_lowest_point_of_an_exact_parabola_is_found(best):
    rates = [0.0005, 0.001, 0.002]
    found = pick(tried(rates, [0.4 + 0.1 * math.log(lr / best) ** 2 for lr in rates]))
    assert found.lr == pytest.approx(best, rel=1e-3)
    assert found.is_inside and found.how == "the minimum of the parabola"


def test_unequal_factors_and_more_rates_take_the_best_with_its_neighbours():
    rates = [1e-4, 4e-4, 1e-3, 2e-3, 9e-3]
    losses = [0.9, 0.6, 0.5, 0.55, 5.0]
    a, b, _ = np.polyfit(np.log(rates[1:4]), losses[1:4], 2)  # an independent parabola
    assert pick(tried(rates, losses)[::-1]).lr == pytest.approx(math.exp(-b / (2 * a)), rel=1e-3)


@pytest.mark.parametrize(
    ("losses", "lr", "words"),
    [
        ((0.5, 0.45, 0.42), 0.002, "the highest tried"),  # lowest point beyond the highest
        ((0.42, 0.45, 0.5), 0.0005, "the lowest tried"),
        ((0.5, 0.6, 0.5), 0.0005, "the lowest tried"),  # opens downwards
        ((0.5, 0.5, 0.5), 0.0005, "the lowest tried"),  # a line
    ],
)
def test_where_the_minimum_is_outside_the_best_tried_is_taken_and_told(losses, lr, words):
    found = pick(tried([0.0005, 0.001, 0.002], losses))
    assert found.lr == lr and not found.is_inside
    assert words in found.how and "no minimum between the rates that were tried" in found.how


def test_a_minimum_between_the_two_lowest_rates_is_inside():
    rates = [0.5, 1.0, 2.0]
    found = pick(tried(rates, [(math.log(lr) - math.log(0.6)) ** 2 for lr in rates]))
    assert found.is_inside and found.lr == pytest.approx(0.6, rel=1e-3)


def test_diverged_runs_are_told_and_never_win():
    found = pick(tried([1e-3, 2e-3, 4e-3], [0.5, 0.4, None]))
    assert found.lr == 2e-3 and not found.is_inside and "1 of 3 runs diverged" in found.how
    assert pick(tried([1e-3], [None])) is None


def test_the_base_follows_the_size_and_names_say_rates_exactly():
    settings = LearningRates(base=2e-3, exponent=-0.5, factors=[3.0, 1.0, 1 / 3])
    base = base_rate(settings, 4_000_000, 1_000_000)
    assert base == 1e-3
    assert rates_to_try(settings, base) == [3.333e-4, 1e-3, 3e-3]
    for lr in (rounded(1.23456e-3), rounded(9.9999e-7)):
        assert float(f"{lr:.4g}") == lr

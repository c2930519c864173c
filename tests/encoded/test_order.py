"""The order of an epoch is a permutation that depends on (seed, epoch) alone."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from polar_rm.encoded.order import VERSION, EpochOrder, batches, steps_per_epoch


def order(n, seed=0, epoch=0):
    return EpochOrder(n, seed, epoch)(np.arange(n)).tolist()


@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 1000, 4095, 4096, 4097, 100_003])
def test_every_comparison_is_in_an_epoch_once(n):
    for seed, epoch in ((0, 0), (0, 1), (2**63 - 1, 10**6)):
        assert sorted(order(n, seed, epoch)) == list(range(n))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_orders_of_a_few_are_equally_likely(n):
    """Chi-square over all n! orders, for seeds and for epochs: four standard deviations above its mean."""
    expected, free = 30, math.factorial(n) - 1
    for keys in ([(seed, 1) for seed in range(expected * (free + 1))], [(1, epoch) for epoch in range(expected * (free + 1))]):
        counts = Counter(tuple(order(n, *key)) for key in keys)
        chi_square = sum((counts[each] - expected) ** 2 / expected for each in permutations(range(n)))
        assert chi_square < free + 4 * math.sqrt(2 * free)


def test_every_position_gets_every_comparison_equally_often():
    n, epochs = 37, 370
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), order(n, 5, epoch)] += 1
    expected = epochs / n
    chi_square, free = ((counts - expected) ** 2 / expected).sum(), (n - 1) ** 2
    assert abs(chi_square - free) < 4 * math.sqrt(2 * free)


def test_neighbours_of_a_large_epoch_are_far_apart():
    """A step's comparisons come from everywhere: a bound on their spread, and no correlation of neighbours."""
    n = 10**9
    taken = EpochOrder(n, 0, 0)(np.arange(10**8, 10**8 + 20_000))
    assert len(set(taken.tolist())) == 20_000 and taken.min() >= 0 and taken.max() < n
    tenths = np.bincount(taken * 10 // n, minlength=10)
    assert ((tenths - 2000) ** 2 / 2000).sum() < 9 + 4 * math.sqrt(18)
    assert abs(np.corrcoef(taken[:-1], taken[1:])[0, 1]) < 4 / math.sqrt(20_000)


def test_the_order_is_this_one_on_every_machine_and_in_every_version():
    """A resumed run continues it. Whoever changes it changes ``VERSION``, too, which checkpoints hold."""
    assert VERSION == "feistel-1"
    assert order(10, seed=1, epoch=2) == GOLDEN


GOLDEN = [3, 7, 2, 6, 5, 9, 4, 0, 1, 8]


@pytest.mark.parametrize("start", [0, 1, 3, 4, 7, 8, 11])
def test_batches_resume_anywhere_and_cover_each_epoch(start):
    per_epoch = steps_per_epoch(14, 4)
    assert per_epoch == 4
    stream = batches(14, 4, seed=3)
    uninterrupted = [next(stream) for _ in range(3 * per_epoch)]
    resumed = batches(14, 4, seed=3, start_step=start)
    for step in range(start, len(uninterrupted)):
        np.testing.assert_array_equal(next(resumed), uninterrupted[step])
    epochs = [np.concatenate(uninterrupted[e * per_epoch : (e + 1) * per_epoch]) for e in range(3)]
    assert all(sorted(epoch) == list(range(14)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_two_seeds_have_no_epoch_in_common():
    """With an order drawn from the sum of seed and epoch, run 4 would have the epochs of run 3, one later."""
    orders = set()
    for seed in range(4):
        stream = batches(14, 14, seed=seed)
        orders |= {tuple(next(stream).tolist()) for _ in range(4)}
    assert len(orders) == 16

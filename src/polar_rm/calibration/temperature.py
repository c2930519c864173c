"""The temperature that makes probabilities of rewards, fitted by maximum likelihood, and the calibration error.

P(a over b) = sigmoid((r_a - r_b) / T) is the Bradley-Terry model with one free scale (temperature scaling: Guo et al. 2017,
arXiv 1706.04599, for two classes). Its negative log-likelihood is convex in 1 / T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polar_rm.errors import NoTemperature
from polar_rm.evaluation.statistics import Floats, Ints

BINS = 15
"""The number of bins of the calibration error. The bins have equal mass, so that none is nearly empty."""
FOLDS = 5
"""The number of folds of the prompts. The probabilities of one fold use the temperature of the other folds."""


def sigmoids(values: Floats) -> Floats:
    """The logistic function of each value, without overflow."""
    return 0.5 * (1 + np.tanh(values / 2))


def fit_temperature(differences: Floats) -> float:
    """The T that minimises the Bradley-Terry loss, in units of the reward.

    differences: better minus worse of every pair, finite.

    The derivative by 1 / T is -mean(d sigmoid(-d / T)) and rises with 1 / T. Its root is bracketed and then found by bisection.

    Raises:
        NoTemperature: no finite T > 0 minimises the loss. This is so if there are no pairs, if all pairs are tied, if no pair is
            lost, or if the better candidates do not have higher rewards on average.
    """
    mean, size = (float(differences.mean()), float(np.abs(differences).mean())) if len(differences) else (0.0, 0.0)
    if size == 0:
        raise NoTemperature("all pairs have equal rewards, so they do not determine the scale of rewards")
    if mean <= 0:
        raise NoTemperature(
            f"the better candidates have no higher rewards than the worse ones (mean difference {mean:+.3g}): "
            "no temperature makes probabilities of these rewards"
        )
    if differences.min() >= 0:
        raise NoTemperature("the better candidate of every pair has the higher reward: use more pairs, or harder pairs")
    scaled = differences / size

    def slope(inverse: float) -> float:
        return -float((scaled * sigmoids(-scaled * inverse)).mean())

    low, high = 0.0, 1.0
    while slope(high) < 0:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):  # until they are neighbouring floats
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return size / high


def folds_of(prompts: Ints) -> Ints:
    """The fold of every pair, int64 [n_pairs]; a prompt is in one fold. prompts: int64 [n_pairs], numbered from 0."""
    return prompts % min(FOLDS, int(prompts.max()) + 1)


def out_of_fold_temperatures(differences: Floats, folds: Ints) -> Floats:
    """For every pair, the temperature of all pairs of the other folds: float64 [n_pairs].

    Raises:
        NoTemperature: the pairs of the other folds determine no temperature.
    """
    temperatures = np.empty(len(differences))
    for fold in np.unique(folds):
        try:
            temperatures[folds == fold] = fit_temperature(differences[folds != fold])
        except NoTemperature as error:
            raise NoTemperature(f"the pairs are too few: without one fold of the prompts, {error}") from None
    return temperatures


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability diagram of the likelier candidate of each pair, so that probabilities are between 0.5 and 1.

    confidence, accuracy: the means of each bin, in order of confidence, float64 [bins]. counts: pairs of each bin, int64 [bins].
    error: the expected calibration error, sum over bins of counts / n * |accuracy - confidence|.
    noise: the mean of ``error`` if every probability were exact and all pairs independent. The accuracy of a bin with few pairs
    deviates by chance, so an error of this size is not significant.
    """

    confidence: Floats
    accuracy: Floats
    counts: Ints
    error: float
    noise: float


def reliability(logits: Floats, bins: int = BINS) -> Reliability:
    """The reliability of probabilities. logits: (better - worse) / T of every pair, float64 [n_pairs].

    A pair counts as 1 if the better candidate is the likelier one, as 0.5 if it is tied, and as 0 otherwise. The bins are in
    order of confidence and hold equally many pairs; with a remainder the first bins hold one more. There are no more bins than
    pairs.
    """
    confidence, correct = sigmoids(np.abs(logits)), (np.sign(logits) + 1) / 2
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    counts = np.array([len(part) for part in parts], np.int64)
    confidences = np.array([confidence[part].mean() for part in parts])
    accuracies = np.array([correct[part].mean() for part in parts])
    # The mean of n outcomes of probabilities p has the variance sum p (1 - p) / n^2. The mean absolute value of a standard normal
    # variable is sqrt(2 / pi).
    variances = np.array([(confidence[part] * (1 - confidence[part])).sum() for part in parts]) / counts**2
    weights = counts / counts.sum()
    error = float((weights * np.abs(accuracies - confidences)).sum())
    return Reliability(confidences, accuracies, counts, error, float((weights * np.sqrt(2 / np.pi * variances)).sum()))

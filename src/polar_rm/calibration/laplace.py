"""The Laplace approximation of the head's posterior, under the Bradley-Terry likelihood of pairs.

With features f at the score position, a head w gives the reward w . f. A pair (a over b) has the likelihood
sigmoid(w . (f_a - f_b) / T). Around the model's head w* the posterior is N(w*, H^-1), with

    H = sum over pairs of p (1 - p) d d^T / T^2 + lambda I,    d = f_a - f_b,  p = sigmoid(w* . d / T)

(MacKay 1992, "The evidence framework applied to classification networks"; last-layer Laplace: Daxberger et al. 2021, arXiv
2106.14806). The prior precision lambda maximises the evidence of the pairs. The approximation treats the backbone as certain and
pairs as independent, so deviations are lower bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polar_rm.calibration.temperature import sigmoids
from polar_rm.evaluation.statistics import Floats, Ints

_MIN_LOG = 700.0  # about the logarithm of the smallest float64, negated
_BLOCK = 1 << 22  # numbers in a block of feature differences: 32 MiB of float64


@dataclass(frozen=True, slots=True)
class Features:
    """The input of the head for every candidate, and the pairs of candidates.

    values: float32 [n_candidates, hidden]. better, worse: rows of ``values``, int64 [n_pairs]. head: w*, float64 [hidden].
    """

    values: NDArray[np.float32]
    better: Ints
    worse: Ints
    head: Floats

    def blocks(self, pairs: Ints) -> Iterator[tuple[Ints, Floats]]:
        """The feature differences of the given pairs, better minus worse, in blocks: (pairs, float64 [n, hidden])."""
        size = max(1, _BLOCK // self.values.shape[1])
        for start in range(0, len(pairs), size):
            block = pairs[start : start + size]
            yield block, self.values[self.better[block]].astype(np.float64) - self.values[self.worse[block]]


def information(features: Features, pairs: Ints, differences: Floats, temperature: float) -> Floats:
    """The sum of p (1 - p) d d^T / T^2 over the given pairs: float64 [hidden, hidden].

    differences: the reward differences of all pairs.
    """
    hidden = features.values.shape[1]
    total = np.zeros((hidden, hidden))
    for block, d in features.blocks(pairs):
        p = sigmoids(differences[block] / temperature)
        total += (d * (p * (1 - p) / temperature**2)[:, None]).T @ d
    return total


def prior_precision(eigenvalues: Floats, head: Floats) -> float:
    """The lambda with the maximum evidence. eigenvalues: of the information, float64 [hidden]. head: w*, float64 [hidden].

    log evidence = hidden / 2 log lambda - 1 / 2 sum log(g + lambda) - lambda / 2 |w*|^2 + constant. Its maximum is at
    lambda |w*|^2 = sum g / (g + lambda), where the right side is the number of parameters that the pairs determine. The right
    side falls with lambda, and the left side rises.
    """
    g, norm = np.maximum(eigenvalues, 0), float(head @ head)

    def excess(log_precision: float) -> float:
        precision = float(np.exp(log_precision))
        return precision * norm - float((g / (g + precision)).sum())

    # At hidden / |w*|^2 the left side is at least as large as the right side. The left side vanishes with lambda, the right side
    # does not.
    high = float(np.log(len(g) / norm))
    low = high - 1.0
    while excess(low) > 0 and low > -_MIN_LOG:
        low -= 1.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return float(np.exp(high))


@dataclass(frozen=True, slots=True)
class Posterior:
    """The posterior of the head.

    factor: A with S = H^-1 = A^T A, float64 [hidden, hidden], so that |A d| is the deviation of a feature difference d.
    precision: lambda. determined: sum g / (g + lambda), the number of directions of the head that the pairs determine.
    """

    factor: Floats
    precision: float
    determined: float


def posterior(info: Floats, head: Floats) -> Posterior:
    """The posterior of the head. info: the information of all pairs, float64 [hidden, hidden], symmetric."""
    g, vectors = np.linalg.eigh(info)
    g = np.maximum(g, 0)
    precision = prior_precision(g, head)
    factor = vectors.T / np.sqrt(g + precision)[:, None]
    return Posterior(factor, precision, float((g / (g + precision)).sum()))


def out_of_fold_deviations(features: Features, differences: Floats, folds: Ints, temperature: float, precision: float) -> Floats:
    """The deviation of every pair's reward difference, by the posterior of the other folds' pairs: float64 [n_pairs].

    temperature, precision: those of all pairs. Memory: a matrix [hidden, hidden] of float64 for each fold.
    """
    parts = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    infos = [information(features, part, differences, temperature) for part in parts]
    total = np.sum(infos, 0) + precision * np.eye(len(features.head))
    deviations = np.empty(len(differences))
    for part, info in zip(parts, infos, strict=True):
        factor = np.linalg.inv(np.linalg.cholesky(total - info))  # L^-1, with L L^T = H of the other folds
        for block, d in features.blocks(part):
            deviations[block] = np.linalg.norm(d @ factor.T, axis=1)
    return deviations

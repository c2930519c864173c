"""Best of n scored samples: exact expected values, without sampling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb

import numpy as np

from polar_rm.evaluation.statistics import Floats


def best_of_k(scores: Sequence[float], values: Sequence[float], sizes: Sequence[int]) -> Floats:
    """The expected value of the sample with the highest score among k, drawn without replacement from all n: float64
    [len(sizes)].

    The value is exact over all subsets, see :func:`pick_probabilities`. sizes: the values of k, from 1 to n.
    """
    expected: Floats = pick_probabilities(scores, sizes) @ np.asarray(values, np.float64)
    return expected


def pick_probabilities(scores: Sequence[float] | Floats, sizes: Sequence[int]) -> Floats:
    """The probability of each sample to be picked by score among k, drawn without replacement from all n: float64
    [len(sizes), n].

    Samples with equal scores are picked with equal probability. The share of subsets whose best score is s is the number of
    subsets of samples up to s minus that of samples below s, divided by the number of all subsets.

    sizes: the values of k, from 1 to n.
    """
    order = np.argsort(scores, kind="stable")
    ranked = np.asarray(scores, np.float64)[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    ends = np.r_[starts[1:], len(ranked)]
    below = _shares_of_subsets(len(ranked), tuple(sizes))
    shares = (below[:, ends] - below[:, starts]) / (ends - starts)
    probabilities = np.empty((len(sizes), len(ranked)))
    probabilities[:, order] = np.repeat(shares, ends - starts, axis=1)
    return probabilities


@lru_cache(maxsize=64)
def _shares_of_subsets(n: int, sizes: tuple[int, ...]) -> Floats:
    """The share of the subsets of size k whose samples are all among the first m of n: float64 [len(sizes), n + 1]."""
    return np.array([[comb(m, k) / comb(n, k) for m in range(n + 1)] for k in sizes])


def kl_of_best_of(sizes: Sequence[int]) -> Floats:
    """The divergence of best of n from the policy itself, ``ln n - (n - 1) / n``, in nats: float64 [len(sizes)].

    This is the usual formula (Stiennon et al. 2020, appendix G.3). It is exact for samples that never repeat and a score without
    ties; otherwise it is an upper bound (Beirami et al. 2024, arXiv 2401.01879).
    """
    n = np.asarray(sizes, np.float64)
    divergence: Floats = np.log(n) - (n - 1) / n
    return divergence


def area_under_roc(scores: Sequence[float], right: Sequence[bool]) -> float:
    """The probability that a right sample scores above a wrong one, a tie counting half (the area under the ROC curve).

    There must be a right one and a wrong one.
    """
    values, labels = np.asarray(scores, np.float64), np.asarray(right, bool)
    wrong = np.sort(values[~labels])
    below = np.searchsorted(wrong, values[labels], "left")
    up_to = np.searchsorted(wrong, values[labels], "right")
    return float((below + up_to).sum() / (2 * len(below) * len(wrong)))

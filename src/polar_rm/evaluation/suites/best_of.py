"""Best of k among n scored samples: exact expected values, without sampling."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from polar_rm.evaluation.statistics import Floats


def best_of_k(scores: Sequence[float], values: Sequence[float], sizes: Sequence[int]) -> Floats:
    """The expected value of the sample with the highest score among k, drawn without replacement from all n: float64
    [len(sizes)].

    The value is exact over all subsets. Samples with equal scores are picked with equal probability. The share of subsets whose
    best score is s is the number of subsets of samples up to s minus that of samples below s, divided by the number of all
    subsets.

    sizes: the values of k, from 1 to n.
    """
    order = np.argsort(scores, kind="stable")
    ranked, ranked_values = np.asarray(scores, np.float64)[order], np.asarray(values, np.float64)[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]).tolist()
    ends = [*starts[1:], len(ranked)]
    means = [ranked_values[start:end].mean() for start, end in zip(starts, ends, strict=True)]
    expected = []
    for k in sizes:
        total = comb(len(ranked), k)
        shares = [(comb(end, k) - comb(start, k)) / total for start, end in zip(starts, ends, strict=True)]
        expected.append(float(np.dot(shares, means)))
    return np.array(expected)


def area_under_roc(scores: Sequence[float], right: Sequence[bool]) -> float:
    """The area under the ROC curve: the probability that a right sample scores higher than a wrong one; a tie counts half.

    There must be at least one right and one wrong sample.
    """
    values, labels = np.asarray(scores, np.float64), np.asarray(right, bool)
    wrong = np.sort(values[~labels])
    below = np.searchsorted(wrong, values[labels], "left")
    up_to = np.searchsorted(wrong, values[labels], "right")
    return float((below + up_to).sum() / (2 * len(below) * len(wrong)))

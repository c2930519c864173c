"""Best of k among n scored samples: what picking by score yields, without drawing."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from polar_rm.evaluation.statistics import Floats


def best_of_k(scores: Sequence[float], values: Sequence[float], sizes: Sequence[int]) -> Floats:
    """Expected value of the sample with the highest score among k, drawn without repetition from all n: float64 [len(sizes)].

    Exact, over all subsets; of samples with one score each is as likely to be picked. Below, of those whose best score is s:
    (subsets of samples up to s) minus (subsets of samples below s), over all subsets.

    sizes: the k, from 1 to n.
    """
    order = np.argsort(scores, kind="stable")
    ranked, worth = np.asarray(scores, np.float64)[order], np.asarray(values, np.float64)[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]).tolist()
    ends = [*starts[1:], len(ranked)]
    means = [worth[start:end].mean() for start, end in zip(starts, ends, strict=True)]
    expected = []
    for k in sizes:
        total = comb(len(ranked), k)
        shares = [(comb(end, k) - comb(start, k)) / total for start, end in zip(starts, ends, strict=True)]
        expected.append(float(np.dot(shares, means)))
    return np.array(expected)


def area_under_roc(scores: Sequence[float], right: Sequence[bool]) -> float:
    """The probability that a right sample scores above a wrong one, a tie counting half (the area under the ROC curve).

    There must be a right one and a wrong one.
    """
    values, labels = np.asarray(scores, np.float64), np.asarray(right, bool)
    wrong = np.sort(values[~labels])
    below = np.searchsorted(wrong, values[labels], "left")
    up_to = np.searchsorted(wrong, values[labels], "right")
    return float((below + up_to).sum() / (2 * len(below) * len(wrong)))

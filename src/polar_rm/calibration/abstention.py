"""The gain from abstention: the accuracy of the most certain pairs."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from polar_rm.evaluation.statistics import RESAMPLES, Floats, Ints, resampled_means

COVERAGES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)


class AbstentionRow(TypedDict):
    """The most certain part of all pairs. gain: its accuracy minus that of all pairs, on the same resamples of prompts."""

    coverage: float
    n_pairs: int
    accuracy: float
    ci95: list[float]
    gain: float
    gain_ci95: list[float]
    accuracy_by_difference: float  # accuracy if the pairs with the largest differences were kept, ignoring their deviations


def certainty(differences: Floats, temperatures: Floats, deviations: Floats) -> Floats:
    """The certainty of the order of each pair: the logit of the likelier order, float64 [n_pairs], >= 0.

    The logit d / T of an exact difference is moderated by the deviation s of the difference: d / sqrt(T^2 + pi s^2 / 8), the
    probit approximation of the mean probability (MacKay 1992).
    """
    logits: Floats = np.abs(differences) / np.sqrt(temperatures**2 + np.pi / 8 * deviations**2)
    return logits


def abstention_curve(
    differences: Floats, certainties: Floats, prompts: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[AbstentionRow]:
    """A row for each of :data:`COVERAGES`, with 95% intervals by bootstrap over prompts.

    differences: better minus worse of every pair. certainties: of every pair, see :func:`certainty`. prompts: int64 [n_pairs].
    The kept pairs are chosen once, from all pairs. Resamples that contain none of them are left out.
    """
    correct = (np.sign(differences) + 1) / 2
    order, by_difference = np.argsort(-certainties, kind="stable"), np.argsort(-np.abs(differences), kind="stable")
    counts = [max(1, round(coverage * len(order))) for coverage in COVERAGES]
    kept = np.zeros((len(order), len(COVERAGES)))
    for column, count in enumerate(counts):
        kept[order[:count], column] = 1
    means = resampled_means(np.column_stack([kept * correct[:, None], kept]), prompts, resamples=resamples, seed=seed)
    with np.errstate(invalid="ignore"):
        accuracies = means[:, : len(COVERAGES)] / means[:, len(COVERAGES) :]
    rows: list[AbstentionRow] = []
    for column, (coverage, count) in enumerate(zip(COVERAGES, counts, strict=True)):
        accuracy = float(correct[order[:count]].mean())
        rows.append(
            {
                "coverage": coverage,
                "n_pairs": count,
                "accuracy": accuracy,
                "ci95": _interval(accuracies[:, column]),
                "gain": accuracy - float(correct.mean()),
                "gain_ci95": _interval(accuracies[:, column] - accuracies[:, 0]),
                "accuracy_by_difference": float(correct[by_difference[:count]].mean()),
            }
        )
    return rows


def _interval(values: Floats) -> list[float]:
    bounds: list[float] = np.nanquantile(values, [0.025, 0.975]).tolist()
    return bounds

"""Rows of results: accuracies and paired differences, with intervals over prompts, for each seed and for the mean of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polar_rm.evaluation.pairs import Pairs
from polar_rm.evaluation.statistics import Floats, Ints, bootstrap_intervals, listed, paired_difference
from proof.steps import Row

Key = tuple[str, int | None]
"""A contender and its seed; None for a contender without one, and for the mean of seeds."""


def by_contender(correct: Mapping[Key, Floats]) -> dict[str, list[Floats]]:
    """The values of all seeds of each contender."""
    grouped: dict[str, list[Floats]] = {}
    for (name, _), values in correct.items():
        grouped.setdefault(name, []).append(values)
    return grouped


def accuracies(correct: Mapping[Key, Floats], pairs: Pairs, rows: Ints, about: Mapping[str, Any]) -> list[Row]:
    """Accuracy overall and by group, of each seed and of their mean.

    correct: float64 [n_pairs], 1, 0.5 or 0. rows: indices of the pairs to use, int64 [n].
    """
    groups = {"overall": rows} | {name: rows[pairs.groups[rows] == code] for code, name in enumerate(pairs.group_names)}
    means = {(name, None): np.mean(values, axis=0) for name, values in by_contender(correct).items() if len(values) > 1}
    counts = {name: len(values) for name, values in by_contender(correct).items()}
    made: list[Row] = []
    for group, chosen in groups.items():
        if not len(chosen):
            continue
        prompts = pairs.prompts[chosen]
        for (name, seed), values in {**correct, **means}.items():
            [bounds] = bootstrap_intervals(values[chosen][:, None], prompts)
            made.append(
                {
                    **about,
                    "measure": "accuracy",
                    "group": group,
                    "contender": name,
                    "seed": seed,
                    "seeds": counts[name] if (name, seed) in means else 1,
                    "value": float(values[chosen].mean()),
                    "ci95": listed(bounds),
                    "n_pairs": len(chosen),
                    "n_prompts": len(np.unique(prompts)),
                }
            )
    return made


def paired(
    correct: Mapping[Key, Floats], pairs: Pairs, rows: Ints, couples: Sequence[tuple[str, str]], about: Mapping[str, Any]
) -> list[Row]:
    """Differences of accuracy on the same pairs: for each seed that both contenders have, and for the means of their seeds."""
    made: list[Row] = []
    grouped = by_contender(correct)
    for first, second in couples:
        if first not in grouped or second not in grouped or not len(rows):
            continue
        seeds = {seed for name, seed in correct if name == first} & {seed for name, seed in correct if name == second}
        values = {seed: (correct[first, seed], correct[second, seed]) for seed in sorted(seeds - {None}, key=str)}
        values[None] = (np.mean(grouped[first], axis=0), np.mean(grouped[second], axis=0))
        for seed, (ours, theirs) in values.items():
            found = paired_difference(ours[rows], theirs[rows], pairs.prompts[rows])
            made.append(
                {
                    **about,
                    "measure": "difference",
                    "group": "overall",
                    "first": first,
                    "second": second,
                    "seed": seed,
                    "seeds": 1 if seed is not None else max(len(grouped[first]), len(grouped[second])),
                    "value": found.difference,
                    "ci95": listed(found.ci95),
                    "n_pairs": found.n_pairs,
                    "n_prompts": found.n_prompts,
                }
            )
    return made

"""Two evaluations of the same held-out prompts: paired differences with intervals, and what they mean in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from polar_rm.common.extras import needs
from polar_rm.records import prompt_key
from polar_rm.reporting.words import interval
from polar_rm.rft.evaluations import REWARD, Row


class HeldOutDifference(TypedDict):
    """The values of one judge under two policies, as means over completions with 95% intervals by bootstrap over prompts.

    difference: second minus first, paired by prompt and sample. verdict: better, worse or undecided, by whether the interval of
    the difference contains 0. sentence: all that in words.
    """

    first: float
    second: float
    first_ci95: list[float] | None
    second_ci95: list[float] | None
    difference: float
    ci95: list[float] | None
    verdict: str
    n_prompts: int
    sentence: str


def compare(
    first: Sequence[Row], second: Sequence[Row], names: tuple[str, str], *, seed: int = 0
) -> dict[str, HeldOutDifference]:
    """The differences between two evaluations by judge, and of the run's own reward if both have it.

    names: of the two policies, for the sentences.

    Raises:
        ValueError: the two are not of the same prompts and samples.
    """
    with needs("rft", "the evaluation of polar rft"):
        from polar_rm.evaluation.accuracy import differences_of
        from polar_rm.evaluation.statistics import RESAMPLES, listed

    if [(row["number"], row["sample"]) for row in first] != [(row["number"], row["sample"]) for row in second]:
        raise ValueError("two evaluations of different prompts")
    by_key: dict[str, int] = {}
    prompts = np.array([by_key.setdefault(prompt_key(row["prompt"]), len(by_key)) for row in first], np.int64)
    results: dict[str, HeldOutDifference] = {}
    for name in judged_by(first, second):
        values = {label: np.array(column(rows, name), np.float64) for label, rows in (("second", second), ("first", first))}
        # Bounds of a judge's values are known for checkers alone; they matter only where all prompts agree.
        extremes = min(0.0, *(each.min() for each in values.values())), max(1.0, *(each.max() for each in values.values()))
        intervals, [found] = differences_of(values, prompts, resamples=RESAMPLES, seed=seed, extremes=extremes)
        verdict = {"first": "better", "second": "worse"}.get(found["verdict"], "undecided")
        results[name] = {
            "first": float(values["first"].mean()),
            "second": float(values["second"].mean()),
            "first_ci95": listed(intervals["first"]),
            "second_ci95": listed(intervals["second"]),
            "difference": found["difference"],
            "ci95": found["ci95"],
            "verdict": verdict,
            "n_prompts": len(by_key),
            "sentence": "",
        }
        results[name]["sentence"] = _sentence(name, results[name], names)
    return results


def judged_by(*evaluations: Sequence[Row]) -> list[str]:
    """The judges of all evaluations, and the run's own reward last, if all have it."""
    names = list(evaluations[0][0]["scores"])
    return [*names, REWARD] if all(row["reward"] is not None for rows in evaluations for row in rows) else names


def column(rows: Sequence[Row], name: str) -> list[float]:
    """The values of a judge, or of the reward."""
    return [row["reward"] if name == REWARD else row["scores"][name] for row in rows]


def _sentence(name: str, found: Mapping[str, Any], names: tuple[str, str]) -> str:
    before, after = names
    bounds = interval(found["ci95"], "+.3f", missing="no interval")
    numbers = f"{name}: {found['first']:.3f} {before}, {found['second']:.3f} {after}, a difference of {found['difference']:+.3f}"
    meaning = {
        "better": f"{after} is better on held-out prompts",
        "worse": f"{after} is worse on held-out prompts",
        "undecided": "these prompts don't show which is better",
    }[found["verdict"]]
    return f"{numbers} (95% {bounds}, {found['n_prompts']:,} prompts): {meaning}"

"""Measures how contenders use their references: the accuracy with every reference protocol on the same pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, TypedDict

import numpy as np

from polar_rm.common.progress import Progress, silent
from polar_rm.evaluation.contenders.base import Contender
from polar_rm.evaluation.pairs import Pairs, PairScores, Scores
from polar_rm.evaluation.references import ReferenceMode, apply_reference_protocol, swapped_candidate
from polar_rm.evaluation.scoring import Read, score_streams
from polar_rm.evaluation.statistics import RESAMPLES, Floats, Ints, bootstrap_intervals, listed, paired_difference
from polar_rm.records import Comparison
from polar_rm.reporting.measures import Measure
from polar_rm.reporting.tables import Table
from polar_rm.reporting.words import interval, measure
from polar_rm.rewards.combining import Combine

PROTOCOLS: tuple[ReferenceMode, ...] = ("given", "empty", "shuffled", "swapped")
"""The protocols that ``--reference all`` compares, in this order."""


class Gap(TypedDict):
    """The accuracy with one protocol minus that with another on the same pairs.

    ci95: the interval of the difference by paired bootstrap over prompts; None for a single prompt.
    """

    difference: float
    ci95: list[float] | None
    n_pairs: int


class ContenderUse(TypedDict):
    """How one contender uses its references."""

    takes_reference: bool  # if false, it was scored once, without references
    accuracy: dict[ReferenceMode, Measure]
    gain: Gap | None  # given - empty; None if it takes no reference, like the next three
    other_reference: Gap | None  # given - shuffled
    adherence: Gap | None  # given - swapped
    adherence_elsewhere: Gap | None  # on the pairs whose worse answer is not the swapped reference; None without such pairs
    sentence: str


class ReferenceUse(TypedDict):
    """How all contenders use their references. swapped_pairs: the number of pairs whose worse answer is the swapped reference."""

    swapped_pairs: int
    contenders: dict[str, ContenderUse]


def score_protocols(
    contenders: Sequence[Contender],
    comparisons: Iterable[Comparison],
    pairs: Pairs,
    *,
    seed: int = 0,
    combine: Combine = "mean",
    progress: Progress = silent,
) -> dict[str, dict[ReferenceMode, Scores]]:
    """The scores of all contenders with every protocol, by name in their order.

    Contenders that take no reference are scored only with ``empty``. pairs: the pairs of an earlier pass.

    Raises:
        ScoreError, PolarError: see :func:`score_streams`.
    """
    sizes = pairs.n_comparisons, pairs.n_candidates
    streams: dict[str, tuple[Read, tuple[int, int]]] = {
        mode: (partial(apply_reference_protocol, comparisons, mode, seed=seed), sizes) for mode in PROTOCOLS
    }
    with_references = [contender for contender in contenders if contender.reads_references]
    others = [contender for contender in contenders if not contender.reads_references]
    scores = score_streams(with_references, streams, combine=combine, progress=progress)
    scores |= score_streams(others, {"empty": streams["empty"]}, combine=combine, progress=progress)
    names = [contender.name for contender in contenders]
    return {name: {mode: scores[name][mode] for mode in PROTOCOLS if mode in scores[name]} for name in names}


def swapped_pairs(comparisons: Iterable[Comparison], pairs: Pairs, *, seed: int = 0) -> Ints:
    """The indices of the pairs whose worse answer is the reference of ``swapped``, int64."""
    references, first = np.empty(pairs.n_comparisons, np.int64), 0
    for number, comparison in enumerate(comparisons, 1):
        references[number - 1] = first + swapped_candidate(comparison, number, seed=seed)
        first += len(comparison.candidates)
    return np.flatnonzero(pairs.worse == references[pairs.comparisons])


def reference_use(
    scores: Mapping[str, Mapping[ReferenceMode, Scores]],
    pairs: Pairs,
    copies: Ints,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ReferenceUse:
    """Accuracies, gain and adherence of all contenders, with a sentence that explains them.

    scores: by contender and protocol, see :func:`score_protocols`. copies: see :func:`swapped_pairs`.
    """
    elsewhere = np.setdiff1d(np.arange(len(pairs)), copies)
    uses: dict[str, ContenderUse] = {}
    for name, protocols in scores.items():
        correct = {mode: PairScores(pairs, {name: values}).correct(name) for mode, values in protocols.items()}
        bounds = bootstrap_intervals(np.column_stack(list(correct.values())), pairs.prompts, resamples=resamples, seed=seed)
        accuracy: dict[ReferenceMode, Measure] = {
            mode: {"accuracy": float(values.mean()), "ci95": listed(ci95)}
            for (mode, values), ci95 in zip(correct.items(), bounds, strict=True)
        }

        takes_reference, all_pairs = "given" in protocols, np.arange(len(pairs))
        gap = partial(_gap, correct, pairs.prompts, resamples=resamples, seed=seed)
        use: ContenderUse = {
            "takes_reference": takes_reference,
            "accuracy": accuracy,
            "gain": gap("empty", all_pairs) if takes_reference else None,
            "other_reference": gap("shuffled", all_pairs) if takes_reference else None,
            "adherence": gap("swapped", all_pairs) if takes_reference else None,
            "adherence_elsewhere": gap("swapped", elsewhere) if takes_reference and len(elsewhere) else None,
            "sentence": "",
        }
        uses[name] = {**use, "sentence": sentence(name, use)}
    return {"swapped_pairs": len(copies), "contenders": uses}


def _gap(
    correct: Mapping[ReferenceMode, Floats], prompts: Ints, mode: ReferenceMode, rows: Ints, *, resamples: int, seed: int
) -> Gap:
    values = correct["given"][rows], correct[mode][rows]
    paired = paired_difference(*values, prompts[rows], resamples=resamples, seed=seed)
    return {"difference": paired.difference, "ci95": listed(paired.ci95), "n_pairs": len(rows)}


def sentence(name: str, use: ContenderUse) -> str:
    """A sentence about a contender's gain and adherence."""
    gain, adherence = use["gain"], use["adherence"]
    if gain is None or adherence is None:
        return f"{name} does not take a reference: it was scored without one"
    numbers = f"gain {gap_text(gain)}, adherence {gap_text(adherence)}"
    match _sign(gain), _sign(adherence):
        case "above", "above":
            return f"{name} uses its reference and gains from it: {numbers}"
        case "above", _:
            return f"{name} gains from its reference, but as much from a worse answer in place of it: {numbers}"
        case "below", _:
            return f"{name} is worse with its reference than without one: {numbers}"
        case _, "above":
            return f"{name} follows its reference, but there is no evidence that it gains from it: {numbers}"
        case _, "below":
            return f"{name} is better with a worse answer as its reference: {numbers}"
    return f"there is no evidence that {name} uses its reference: {numbers}"


def _sign(gap: Gap) -> Literal["above", "below", "open"]:
    """The side of 0 on which the interval of a difference is; open if it contains 0."""
    if gap["ci95"] is None or gap["ci95"][0] <= 0 <= gap["ci95"][1]:
        return "open"
    return "above" if gap["ci95"][0] > 0 else "below"


def gap_text(gap: Gap) -> str:
    """A difference with its interval, such as ``+0.120 [+0.080, +0.160]``."""
    return f"{gap['difference']:+.3f} {interval(gap['ci95'], '+.3f', missing='(no interval)')}"


def use_table(use: ReferenceUse) -> Table:
    """A row for each contender and protocol."""
    rows = []
    for name, numbers in use["contenders"].items():
        gaps = {"empty": ("gain", numbers["gain"]), "shuffled": ("", numbers["other_reference"])}
        gaps["swapped"] = ("adherence", numbers["adherence"])
        for mode, accuracy in numbers["accuracy"].items():
            gap_name, gap = gaps.get(mode, ("", None))
            reference = mode if numbers["takes_reference"] else "does not take a reference"
            rows.append([name, reference, measure(accuracy), gap_text(gap) if gap else "", gap_name if gap else ""])
    return Table("accuracy by reference", ["contender", "reference", "accuracy", "given minus it", "called"], rows)


def use_sentences(use: ReferenceUse, n_pairs: int) -> list[str]:
    """A sentence about each contender, and about the pairs whose worse answer is the swapped reference."""
    lines = [numbers["sentence"] for numbers in use["contenders"].values()]
    copies = (
        f"in {use['swapped_pairs']:,} of {n_pairs:,} pairs the swapped reference is the worse answer itself: that one is a copy"
    )
    elsewhere = [
        f"{name}: adherence {gap_text(gap)} in the {gap['n_pairs']:,} other pairs"
        for name, numbers in use["contenders"].items()
        if (gap := numbers["adherence_elsewhere"])
    ]
    return [*lines, copies, *elsewhere]

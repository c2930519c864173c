"""Does a contender read its reference? Its accuracy with every protocol of references, on the same pairs."""

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

PROTOCOLS: tuple[ReferenceMode, ...] = ("given", "empty", "shuffled", "swapped")
"""What ``--reference all`` compares, in this order."""


class Gap(TypedDict):
    """The accuracy with one protocol minus that with another, on the same pairs. ``ci95`` is of the difference itself, paired by
    prompts; None for a single prompt."""

    difference: float
    ci95: list[float] | None
    n_pairs: int


class ContenderUse(TypedDict):
    """What one contender makes of its references."""

    takes_reference: bool  # if not, it was asked without any, once
    accuracy: dict[ReferenceMode, Measure]
    gain: Gap | None  # given - empty; None of one that takes no reference, as the next three
    other_reference: Gap | None  # given - shuffled
    adherence: Gap | None  # given - swapped
    adherence_elsewhere: Gap | None  # of the pairs whose worse answer is not the swapped reference itself; None if there are none
    sentence: str


class ReferenceUse(TypedDict):
    """All contenders. swapped_pairs: pairs whose worse answer is the swapped reference itself, and so its copy."""

    swapped_pairs: int
    contenders: dict[str, ContenderUse]


def score_protocols(
    contenders: Sequence[Contender],
    comparisons: Iterable[Comparison],
    pairs: Pairs,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, dict[ReferenceMode, Scores]]:
    """The scores of all contenders, by name in their order, with every protocol; of those that take no reference with ``empty``
    alone. pairs: what an earlier pass saw.

    Raises:
        ScoreError, PolarError: as of :func:`score_streams`.
    """
    sizes = pairs.n_comparisons, pairs.n_candidates
    streams: dict[str, tuple[Read, tuple[int, int]]] = {
        mode: (partial(apply_reference_protocol, comparisons, mode, seed=seed), sizes) for mode in PROTOCOLS
    }
    takers = [contender for contender in contenders if contender.reads_references]
    others = [contender for contender in contenders if not contender.reads_references]
    found = score_streams(takers, streams, progress=progress)
    found |= score_streams(others, {"empty": streams["empty"]}, progress=progress)
    return {each.name: {mode: found[each.name][mode] for mode in PROTOCOLS if mode in found[each.name]} for each in contenders}


def swapped_pairs(comparisons: Iterable[Comparison], pairs: Pairs, *, seed: int = 0) -> Ints:
    """The pairs whose worse answer is the one that ``swapped`` takes as reference: their indices, int64."""
    taken, first = np.empty(pairs.n_comparisons, np.int64), 0
    for number, comparison in enumerate(comparisons, 1):
        taken[number - 1] = first + swapped_candidate(comparison, number, seed=seed)
        first += len(comparison.candidates)
    return np.flatnonzero(pairs.worse == taken[pairs.comparisons])


def reference_use(
    scores: Mapping[str, Mapping[ReferenceMode, Scores]],
    pairs: Pairs,
    copies: Ints,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ReferenceUse:
    """Accuracies, gain and adherence of all contenders, and what they mean.

    scores: by contender and protocol, see :func:`score_protocols`. copies: see :func:`swapped_pairs`.
    """
    elsewhere = np.setdiff1d(np.arange(len(pairs)), copies)
    found: dict[str, ContenderUse] = {}
    for name, protocols in scores.items():
        correct = {mode: PairScores(pairs, {name: each}).correct(name) for mode, each in protocols.items()}
        bounds = bootstrap_intervals(np.column_stack(list(correct.values())), pairs.prompts, resamples=resamples, seed=seed)
        accuracy: dict[ReferenceMode, Measure] = {
            mode: {"accuracy": float(values.mean()), "ci95": listed(ci95)}
            for (mode, values), ci95 in zip(correct.items(), bounds, strict=True)
        }

        takes, everywhere = "given" in protocols, np.arange(len(pairs))
        gap = partial(_gap, correct, pairs.prompts, resamples=resamples, seed=seed)
        use: ContenderUse = {
            "takes_reference": takes,
            "accuracy": accuracy,
            "gain": gap("empty", everywhere) if takes else None,
            "other_reference": gap("shuffled", everywhere) if takes else None,
            "adherence": gap("swapped", everywhere) if takes else None,
            "adherence_elsewhere": gap("swapped", elsewhere) if takes and len(elsewhere) else None,
            "sentence": "",
        }
        found[name] = {**use, "sentence": sentence(name, use)}
    return {"swapped_pairs": len(copies), "contenders": found}


def _gap(
    correct: Mapping[ReferenceMode, Floats], prompts: Ints, mode: ReferenceMode, rows: Ints, *, resamples: int, seed: int
) -> Gap:
    values = correct["given"][rows], correct[mode][rows]
    paired = paired_difference(*values, prompts[rows], resamples=resamples, seed=seed)
    return {"difference": paired.difference, "ci95": listed(paired.ci95), "n_pairs": len(rows)}


def sentence(name: str, use: ContenderUse) -> str:
    """What gain and adherence say of a contender."""
    gain, adherence = use["gain"], use["adherence"]
    if gain is None or adherence is None:
        return f"{name} does not take a reference: it was asked without one"
    numbers = f"gain {gap_text(gain)}, adherence {gap_text(adherence)}"
    match _sign(gain), _sign(adherence):
        case "above", "above":
            return f"{name} reads its reference, and is better by it: {numbers}"
        case "above", _:
            return f"{name} is better with its reference, but a worse answer in its place does as well: {numbers}"
        case "below", _:
            return f"{name} is worse with its reference than without one: {numbers}"
        case _, "above":
            return f"{name} follows its reference, but nothing shows that it is better by it: {numbers}"
        case _, "below":
            return f"{name} is better with a worse answer as its reference: {numbers}"
    return f"nothing shows that {name} uses its reference: {numbers}"


def _sign(gap: Gap) -> Literal["above", "below", "open"]:
    """On which side of 0 the interval of a difference lies."""
    if gap["ci95"] is None or gap["ci95"][0] <= 0 <= gap["ci95"][1]:
        return "open"
    return "above" if gap["ci95"][0] > 0 else "below"


def gap_text(gap: Gap) -> str:
    """A difference with its interval, such as ``+0.120 [+0.080, +0.160]``."""
    return f"{gap['difference']:+.3f} {interval(gap['ci95'], '+.3f', missing='(no interval)')}"


def use_table(use: ReferenceUse) -> Table:
    """A row for each contender and protocol."""
    rows = []
    for name, found in use["contenders"].items():
        gaps = {"empty": ("gain", found["gain"]), "shuffled": ("", found["other_reference"])}
        gaps["swapped"] = ("adherence", found["adherence"])
        for mode, each in found["accuracy"].items():
            word, gap = gaps.get(mode, ("", None))
            reference = mode if found["takes_reference"] else "does not take a reference"
            rows.append([name, reference, measure(each), gap_text(gap) if gap else "", word if gap else ""])
    return Table("accuracy by reference", ["contender", "reference", "accuracy", "given minus it", "called"], rows)


def use_sentences(use: ReferenceUse, n_pairs: int) -> list[str]:
    """One line a contender, and how often the swapped reference is the worse answer itself."""
    told = [found["sentence"] for found in use["contenders"].values()]
    copies = (
        f"in {use['swapped_pairs']:,} of {n_pairs:,} pairs the swapped reference is the worse answer itself: that one is a copy"
    )
    elsewhere = [
        f"{name}: adherence {gap_text(gap)} in the {gap['n_pairs']:,} other pairs"
        for name, found in use["contenders"].items()
        if (gap := found["adherence_elsewhere"])
    ]
    return [*told, copies, *elsewhere]

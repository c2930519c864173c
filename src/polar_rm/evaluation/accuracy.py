"""Pairwise accuracy of any scorer next to the baselines, on the same pairs and through the same code."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee

import numpy as np
from numpy.typing import NDArray

from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError, ScoreError
from polar_rm.evaluation.baselines import BASELINES, make_baselines
from polar_rm.evaluation.references import ComparisonScorer, ReferenceMode, apply_reference_protocol, prompt_key
from polar_rm.evaluation.report import SCHEMA, BaselineMeasure, EvaluationReport, GroupReport
from polar_rm.evaluation.statistics import (
    RESAMPLES,
    Floats,
    Ints,
    PairedDifference,
    bootstrap_intervals,
    paired_difference,
)
from polar_rm.evaluation.survey import NO_GROUP, Survey, group_of, survey
from polar_rm.records import Comparison

# Below this many prompts the bootstrap's interval is noticeably too narrow.
_FEW_PROMPTS = 30


@dataclass(frozen=True, slots=True)
class PairScores:
    """Numbers of every ordered pair, in the order of the data; texts are not kept.

    differences: scorer (``model`` and the baselines) -> better minus worse score, float64 [n_pairs].
    prompts, groups: which prompt and which group a pair belongs to, int64 [n_pairs]; ``group_names`` names the groups.
    """

    differences: dict[str, Floats]
    prompts: Ints
    groups: Ints
    group_names: list[str]

    def correct(self, name: str = "model") -> Floats:
        """1 where the better candidate scores higher, 0.5 for a tie, 0 otherwise: float64 [n_pairs]."""
        values: Floats = (np.sign(self.differences[name]) + 1) / 2
        return values


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """report: what is written to a file. pairs: what it was computed from. fingerprint: names the pairs."""

    report: EvaluationReport
    pairs: PairScores
    fingerprint: str

    def minus(self, other: EvaluationResult, *, resamples: int = RESAMPLES, seed: int = 0) -> PairedDifference:
        """This model's accuracy minus another's on the same pairs, with the interval of the difference.

        Raises:
            PolarError: the other result is about other comparisons, or about the same in another order.
        """
        if self.fingerprint != other.fingerprint:
            raise PolarError("a paired difference needs two evaluations of the same comparisons in the same order")
        first, second = self.pairs.correct(), other.pairs.correct()
        return paired_difference(first, second, self.pairs.prompts, resamples=resamples, seed=seed)


def evaluate(
    scorer: ComparisonScorer,
    comparisons: Iterable[Comparison],
    *,
    by: str | None = None,
    reference: ReferenceMode = "given",
    baselines: Sequence[str] = tuple(BASELINES),
    seed: int = 0,
    resamples: int = RESAMPLES,
    model: str | None = None,
    encoder_hash: str | None = None,
    progress: Progress = silent,
) -> EvaluationResult:
    """Accuracy over all ordered pairs (ties count half), Bradley-Terry loss, 95% intervals by bootstrap over prompts.

    comparisons: read twice (checks and baselines first, then scoring), so a list or ``ComparisonFiles``, no generator.
        Memory grows with the number of pairs, 40 bytes each, not with the texts.
    by: metadata key whose values are also reported separately; dots look into nested ones (``meta.language``).
    reference: see :func:`apply_reference_protocol`. seed: of the bootstrap and of shuffled references.
    model, encoder_hash: copied into the report. progress: called with comparisons done and their total.

    Raises:
        PolarError: nothing to evaluate, a missing reference, an unknown ``by`` or baseline; raised before any scoring.
        ScoreError: a score is not finite, or not one score per candidate came back.
    """
    if iter(comparisons) is comparisons:
        raise PolarError("comparisons are read twice: pass a list or ComparisonFiles instead of a generator")
    fitted = make_baselines(baselines)
    seen = survey(comparisons, by=by, reference=reference, baselines=fitted, seed=seed)
    stream = apply_reference_protocol(comparisons, reference, seed=seed)
    pairs = score_pairs({"model": scorer, **fitted}, stream, by=by, total=seen.n_comparisons, progress=progress)
    everything = _measure(pairs, np.arange(seen.n_pairs), resamples, seed)
    groups = {
        name: _measure(pairs, np.flatnonzero(pairs.groups == code), resamples, seed)
        for code, name in enumerate(pairs.group_names if by is not None else [])
    }
    report: EvaluationReport = {
        "schema": SCHEMA,
        **everything,
        "by": groups,
        "encoder_hash": encoder_hash,
        "model": model,
        "data": [],
        "reference": {"mode": reference, "reference_equals_candidate": seen.reference_equals_candidate},
        "warnings": _warnings(seen, everything["n_prompts"], [group["n_prompts"] for group in groups.values()], by),
    }
    return EvaluationResult(report, pairs, seen.fingerprint)


def score_pairs(
    scorers: Mapping[str, ComparisonScorer],
    comparisons: Iterable[Comparison],
    *,
    by: str | None = None,
    total: int = 0,
    progress: Progress = silent,
) -> PairScores:
    """Score one stream with several scorers, and keep the score difference of every ordered pair.

    The scorers advance together: only as many comparisons are held as the one with the largest batches asks for.

    Raises:
        ScoreError: a score is not finite, or not one score per candidate came back; the message names the comparison.
    """
    stream, *copies = tee(comparisons, 1 + len(scorers))
    answers = {name: scorers[name].score_comparisons(copy) for name, copy in zip(scorers, copies, strict=True)}
    differences = {name: array("d") for name in scorers}
    prompts, groups = array("q"), array("q")
    prompt_codes: dict[str, int] = {}
    group_codes: dict[str, int] = {}
    for number, comparison in enumerate(stream, 1):
        ordered = comparison.pairs()
        for name, answer in answers.items():
            scores: list[float] = next(answer, [])
            _check(scores, len(comparison.candidates), f"{name}: comparison {number}")
            differences[name].extend(scores[better] - scores[worse] for better, worse in ordered)
        if ordered:
            prompt = prompt_codes.setdefault(prompt_key(comparison), len(prompt_codes))
            group = group_codes.setdefault(NO_GROUP if by is None else group_of(comparison, by), len(group_codes))
            prompts.extend([prompt] * len(ordered))
            groups.extend([group] * len(ordered))
        progress("evaluate", number, total)
    return PairScores(
        {name: np.array(values, np.float64) for name, values in differences.items()},
        np.array(prompts, np.int64),
        np.array(groups, np.int64),
        list(group_codes),
    )


def _check(scores: Sequence[float], candidates: int, where: str) -> None:
    if len(scores) != candidates:
        raise ScoreError(f"{where} has {candidates} candidates but got {len(scores)} scores")
    if not all(map(math.isfinite, scores)):
        raise ScoreError(f"{where} has the scores {list(scores)}: only finite scores can be compared")


def _measure(pairs: PairScores, rows: NDArray[np.int64], resamples: int, seed: int) -> GroupReport:
    """The numbers of some pairs. rows: their positions, int64 [n]."""
    prompts = pairs.prompts[rows]
    correct = {name: pairs.correct(name)[rows] for name in pairs.differences}
    model = correct.pop("model")
    columns = np.column_stack([model, *correct.values(), *(model - baseline for baseline in correct.values())])
    found = bootstrap_intervals(columns, prompts, resamples=resamples, seed=seed)
    intervals = [None if interval is None else list(interval) for interval in found]
    baselines: dict[str, BaselineMeasure] = {}
    for index, (name, baseline) in enumerate(correct.items(), 1):
        baselines[name] = {
            "accuracy": float(baseline.mean()),
            "ci95": intervals[index],
            "difference": float((model - baseline).mean()),
            "difference_ci95": intervals[index + len(correct)],
        }
    return {
        "n_pairs": len(rows),
        "n_prompts": len(np.unique(prompts)),
        "accuracy": float(model.mean()),
        "ci95": intervals[0],
        "loss": float(np.logaddexp(0, -pairs.differences["model"][rows]).mean()),
        "baselines": baselines,
    }


def _warnings(seen: Survey, prompts: int, prompts_by_group: Sequence[int], by: str | None) -> list[str]:
    lines = []
    if copies := seen.reference_equals_candidate:
        lines.append(f"{copies:,} comparisons have a reference that is equal, or nearly, to one of their candidates")
    if seen.without_pairs:
        lines.append(f"{seen.without_pairs:,} comparisons have no ordered pair and count for nothing")
    if by is not None and seen.without_group:
        lines.append(f"{seen.without_group:,} comparisons have no {by!r}: they are in the group {NO_GROUP}")
    if prompts == 1:
        lines.append("all pairs belong to one prompt: there is no interval")
    elif prompts < _FEW_PROMPTS:
        lines.append(f"the intervals rest on {prompts} prompts only and are too narrow")
    elif few := sum(count < _FEW_PROMPTS for count in prompts_by_group):
        groups = f"{few} of {len(prompts_by_group)} groups"
        lines.append(f"{groups} have fewer than {_FEW_PROMPTS} prompts: their intervals are too narrow, or missing")
    return lines

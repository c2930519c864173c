"""Pairwise accuracy of contenders on the same pairs, computed by the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders.base import Contender, Given
from polar_rm.evaluation.contenders.baselines import BASELINES, make_baselines
from polar_rm.evaluation.groups import NO_GROUP
from polar_rm.evaluation.pairs import PairScores, Scores, bradley_terry_loss
from polar_rm.evaluation.reference_use import ReferenceUse, reference_use, score_protocols, swapped_pairs
from polar_rm.evaluation.references import ComparisonScorer, ReferenceChoice, ReferenceMode, apply_reference_protocol
from polar_rm.evaluation.report import (
    SCHEMA,
    ContenderFacts,
    ContenderMeasure,
    Difference,
    EvaluationReport,
    GroupReport,
    ReferenceReport,
    Verdict,
)
from polar_rm.evaluation.scoring import score_contenders
from polar_rm.evaluation.statistics import (
    RESAMPLES,
    Floats,
    Interval,
    Ints,
    PairedDifference,
    listed,
    paired_difference,
    percentile_intervals,
    resampled_means,
)
from polar_rm.evaluation.survey import Survey, survey
from polar_rm.records import Comparison
from polar_rm.rewards.combining import Combine

# With fewer prompts the bootstrap's interval is noticeably too narrow.
FEW_PROMPTS = 30

# The warning about comparisons whose scores have a note.
_NOTES = {
    "truncated": "have a text that was truncated to the encoder's limits",
    "tied": "have candidates that the encoder makes equal: ties",
    "beyond_positions": "are longer than the backbone's positions: their scores are unreliable",
    "unfinished_thinking": "have a candidate whose thinking never ends",
}


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The result of an evaluation.

    report: the content of the JSON file. scores: the data of the report. read: returns the comparisons as the contenders got
    them, for outputs that show texts.
    """

    report: EvaluationReport
    scores: PairScores
    read: Callable[[], Iterable[Comparison]]

    def difference(self, first: str, second: str, *, resamples: int = RESAMPLES, seed: int = 0) -> PairedDifference:
        """The accuracy of one contender minus that of another, with the interval of the difference.

        Raises:
            PolarError: there is no contender with one of the names.
        """
        for name in (first, second):
            if name not in self.scores.scores:
                raise PolarError(f"no contender {name!r}; there is {', '.join(self.scores.scores)}")
        values = self.scores.correct(first), self.scores.correct(second)
        return paired_difference(*values, self.scores.pairs.prompts, resamples=resamples, seed=seed)


def evaluate(
    contenders: Mapping[str, ComparisonScorer] | Sequence[Contender],
    comparisons: Iterable[Comparison],
    *,
    by: str | None = None,
    reference: ReferenceChoice | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    combine: Combine = "mean",
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress = silent,
) -> EvaluationResult:
    """Compute the accuracy over all ordered pairs (a tie counts half) and the Bradley-Terry loss of every contender, with 95%
    intervals by bootstrap over prompts, and the paired differences of every two contenders.

    contenders: scorers by name, or the result of :func:`polar_rm.evaluation.contenders.find_contenders`. Contenders with weights
        are loaded, score and are released one after another, each in its own pass over the data. All others share one pass.
    comparisons: a list or ``ComparisonFiles``, not a generator, because they are read several times, first for checks. Memory
        grows by 40 bytes a pair and 8 bytes a candidate and contender, not with the texts.
    by: metadata key whose values are also reported separately; dots address nested keys (``meta.language``).
    reference: see :func:`apply_reference_protocol`. The default is ``given``, or ``empty`` if no contender needs references and
        some comparison has none. With ``all`` the report's numbers are those of ``given``, and ``reference.use`` has the others;
        contenders that take no reference then score without references.
    baselines: names of more contenders, unless a contender already has the name. Baselines that compare with a reference are left
        out if there are no references.
    combine: how the scores of a comparison with several references become one. seed: seed of the bootstrap and of shuffled
        references.
    progress: called with the numbers of comparisons that are done and of all, by contender.

    Raises:
        PolarError: there is nothing to evaluate, a reference is missing, or ``by`` or a baseline is unknown; raised before any
            scoring.
        ScoreError: a score is not finite, or the number of scores differs from that of the candidates.
    """
    if iter(comparisons) is comparisons:
        raise PolarError("comparisons are read several times: pass a list or ComparisonFiles instead of a generator")
    named = as_contenders(contenders)
    mode = pick_mode(named, reference, comparisons)
    named += add_baselines(baselines, named, mode)
    for contender in named:
        contender.check()
    checked = survey(comparisons, by=by, reference=mode, contenders=named, seed=seed)
    sizes = checked.pairs.n_comparisons, checked.pairs.n_candidates

    def read() -> Iterable[Comparison]:
        return apply_reference_protocol(comparisons, mode, seed=seed)

    use: ReferenceUse | None = None
    if reference == "all":
        protocols = score_protocols(named, comparisons, checked.pairs, seed=seed, combine=combine, progress=progress)
        copies = swapped_pairs(comparisons, checked.pairs, seed=seed)
        use = reference_use(protocols, checked.pairs, copies, resamples=resamples, seed=seed)
        scores = {name: next(iter(by_protocol.values())) for name, by_protocol in protocols.items()}
    else:
        scores = score_contenders(named, read, sizes=sizes, combine=combine, progress=progress)
    models = tuple(contender.name for contender in named if contender.kind != "baseline")
    result = PairScores(checked.pairs, scores, models)
    report = _report(named, result, checked, by, mode, resamples, seed)
    report["reference"] |= {"use": use, "combine": combine}
    return EvaluationResult(report, result, read)


def _report(
    named: Sequence[Contender],
    result: PairScores,
    checked: Survey,
    by: str | None,
    mode: ReferenceMode,
    resamples: int,
    seed: int,
) -> EvaluationReport:
    scaled = [contender.name for contender in named if contender.has_scale]
    pairs = checked.pairs
    overall = _measure(result, np.arange(len(pairs)), scaled, resamples, seed)
    codes = enumerate(pairs.group_names if by is not None else [])
    groups = {name: _measure(result, np.flatnonzero(pairs.groups == code), scaled, resamples, seed) for code, name in codes}
    return {
        "schema": SCHEMA,
        **overall,
        "by": groups,
        "facts": {contender.name: facts_of(contender, result.scores[contender.name]) for contender in named},
        "data": [],
        "limit": None,
        "reference": reference_report(mode, checked),
        "fingerprint": checked.fingerprint,
        "warnings": [
            *_warnings(checked, overall["n_prompts"], [group["n_prompts"] for group in groups.values()], by),
            *(line for contender in named for line in contender_warnings(contender, result.scores[contender.name])),
        ],
    }


def as_contenders(contenders: Mapping[str, ComparisonScorer] | Sequence[Contender]) -> list[Contender]:
    """Scorers by name as contenders; contenders unchanged.

    Raises:
        PolarError: there are no contenders.
    """
    named: list[Contender]
    if isinstance(contenders, Mapping):
        items = contenders.items()
        named = [scorer.renamed(name) if isinstance(scorer, Contender) else Given(name, scorer) for name, scorer in items]
    else:
        named = list(contenders)
    if not named:
        raise PolarError("there is nothing to evaluate: name at least one contender")
    return named


def pick_mode(
    contenders: Sequence[Contender], reference: ReferenceChoice | None, comparisons: Iterable[Comparison]
) -> ReferenceMode:
    """The chosen protocol (``given`` for ``all``), or the default for these contenders and data.

    Raises:
        PolarError: ``empty`` was chosen, and a baseline only compares with the reference.
    """
    if reference is None:
        # This reads all comparisons, not only up to the first without a reference, because only the first pass reports bad rows.
        needed = any(contender.needs_references for contender in contenders)
        return "given" if needed or not sum(comparison.reference is None for comparison in comparisons) else "empty"
    if reference == "empty":
        for contender in contenders:
            if contender.kind == "baseline" and contender.needs_references:
                raise PolarError(f"{contender.name} compares with the reference, and there is none with --reference empty")
    return "given" if reference == "all" else reference


def add_baselines(names: Sequence[str], contenders: Sequence[Contender], mode: ReferenceMode) -> list[Contender]:
    """The named baselines, without those that are already contenders and those that need a reference where there is none.

    Raises:
        PolarError: a name is unknown.
    """
    existing = {contender.name for contender in contenders}
    baselines = [baseline for name, baseline in make_baselines(names).items() if name not in existing]
    return [baseline for baseline in baselines if mode != "empty" or not baseline.needs_references]


def reference_report(mode: ReferenceMode, checked: Survey) -> ReferenceReport:
    """The report's section about references; the caller fills in ``use`` and ``file``."""
    copies = checked.reference_equals_candidate
    return {
        "mode": mode,
        "protocols": checked.protocols,
        "several": checked.several_references,
        "combine": "mean",
        "use": None,
        "file": None,
        "reference_equals_candidate": copies,
    }


def facts_of(contender: Contender, scores: Scores) -> ContenderFacts:
    """The report's section about a contender and its scores."""
    unread = scores.unread
    return {
        "kind": contender.kind,
        "source": contender.source,
        "reads_references": contender.reads_references,
        "noted": dict(scores.noted),
        "unread": {"sequences": unread.sequences, "read": unread.read, **asdict(unread.cut)},
        "facts": dict(contender.facts),
    }


def contender_warnings(contender: Contender, scores: Scores) -> list[str]:
    """One line for each limitation of a contender's numbers."""
    details = {"truncated": f"; {scores.unread}"} if scores.unread.sequences else {}
    counted = [
        f"{contender.name}: {scores.noted[note]:,} comparisons {words}{details.get(note, '')}"
        for note, words in _NOTES.items()
        if scores.noted.get(note)
    ]
    return [*contender.warnings, *counted]


def verdict_of(ci95: Interval | None) -> Verdict:
    """The verdict by the interval of a difference."""
    if ci95 is None or ci95[0] <= 0 <= ci95[1]:
        return "undecided"
    return "first" if ci95[0] > 0 else "second"


def differences_of(
    values: Mapping[str, Floats], prompts: Ints, *, resamples: int, seed: int, extremes: tuple[float, float] = (0.0, 1.0)
) -> tuple[dict[str, Interval | None], list[Difference]]:
    """95% intervals of means by name, and the paired differences of every two names.

    values: float64 [n] each. extremes: the lowest and highest possible value.
    """
    names, columns = list(values), np.column_stack(list(values.values()))
    couples = list(combinations(range(len(names)), 2))
    means = columns.mean(axis=0)
    n_prompts = len(np.unique(prompts))
    intervals: list[Interval | None] = [None] * (len(names) + len(couples))
    if n_prompts > 1:
        resampled = resampled_means(columns, prompts, resamples=resamples, seed=seed)
        paired = [resampled[:, first] - resampled[:, second] for first, second in couples]
        width = extremes[1] - extremes[0]
        bounds = [extremes] * len(names) + [(-width, width)] * len(couples)
        intervals = list(percentile_intervals(np.column_stack([resampled, *paired]), n_prompts, bounds))
    differences: list[Difference] = [
        {
            "first": names[first],
            "second": names[second],
            "difference": float(means[first] - means[second]),
            "ci95": listed(ci95),
            "verdict": verdict_of(ci95),
        }
        for (first, second), ci95 in zip(couples, intervals[len(names) :], strict=True)
    ]
    return dict(zip(names, intervals, strict=False)), differences


def _measure(result: PairScores, rows: Ints, scaled: Sequence[str], resamples: int, seed: int) -> GroupReport:
    """The numbers of the given pairs. rows: indices of the pairs, int64 [n]. scaled: contenders whose scores have a loss."""
    prompts = result.pairs.prompts[rows]
    correct = {name: result.correct(name)[rows] for name in result.scores}
    intervals, differences = differences_of(correct, prompts, resamples=resamples, seed=seed)
    measures: dict[str, ContenderMeasure] = {}
    for name, values in correct.items():
        margins = result.margins(name)[rows]
        measures[name] = {
            "accuracy": float(values.mean()),
            "ci95": listed(intervals[name]),
            "ties": int((margins == 0).sum()),
            "loss": bradley_terry_loss(margins) if name in scaled else None,
        }
    return {
        "n_pairs": len(rows),
        "n_prompts": len(np.unique(prompts)),
        "contenders": measures,
        "differences": differences,
    }


def _warnings(checked: Survey, prompts: int, prompts_by_group: Sequence[int], by: str | None) -> list[str]:
    lines = checked.copy_warnings()
    if checked.without_pairs:
        lines.append(f"{checked.without_pairs:,} comparisons have no ordered pair and are not counted")
    if by is not None and checked.without_group:
        lines.append(f"{checked.without_group:,} comparisons have no {by!r}: they are in the group {NO_GROUP}")
    if prompts == 1:
        lines.append("all pairs belong to one prompt: there is no interval")
    elif prompts < FEW_PROMPTS:
        lines.append(f"the intervals rest on {prompts} prompts only and are too narrow")
    elif few := sum(count < FEW_PROMPTS for count in prompts_by_group):
        groups = f"{few} of {len(prompts_by_group)} groups"
        lines.append(f"{groups} have fewer than {FEW_PROMPTS} prompts: their intervals are too narrow, or missing")
    return lines

"""Contenders on a published benchmark: its own figures for each, with intervals, and who is better by the headline."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from polar_rm.common.files import sha256
from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.evaluation.accuracy import add_baselines, contender_warnings, facts_of, pick_mode, reference_report, verdict_of
from polar_rm.evaluation.contenders import Contender, ModelOptions, as_found
from polar_rm.evaluation.contenders.baselines import BASELINES
from polar_rm.evaluation.data import First
from polar_rm.evaluation.pairs import PairScores, Scores
from polar_rm.evaluation.references import Referenced, ReferenceMode, apply_reference_protocol
from polar_rm.evaluation.report import Difference
from polar_rm.evaluation.scoring import score_contenders
from polar_rm.evaluation.statistics import RESAMPLES, Floats, listed, percentile_intervals, resampled_means
from polar_rm.evaluation.suite_report import SCHEMA, FigureReport, SuiteMeasure, SuiteReport
from polar_rm.evaluation.suites import Figure, Judged, Suite, SuiteResult, find_suite
from polar_rm.evaluation.survey import Survey, survey
from polar_rm.records import Comparison


@dataclass(frozen=True, slots=True)
class SuiteEvaluation:
    """report: what is written to a file. scores: what it was computed from. read: gives the comparisons anew, as the contenders
    saw them."""

    report: SuiteReport
    scores: PairScores
    read: Callable[[], Iterable[Comparison]]


@dataclass(frozen=True, slots=True)
class SuiteFiles:
    """A benchmark's comparisons as a stream that can be read more than once."""

    suite: Suite
    path: Path

    def __iter__(self) -> Iterator[Comparison]:
        return self.suite.read(self.path)


def evaluate_suite(
    suite: str,
    path: str | Path,
    contenders: Sequence[str | Path | Contender],
    *,
    reference: ReferenceMode | None = None,
    references: str | Path | None = None,
    baselines: Sequence[str] = tuple(BASELINES),
    limit: int | None = None,
    seed: int = 0,
    options: ModelOptions | None = None,
    progress: Progress = silent,
) -> SuiteEvaluation:
    """The official figures of every contender on a published benchmark, with 95% intervals by bootstrap over prompts.

    suite: by name, see :data:`polar_rm.evaluation.suites.SUITES`. path: of the files as the publisher ships them. The others: see
    :func:`polar_rm.evaluation.run.evaluate_files`. Where the benchmark has no references, a contender that reads some needs
    ``references`` or ``reference="empty"``.

    Raises:
        PolarError: whatever is wrong with suite, files, contenders or options; before anything is scored.
        ScoreError: a score is not finite.
    """
    found = find_suite(suite)
    named = as_found(contenders, options, is_partial=limit is not None)
    files = First(SuiteFiles(found, Path(path)), limit)
    comparisons: Iterable[Comparison] = Referenced(files, references) if references else files
    mode = pick_mode(named, reference, comparisons)
    named += add_baselines(baselines, named, mode)
    for contender in named:
        contender.check()
    try:
        seen = survey(comparisons, by=None, reference=mode, contenders=named, seed=seed, pairs_needed=False)
    except PolarError as error:
        if found.references != "gold" and not references and mode == "given" and "have no reference" in str(error):
            raise PolarError(f"{found.title} ships no references for all of its comparisons: {error}") from error
        raise

    def read() -> Iterable[Comparison]:
        return apply_reference_protocol(comparisons, mode, seed=seed)

    sizes = seen.pairs.n_comparisons, seen.pairs.n_candidates
    scores = score_contenders(named, read, sizes=sizes, progress=progress)
    results = {name: found.measure(judged(comparisons, each)) for name, each in scores.items()}
    report = _report(found, Path(path), named, scores, results, seen, seed)
    report["limit"] = limit
    report["reference"] |= {"mode": mode, "file": str(references) if references else None}
    models = tuple(each.name for each in named if each.kind != "baseline")
    return SuiteEvaluation(report, PairScores(seen.pairs, scores, models), read)


def judged(comparisons: Iterable[Comparison], scores: Scores) -> Iterator[Judged]:
    """Comparisons with the scores of one contender."""
    start = 0
    for comparison in comparisons:
        end = start + len(comparison.candidates)
        yield Judged(comparison, tuple(scores.values[start:end].tolist()))
        start = end


def resampled(figure: Figure, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats | None:
    """A figure's values, float64 [resamples], over prompts drawn anew; None where it has no outcomes.

    A weighted sum is drawn part by part: how many prompts a domain has is the benchmark's choice and no chance. Figures on the
    same prompts, of one contender or of two, share their draws, so that differences are paired.
    """
    if figure.correct is not None and figure.prompts is not None:
        drawn = seed << 32 | zlib.crc32(np.unique(figure.prompts).tobytes())
        means = resampled_means(figure.correct[:, None].astype(np.float64), figure.prompts, resamples=resamples, seed=drawn)
        return means[:, 0]
    parts = [(weight, resampled(part, resamples=resamples, seed=seed)) for weight, part in figure.parts]
    if not parts or any(values is None for _, values in parts):
        return None
    total: Floats = np.sum([weight * values for weight, values in parts if values is not None], axis=0)
    return total


def prompts_of(figure: Figure) -> int:
    """How many prompts a figure rests on."""
    if figure.prompts is not None:
        return len(np.unique(figure.prompts))
    return sum(prompts_of(part) for _, part in figure.parts)


def _interval(values: Floats | None, figure: Figure, extremes: tuple[float, float]) -> tuple[float, float] | None:
    if values is None or prompts_of(figure) < 2:
        return None
    return percentile_intervals(values[:, None], prompts_of(figure), [extremes])[0]


def _measures(result: SuiteResult, seed: int) -> SuiteMeasure:
    figures: dict[str, FigureReport] = {}
    for figure in result.figures:
        ci95 = _interval(resampled(figure, seed=seed), figure, (0.0 if figure.value >= 0 else -1.0, 1.0))
        figures[figure.name] = {"value": figure.value, "ci95": listed(ci95), "n": figure.n}
    return {"figures": figures, "ties": result.ties}


def _differences(results: Mapping[str, SuiteResult], seed: int) -> list[Difference]:
    """Of the headline. Contenders that rest on other data than the first are not compared."""
    found: list[Difference] = []
    headlines = {name: result.figures[0] for name, result in results.items()}
    values = {name: resampled(figure, seed=seed) for name, figure in headlines.items()}
    for first, second in combinations(headlines, 2):
        one, other = values[first], values[second]
        difference = None if one is None or other is None else one - other
        ci95 = _interval(difference, headlines[first], (-1.0, 1.0))
        found.append(
            {
                "first": first,
                "second": second,
                "difference": headlines[first].value - headlines[second].value,
                "ci95": listed(ci95),
                "verdict": verdict_of(ci95),
            }
        )
    return found


def _report(
    suite: Suite,
    path: Path,
    named: Sequence[Contender],
    scores: Mapping[str, Scores],
    results: Mapping[str, SuiteResult],
    seen: Survey,
    seed: int,
) -> SuiteReport:
    """All but what only the caller knows: references and limit are those of the benchmark as it is."""
    notes = list(dict.fromkeys(note for result in results.values() for note in result.notes))
    everybodys = [note for note in notes if all(note in result.notes for result in results.values())]
    own = [f"{name}: {note}" for name, result in results.items() for note in result.notes if note not in everybodys]
    return {
        "schema": SCHEMA,
        "suite": suite.name,
        "title": suite.title,
        "rule": suite.rule,
        "source": suite.source,
        "licence": suite.licence,
        "path": str(path),
        "sha256": sha256(path),
        "suite_references": suite.references,
        "reference": reference_report("given", seen),
        "limit": None,
        "n_comparisons": seen.pairs.n_comparisons,
        "headline": next(iter(results.values())).figures[0].name,
        "contenders": {name: _measures(result, seed) for name, result in results.items()},
        "differences": _differences(results, seed),
        "facts": {each.name: facts_of(each, scores[each.name].noted) for each in named},
        "fingerprint": seen.fingerprint,
        "warnings": [
            *everybodys,
            *own,
            *(line for each in named for line in contender_warnings(each, scores[each.name].noted)),
        ],
    }

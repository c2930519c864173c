"""Evaluates contenders on a published benchmark: its official figures with intervals, and comparisons by the headline."""

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
from polar_rm.evaluation.contenders import Contender, ModelOptions, resolve_contenders
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
from polar_rm.rewards.combining import Combine


@dataclass(frozen=True, slots=True)
class SuiteEvaluation:
    """The result of a benchmark.

    report: the content of the JSON file. scores: the data of the report. read: returns the comparisons as the contenders got
    them.
    """

    report: SuiteReport
    scores: PairScores
    read: Callable[[], Iterable[Comparison]]


@dataclass(frozen=True, slots=True)
class SuiteFiles:
    """A benchmark's comparisons as a stream that can be read several times."""

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
    combine: Combine = "mean",
    limit: int | None = None,
    seed: int = 0,
    options: ModelOptions | None = None,
    progress: Progress = silent,
) -> SuiteEvaluation:
    """Compute the official figures of every contender on a published benchmark, with 95% intervals by bootstrap over prompts.

    suite: a name of :data:`polar_rm.evaluation.suites.SUITES`. path: the unchanged files of the publisher. The other arguments:
    see :func:`polar_rm.evaluation.run.evaluate_files`. If the benchmark has no references, a contender that reads references
    needs ``references`` or ``reference="empty"``.

    Raises:
        PolarError: the suite, a file, a contender or an option is invalid; raised before anything is scored.
        ScoreError: a score is not finite.
    """
    benchmark = find_suite(suite)
    named = resolve_contenders(contenders, options, is_partial=limit is not None)
    files = First(SuiteFiles(benchmark, Path(path)), limit)
    comparisons: Iterable[Comparison] = Referenced(files, references) if references else files
    mode = pick_mode(named, reference, comparisons)
    named += add_baselines(baselines, named, mode)
    for contender in named:
        contender.check()
    try:
        checked = survey(comparisons, by=None, reference=mode, contenders=named, seed=seed, pairs_needed=False)
    except PolarError as error:
        if benchmark.references != "gold" and not references and mode == "given" and "have no reference" in str(error):
            raise PolarError(f"{benchmark.title} ships no references for all of its comparisons: {error}") from error
        raise

    def read() -> Iterable[Comparison]:
        return apply_reference_protocol(comparisons, mode, seed=seed)

    sizes = checked.pairs.n_comparisons, checked.pairs.n_candidates
    scores = score_contenders(named, read, sizes=sizes, combine=combine, progress=progress)
    results = {name: benchmark.measure(judged(comparisons, values)) for name, values in scores.items()}
    report = _report(benchmark, Path(path), named, scores, results, checked, seed)
    report["limit"] = limit
    report["reference"] |= {"mode": mode, "combine": combine, "file": str(references) if references else None}
    models = tuple(contender.name for contender in named if contender.kind != "baseline")
    return SuiteEvaluation(report, PairScores(checked.pairs, scores, models), read)


def judged(comparisons: Iterable[Comparison], scores: Scores) -> Iterator[Judged]:
    """Comparisons with the scores of one contender."""
    start = 0
    for comparison in comparisons:
        end = start + len(comparison.candidates)
        yield Judged(comparison, tuple(scores.values[start:end].tolist()))
        start = end


def resampled(figure: Figure, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats | None:
    """A figure's values in bootstrap resamples of prompts, float64 [resamples]; None if it has no outcomes.

    The parts of a weighted sum are resampled separately, because the number of a domain's prompts is fixed by the benchmark.
    Figures on the same prompts, of one contender or of two, share their resamples, so that differences are paired.
    """
    if figure.correct is not None and figure.prompts is not None:
        figure_seed = seed << 32 | zlib.crc32(np.unique(figure.prompts).tobytes())
        correct = figure.correct[:, None].astype(np.float64)
        return resampled_means(correct, figure.prompts, resamples=resamples, seed=figure_seed)[:, 0]
    parts = [(weight, resampled(part, resamples=resamples, seed=seed)) for weight, part in figure.parts]
    if not parts or any(values is None for _, values in parts):
        return None
    total: Floats = np.sum([weight * values for weight, values in parts if values is not None], axis=0)
    return total


def prompts_of(figure: Figure) -> int:
    """The number of prompts of a figure."""
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
    """The differences of the headline between every two contenders."""
    differences: list[Difference] = []
    headlines = {name: result.figures[0] for name, result in results.items()}
    values = {name: resampled(figure, seed=seed) for name, figure in headlines.items()}
    for first, second in combinations(headlines, 2):
        first_values, second_values = values[first], values[second]
        difference = None if first_values is None or second_values is None else first_values - second_values
        ci95 = _interval(difference, headlines[first], (-1.0, 1.0))
        differences.append(
            {
                "first": first,
                "second": second,
                "difference": headlines[first].value - headlines[second].value,
                "ci95": listed(ci95),
                "verdict": verdict_of(ci95),
            }
        )
    return differences


def _report(
    suite: Suite,
    path: Path,
    named: Sequence[Contender],
    scores: Mapping[str, Scores],
    results: Mapping[str, SuiteResult],
    checked: Survey,
    seed: int,
) -> SuiteReport:
    """The report with the benchmark's own references and without a limit; the caller fills in both."""
    notes = list(dict.fromkeys(note for result in results.values() for note in result.notes))
    shared_notes = [note for note in notes if all(note in result.notes for result in results.values())]
    other_notes = [f"{name}: {note}" for name, result in results.items() for note in result.notes if note not in shared_notes]
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
        "reference": reference_report("given", checked),
        "limit": None,
        "n_comparisons": checked.pairs.n_comparisons,
        "headline": next(iter(results.values())).figures[0].name,
        "contenders": {name: _measures(result, seed) for name, result in results.items()},
        "differences": _differences(results, seed),
        "facts": {contender.name: facts_of(contender, scores[contender.name]) for contender in named},
        "fingerprint": checked.fingerprint,
        "warnings": [
            *shared_notes,
            *other_notes,
            *(line for contender in named for line in contender_warnings(contender, scores[contender.name])),
        ],
    }

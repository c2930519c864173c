"""Scores streams with contenders. A contender with weights is loaded alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError, ScoreError
from polar_rm.evaluation.contenders.base import Contender
from polar_rm.evaluation.pairs import Scores, collect_scores
from polar_rm.evaluation.references import ComparisonScorer
from polar_rm.evaluation.several import CombinedScorer
from polar_rm.records import Comparison
from polar_rm.rewards.combining import Combine

Read = Callable[[], Iterable[Comparison]]
"""Returns the comparisons for one pass."""


def score_contenders(
    contenders: Sequence[Contender],
    read: Read,
    *,
    sizes: tuple[int, int],
    combine: Combine = "mean",
    progress: Progress = silent,
) -> dict[str, Scores]:
    """The scores of all contenders on one stream, by name in their order; see :func:`score_streams`.

    sizes: the numbers of comparisons and candidates in an earlier pass.
    """
    scores = score_streams(contenders, {"": (read, sizes)}, combine=combine, progress=progress)
    return {name: by_stream[""] for name, by_stream in scores.items()}


def score_streams(
    contenders: Sequence[Contender],
    streams: Mapping[str, tuple[Read, tuple[int, int]]],
    *,
    combine: Combine = "mean",
    progress: Progress = silent,
) -> dict[str, dict[str, Scores]]:
    """The scores of all contenders on several streams, by the names of contenders, in their order, and of streams.

    streams: the function that reads a stream, and its numbers of comparisons and candidates in an earlier pass.
    combine: how scores under several references become one.

    Contenders without weights share one pass over each stream. The other contenders are loaded, score all streams, and are
    released one by one.

    Raises:
        ScoreError: see :func:`collect_scores`. PolarError: the data changed since the earlier pass.
    """
    light = [contender for contender in contenders if not contender.has_weights]
    groups = [*([light] if light else []), *([contender] for contender in contenders if contender.has_weights)]
    scores: dict[str, dict[str, Scores]] = {}
    for group in groups:
        try:
            scores |= _score_group(group, streams, combine, progress)
        finally:
            for contender in group:
                contender.release()
    return {contender.name: scores[contender.name] for contender in contenders}


def _score_group(
    group: Sequence[Contender], streams: Mapping[str, tuple[Read, tuple[int, int]]], combine: Combine, progress: Progress
) -> dict[str, dict[str, Scores]]:
    """The scores of contenders that are loaded together. When this function returns, nothing refers to the models."""
    n_comparisons = sum(sizes[0] for _, sizes in streams.values())
    for contender in group:
        if contender.has_weights:
            progress(contender.name, 0, n_comparisons, "loading")
    scorers = {each.name: CombinedScorer(each.load(), combine, reads_references=each.reads_references) for each in group}
    results: dict[str, dict[str, Scores]] = {name: {} for name in scorers}
    done = 0
    for stream, (read, sizes) in streams.items():
        for name, scores in _score_stream(scorers, stream, read, _part_of(progress, done, n_comparisons, stream)).items():
            if len(scores.values) != sizes[1]:
                changed = f"{len(scores.values):,} candidates, but there were {sizes[1]:,} before"
                raise PolarError(f"{name} scored {changed}: the data changed while they were read")
            results[name][stream] = scores
        done += sizes[0]
    return results


def _score_stream(scorers: Mapping[str, ComparisonScorer], stream: str, read: Read, progress: Progress) -> dict[str, Scores]:
    try:
        return collect_scores(scorers, read(), progress=progress)
    except ScoreError as error:
        if not stream:
            raise
        raise ScoreError(f"{error} ({stream})") from error


def _part_of(progress: Progress, before: int, total_of_all: int, stream: str) -> Progress:
    """The progress of one stream as a part of the progress of all streams."""

    def show(task: str, done: int, total: int | None, status: str = "") -> None:
        progress(task, before + done, total_of_all, status or stream)

    return show

"""Contenders asked one after another: who takes memory is there alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError, ScoreError
from polar_rm.evaluation.contenders.base import Contender
from polar_rm.evaluation.pairs import Scores, collect_scores
from polar_rm.evaluation.references import ComparisonScorer
from polar_rm.records import Comparison

Read = Callable[[], Iterable[Comparison]]
"""Gives comparisons anew, for each pass."""


def score_contenders(
    contenders: Sequence[Contender], read: Read, *, sizes: tuple[int, int], progress: Progress = silent
) -> dict[str, Scores]:
    """The scores of all contenders, by name in their order: :func:`score_streams` of one stream.

    sizes: comparisons and candidates that an earlier pass saw.
    """
    found = score_streams(contenders, {"": (read, sizes)}, progress=progress)
    return {name: streams[""] for name, streams in found.items()}


def score_streams(
    contenders: Sequence[Contender],
    streams: Mapping[str, tuple[Read, tuple[int, int]]],
    *,
    progress: Progress = silent,
) -> dict[str, dict[str, Scores]]:
    """The scores of all contenders, by name in their order, on several streams of comparisons, by the streams' names.

    streams: how each is read, and the comparisons and candidates that an earlier pass saw in it. Contenders without weights share
    a pass of each stream; the others are loaded, asked about all streams, and freed one by one.

    Raises:
        ScoreError: as of :func:`collect_scores`. PolarError: the data changed since the earlier pass.
    """
    light = [contender for contender in contenders if not contender.has_weights]
    turns = [*([light] if light else []), *([contender] for contender in contenders if contender.has_weights)]
    found: dict[str, dict[str, Scores]] = {}
    for turn in turns:
        try:
            found |= _take_turn(turn, streams, progress)
        finally:
            for contender in turn:
                contender.release()
    return {contender.name: found[contender.name] for contender in contenders}


def _take_turn(
    turn: Sequence[Contender], streams: Mapping[str, tuple[Read, tuple[int, int]]], progress: Progress
) -> dict[str, dict[str, Scores]]:
    """In a function of its own, so that nothing holds a model when it returns."""
    scorers = {contender.name: contender.load() for contender in turn}
    found: dict[str, dict[str, Scores]] = {name: {} for name in scorers}
    done, total = 0, sum(sizes[0] for _, sizes in streams.values())
    for stream, (read, sizes) in streams.items():
        for name, scores in _score_stream(scorers, stream, read, _part_of(progress, done, total, stream)).items():
            if len(scores.values) != sizes[1]:
                changed = f"{len(scores.values):,} candidates, but there were {sizes[1]:,} before"
                raise PolarError(f"{name} was asked about {changed}: the data changed while they were read")
            found[name][stream] = scores
        done += sizes[0]
    return found


def _score_stream(scorers: Mapping[str, ComparisonScorer], stream: str, read: Read, progress: Progress) -> dict[str, Scores]:
    try:
        return collect_scores(scorers, read(), progress=progress)
    except ScoreError as error:
        if not stream:
            raise
        raise ScoreError(f"{error} ({stream})") from error


def _part_of(progress: Progress, before: int, of_all: int, stream: str) -> Progress:
    """The progress of one stream as a part of that of all."""

    def show(task: str, done: int, total: int | None, status: str = "") -> None:
        progress(task, before + done, of_all, status or stream)

    return show

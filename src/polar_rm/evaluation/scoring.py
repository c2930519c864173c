"""Contenders asked one after another: who takes memory is there alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders.base import Contender
from polar_rm.evaluation.pairs import Scores, collect_scores
from polar_rm.records import Comparison


def score_contenders(
    contenders: Sequence[Contender],
    read: Callable[[], Iterable[Comparison]],
    *,
    sizes: tuple[int, int],
    progress: Progress = silent,
) -> dict[str, Scores]:
    """The scores of all contenders, by name in their order.

    read: gives the comparisons anew, for each pass. sizes: comparisons and candidates that an earlier pass saw. Contenders
    without weights share one pass; the others are loaded, asked and freed one by one.

    Raises:
        ScoreError: as of :func:`collect_scores`. PolarError: the data changed since the earlier pass.
    """
    light = [contender for contender in contenders if not contender.has_weights]
    turns = [*([light] if light else []), *([contender] for contender in contenders if contender.has_weights)]
    found: dict[str, Scores] = {}
    for turn in turns:
        try:
            scores = _take_turn(turn, read, sizes[0], progress)
        finally:
            for contender in turn:
                contender.release()
        for name, each in scores.items():
            if len(each.values) != sizes[1]:
                changed = f"{len(each.values):,} candidates, but there were {sizes[1]:,} before"
                raise PolarError(f"{name} was asked about {changed}: the data changed while they were read")
        found |= scores
    return {contender.name: found[contender.name] for contender in contenders}


def _take_turn(
    turn: Sequence[Contender], read: Callable[[], Iterable[Comparison]], total: int, progress: Progress
) -> dict[str, Scores]:
    """In a function of its own, so that nothing holds a model when it returns."""
    scorers = {contender.name: contender.load() for contender in turn}
    return collect_scores(scorers, read(), total=total, progress=progress)

"""Which pairs there are, and what scorers said of them: numbers only, in the order of the data; texts are not kept."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import tee

import numpy as np
from numpy.typing import NDArray

from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError, ScoreError
from polar_rm.evaluation.groups import NO_GROUP, group_of
from polar_rm.evaluation.references import ComparisonScorer, prompt_key
from polar_rm.evaluation.statistics import Floats, Ints
from polar_rm.records import Comparison

_MAX_NOTES = 16  # kinds of notes: a bit each


@dataclass(frozen=True, slots=True)
class Pairs:
    """All ordered pairs of a stream of comparisons, 40 bytes each, and which comparison a pair is of.

    better, worse: which candidates, counted through all comparisons. prompts, groups, comparisons: what a pair belongs to; all
    int64 [n_pairs]. group_names: of the groups, in order of appearance. n_candidates, n_comparisons: in all.
    """

    better: Ints
    worse: Ints
    prompts: Ints
    groups: Ints
    comparisons: Ints
    group_names: list[str]
    n_candidates: int
    n_comparisons: int

    def __len__(self) -> int:
        return len(self.better)


class PairCounter:
    """Collects :class:`Pairs` while a stream goes by."""

    def __init__(self) -> None:
        self._columns = [array("q") for _ in range(5)]
        self._prompts: dict[str, int] = {}
        self._groups: dict[str, int] = {}
        self._candidates = self.n_comparisons = 0

    def add(self, comparison: Comparison, group: str = NO_GROUP) -> int:
        """The next comparison; returns how many ordered pairs it has."""
        if ordered := comparison.pairs():
            prompt = self._prompts.setdefault(prompt_key(comparison), len(self._prompts))
            code = self._groups.setdefault(group, len(self._groups))
            first, count = self._candidates, len(ordered)
            same = ([prompt] * count, [code] * count, [self.n_comparisons] * count)
            values = ([first + better for better, _ in ordered], [first + worse for _, worse in ordered], *same)
            for column, value in zip(self._columns, values, strict=True):
                column.extend(value)
        self._candidates += len(comparison.candidates)
        self.n_comparisons += 1
        return len(ordered)

    def watch(self, comparisons: Iterable[Comparison], by: str | None) -> Iterator[Comparison]:
        """Add all comparisons of a stream while passing them on. by: metadata key to group by."""
        for comparison in comparisons:
            self.add(comparison, group_of(comparison, by))
            yield comparison

    def finish(self) -> Pairs:
        """What was seen."""
        better, worse, prompts, groups, comparisons = (np.array(column, np.int64) for column in self._columns)
        return Pairs(better, worse, prompts, groups, comparisons, list(self._groups), self._candidates, self.n_comparisons)


class NotedScores(list[float]):
    """The scores of a comparison's candidates, with notes on each (see :data:`polar_rm.rewards.outcomes.Note`)."""

    def __init__(self, scores: Iterable[float], notes: Sequence[Sequence[str]]) -> None:
        super().__init__(scores)
        self.notes = notes


@dataclass(frozen=True, slots=True)
class Scores:
    """What one scorer said. values: float64 [n_candidates]. marks: a bit for each kind of note, uint16 [n_candidates]; None where
    it noted nothing. kinds: which note a bit stands for. noted: comparisons that have each note."""

    values: Floats
    marks: NDArray[np.uint16] | None = None
    kinds: tuple[str, ...] = ()
    noted: dict[str, int] = field(default_factory=dict)

    def notes_of(self, candidate: int) -> list[str]:
        """On one candidate."""
        mark = 0 if self.marks is None else int(self.marks[candidate])
        return [kind for bit, kind in enumerate(self.kinds) if mark >> bit & 1]


@dataclass(frozen=True, slots=True)
class PairScores:
    """Scores of several scorers, by name, on the same pairs. models: those of them that are no baselines."""

    pairs: Pairs
    scores: dict[str, Scores]
    models: tuple[str, ...] = ()

    def margins(self, name: str) -> Floats:
        """Better minus worse score, float64 [n_pairs]."""
        values = self.scores[name].values
        return values[self.pairs.better] - values[self.pairs.worse]

    def correct(self, name: str) -> Floats:
        """1 where the better candidate scores higher, 0.5 for a tie, 0 otherwise: float64 [n_pairs]."""
        values: Floats = (np.sign(self.margins(name)) + 1) / 2
        return values


def score_pairs(
    scorers: Mapping[str, ComparisonScorer], comparisons: Iterable[Comparison], *, by: str | None = None
) -> PairScores:
    """Score one stream with several scorers in one pass. by: metadata key to group by, see :func:`group_of`.

    Raises:
        ScoreError: as of :func:`collect_scores`.
    """
    counter = PairCounter()
    scores = collect_scores(scorers, counter.watch(comparisons, by))
    return PairScores(counter.finish(), scores)


def collect_scores(
    scorers: Mapping[str, ComparisonScorer],
    comparisons: Iterable[Comparison],
    *,
    progress: Progress = silent,
) -> dict[str, Scores]:
    """Score one stream with several scorers, and keep the scores.

    The scorers advance together: only as many comparisons are held as the one with the largest batches asks for.

    Raises:
        ScoreError: a score is not finite, or not one score per candidate came back; the message names scorer and comparison.
    """
    stream, *copies = tee(comparisons, 1 + len(scorers))
    answers = {name: iter(scorers[name].score_comparisons(copy)) for name, copy in zip(scorers, copies, strict=True)}
    kept = {name: _Kept(name) for name in scorers}
    task = ", ".join(scorers)
    number = 0
    for number, comparison in enumerate(stream, 1):
        for name, answer in answers.items():
            kept[name].add(next(answer, []), len(comparison.candidates), number)
        progress(task, number, None)
    for name, answer in answers.items():
        if next(answer, None) is not None:
            raise ScoreError(f"{name} gave scores for more than the {number:,} comparisons that there are")
    return {name: each.finish() for name, each in kept.items()}


class _Kept:
    """The scores of one scorer so far."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._values, self._marks = array("d"), array("H")
        self._kinds: dict[str, int] = {}
        self._noted: dict[str, int] = {}

    def add(self, scores: Sequence[float], n_candidates: int, number: int) -> None:
        where = f"{self._name}: comparison {number}"
        if len(scores) != n_candidates:
            raise ScoreError(f"{where} has {n_candidates} candidates but got {len(scores)} scores")
        if not all(map(math.isfinite, scores)):
            raise ScoreError(f"{where} has the scores {list(scores)}: only finite scores can be compared")
        self._values.extend(scores)
        notes: Sequence[Sequence[str]] = getattr(scores, "notes", ())
        kinds = {kind for each in notes for kind in each}
        if kinds and not self._marks:
            self._marks.extend([0] * (len(self._values) - n_candidates))
        if self._marks or kinds:
            self._marks.extend(map(self._mark, notes) if kinds else [0] * n_candidates)
        for kind in kinds:
            self._noted[kind] = self._noted.get(kind, 0) + 1

    def _mark(self, notes: Sequence[str]) -> int:
        mark = 0
        for kind in notes:
            mark |= 1 << self._kinds.setdefault(kind, len(self._kinds))
        if len(self._kinds) > _MAX_NOTES:
            raise PolarError(f"{self._name}: more than {_MAX_NOTES} kinds of notes: {', '.join(self._kinds)}")
        return mark

    def finish(self) -> Scores:
        marks = np.array(self._marks, np.uint16) if self._kinds else None
        return Scores(np.array(self._values, np.float64), marks, tuple(self._kinds), self._noted)

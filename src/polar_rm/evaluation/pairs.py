"""Ordered pairs of candidates and their scores, in the order of the data. Only numbers are kept, not texts."""

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
from polar_rm.rewards.outcomes import Cut, Unread

_MAX_NOTES = 16  # maximum number of kinds of notes; each takes one bit


@dataclass(frozen=True, slots=True)
class Pairs:
    """All ordered pairs of a stream of comparisons; a pair takes 40 bytes.

    better, worse: indices of the candidates, counted through all comparisons. prompts, groups, comparisons: index of the pair's
    prompt, group and comparison. All are int64 [n_pairs]. group_names: names of the groups, in order of appearance. n_candidates,
    n_comparisons: total numbers.
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
    """Collects the :class:`Pairs` of a stream."""

    def __init__(self) -> None:
        self._columns = [array("q") for _ in range(5)]
        self._prompts: dict[str, int] = {}
        self._groups: dict[str, int] = {}
        self._candidates = self.n_comparisons = 0

    def add(self, comparison: Comparison, group: str = NO_GROUP) -> int:
        """Add the next comparison; returns the number of its ordered pairs."""
        if ordered := comparison.pairs():
            prompt = self._prompts.setdefault(prompt_key(comparison), len(self._prompts))
            code = self._groups.setdefault(group, len(self._groups))
            first, count = self._candidates, len(ordered)
            constant = ([prompt] * count, [code] * count, [self.n_comparisons] * count)
            values = ([first + better for better, _ in ordered], [first + worse for _, worse in ordered], *constant)
            for column, value in zip(self._columns, values, strict=True):
                column.extend(value)
        self._candidates += len(comparison.candidates)
        self.n_comparisons += 1
        return len(ordered)

    def watch(self, comparisons: Iterable[Comparison], by: str | None) -> Iterator[Comparison]:
        """Add all comparisons of a stream and yield them. by: metadata key to group by."""
        for comparison in comparisons:
            self.add(comparison, group_of(comparison, by))
            yield comparison

    def finish(self) -> Pairs:
        """The pairs of all added comparisons."""
        better, worse, prompts, groups, comparisons = (np.array(column, np.int64) for column in self._columns)
        return Pairs(better, worse, prompts, groups, comparisons, list(self._groups), self._candidates, self.n_comparisons)


class NotedScores(list[float]):
    """The scores of a comparison's candidates, with what is known of each.

    notes: see :data:`polar_rm.rewards.outcomes.Note`. tokens: how many tokens were read, and the truncation; empty if unknown.
    """

    def __init__(self, scores: Iterable[float], notes: Sequence[Sequence[str]], tokens: Sequence[tuple[int, Cut]] = ()) -> None:
        super().__init__(scores)
        self.notes, self.tokens = notes, tokens


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one scorer.

    values: float64 [n_candidates]. marks: a bit for each kind of note, uint16 [n_candidates]; None if there are no notes. kinds:
    the note of each bit. noted: the number of comparisons with each note. unread: what truncation removed from the candidates.
    """

    values: Floats
    marks: NDArray[np.uint16] | None = None
    kinds: tuple[str, ...] = ()
    noted: dict[str, int] = field(default_factory=dict)
    unread: Unread = field(default_factory=Unread)

    def notes_of(self, candidate: int) -> list[str]:
        """The notes on one candidate."""
        mark = 0 if self.marks is None else int(self.marks[candidate])
        return [kind for bit, kind in enumerate(self.kinds) if mark >> bit & 1]


@dataclass(frozen=True, slots=True)
class PairScores:
    """Scores of several scorers, by name, on the same pairs. models: the names of the scorers that are not baselines."""

    pairs: Pairs
    scores: dict[str, Scores]
    models: tuple[str, ...] = ()

    def margins(self, name: str) -> Floats:
        """The score of the better candidate minus that of the worse one, float64 [n_pairs]."""
        values = self.scores[name].values
        return values[self.pairs.better] - values[self.pairs.worse]

    def correct(self, name: str) -> Floats:
        """1 if the better candidate scores higher, 0.5 for a tie, else 0: float64 [n_pairs]."""
        return outcomes(self.margins(name))


def outcomes(margins: Floats) -> Floats:
    """1 where the better candidate scores higher, 0.5 for a tie, else 0. margins: scores, better minus worse."""
    values: Floats = (np.sign(margins) + 1) / 2
    return values


def bradley_terry_loss(margins: Floats) -> float:
    """The mean of -log sigmoid(margin), in nats: the negative log-likelihood of the pairs. margins: better minus worse, or that
    over a temperature."""
    return float(np.logaddexp(0, -margins).mean())


def score_pairs(
    scorers: Mapping[str, ComparisonScorer], comparisons: Iterable[Comparison], *, by: str | None = None
) -> PairScores:
    """Score one stream with several scorers in one pass. by: metadata key to group by, see :func:`group_of`.

    Raises:
        ScoreError: see :func:`collect_scores`.
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
    """Score one stream with several scorers, and collect the scores.

    The scorers advance together, so only as many comparisons are held as the largest batch of a scorer needs.

    Raises:
        ScoreError: a score is not finite, or the number of scores differs from that of the candidates; the message names scorer
            and comparison.
    """
    stream, *copies = tee(comparisons, 1 + len(scorers))
    results = {name: iter(scorers[name].score_comparisons(copy)) for name, copy in zip(scorers, copies, strict=True)}
    collectors = {name: _ScoreCollector(name) for name in scorers}
    task = ", ".join(scorers)
    number = 0
    for number, comparison in enumerate(stream, 1):
        for name, result in results.items():
            collectors[name].add(next(result, []), len(comparison.candidates), number)
        progress(task, number, None)
    for name, result in results.items():
        if next(result, None) is not None:
            raise ScoreError(f"{name} gave scores for more than the {number:,} comparisons that there are")
    return {name: collector.finish() for name, collector in collectors.items()}


class _ScoreCollector:
    """Collects the scores of one scorer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._values, self._marks = array("d"), array("H")
        self._kinds: dict[str, int] = {}
        self._noted: dict[str, int] = {}
        self._unread = Unread()

    def add(self, scores: Sequence[float], n_candidates: int, number: int) -> None:
        label = f"{self._name}: comparison {number}"
        if len(scores) != n_candidates:
            raise ScoreError(f"{label} has {n_candidates} candidates but got {len(scores)} scores")
        if not all(map(math.isfinite, scores)):
            raise ScoreError(f"{label} has the scores {list(scores)}: only finite scores can be compared")
        self._values.extend(scores)
        notes: Sequence[Sequence[str]] = getattr(scores, "notes", ())
        kinds = {kind for candidate_notes in notes for kind in candidate_notes}
        if kinds and not self._marks:
            self._marks.extend([0] * (len(self._values) - n_candidates))
        if self._marks or kinds:
            self._marks.extend(map(self._mark, notes) if kinds else [0] * n_candidates)
        for kind in kinds:
            self._noted[kind] = self._noted.get(kind, 0) + 1
        for n_tokens, cut in getattr(scores, "tokens", ()):
            self._unread.add(n_tokens, cut)

    def _mark(self, notes: Sequence[str]) -> int:
        mark = 0
        for kind in notes:
            mark |= 1 << self._kinds.setdefault(kind, len(self._kinds))
        if len(self._kinds) > _MAX_NOTES:
            raise PolarError(f"{self._name}: more than {_MAX_NOTES} kinds of notes: {', '.join(self._kinds)}")
        return mark

    def finish(self) -> Scores:
        marks = np.array(self._marks, np.uint16) if self._kinds else None
        return Scores(np.array(self._values, np.float64), marks, tuple(self._kinds), self._noted, self._unread)

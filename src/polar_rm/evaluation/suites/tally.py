"""Outcomes gathered into figures, and the checks that every suite's rule begins with."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from polar_rm.errors import PolarError, ScoreError
from polar_rm.evaluation.references import prompt_key
from polar_rm.evaluation.suites.base import Figure, Judged
from polar_rm.records import Comparison


class Tally:
    """Outcomes by the name of their figure, each with its prompt: 16 bytes an outcome, no texts."""

    def __init__(self) -> None:
        self._outcomes: dict[str, array[float]] = {}
        self._prompts: dict[str, array[int]] = {}
        self._codes: dict[str, int] = {}

    def add(self, name: str, outcome: float, comparison: Comparison) -> None:
        """One outcome, such as 1 for right and 0 for wrong, under a figure's name."""
        code = self._codes.setdefault(prompt_key(comparison), len(self._codes))
        self._outcomes.setdefault(name, array("d")).append(outcome)
        self._prompts.setdefault(name, array("q")).append(code)

    def names(self) -> list[str]:
        """Of all that has an outcome, in the order of the first ones."""
        return list(self._outcomes)

    def count(self, name: str) -> int:
        """Outcomes under a name; 0 where there is none."""
        return len(self._outcomes.get(name, ()))

    def figure(self, name: str, title: str | None = None) -> Figure:
        """The plain mean of the outcomes under a name, of which there must be one. title: the figure's name, if another."""
        correct = np.array(self._outcomes[name], np.float64)
        return Figure(title or name, float(correct.mean()), len(correct), correct, np.array(self._prompts[name], np.int64))

    def figures(self, names: Iterable[str]) -> list[Figure]:
        """Of those names that have outcomes."""
        return [self.figure(name) for name in names if name in self._outcomes]


def checked(judged: Iterable[Judged], suite: str) -> Iterator[Judged]:
    """The same, once each is known to be this suite's and to have one finite score a candidate.

    Raises:
        ScoreError: it has not. PolarError: a comparison of another suite, or none at all.
    """
    count = 0
    for each in judged:
        count += 1
        metadata = each.comparison.metadata
        if metadata.get("suite") != suite:
            raise PolarError(f"comparison {count} was not read as {suite}: its metadata says suite {metadata.get('suite')!r}")
        if len(each.scores) != (candidates := len(each.comparison.candidates)):
            raise ScoreError(f"{suite}: comparison {metadata['id']} has {candidates} candidates but {len(each.scores)} scores")
        if not all(map(math.isfinite, each.scores)):
            raise ScoreError(f"{suite}: comparison {metadata['id']} has the scores {list(each.scores)}: only finite ones count")
        yield each
    if not count:
        raise PolarError(f"{suite}: there are no comparisons to measure")


def mean_of(name: str, figures: Sequence[Figure], weights: Sequence[float] | None = None) -> Figure:
    """The mean of figures, by equal weights if none are given. Being no plain mean of outcomes it has none, but of one figure."""
    if len(figures) == 1:
        return replace(figures[0], name=name)
    value = float(np.average([figure.value for figure in figures], weights=weights))
    shares = [1.0] * len(figures) if weights is None else weights
    parts = tuple((share / sum(shares), figure) for share, figure in zip(shares, figures, strict=True))
    return Figure(name, value, sum(figure.n for figure in figures), None, None, parts)


def tied_pairs(judged: Judged) -> int:
    """Pairs of candidates with different ranks whose scores are exactly equal."""
    return sum(judged.scores[better] == judged.scores[worse] for better, worse in judged.comparison.pairs())


def best_alone(judged: Judged) -> float:
    """1 where the one candidate of rank 0 scores above all others, else 0: a tie is wrong."""
    best = judged.comparison.ranks.index(0)
    return float(judged.scores[best] > max(score for i, score in enumerate(judged.scores) if i != best))


def coverage_notes(counts: Mapping[str, int], published: Mapping[str, int], headline: str, kind: str = "parts") -> list[str]:
    """What keeps a headline from being the published one.

    counts: comparisons by part; published: as the benchmark has them, 0 where that is not known. headline: its name.
    """
    notes = []
    if missing := [name for name in published if not counts.get(name)]:
        there = len(published) - len(missing)
        notes.append(
            f"{headline!r} rests on {there} of {len(published)} {kind} and is no published number; missing: {', '.join(missing)}"
        )
    notes += [
        f"{name}: {counts[name]:,} comparisons, but {number:,} are published"
        for name, number in published.items()
        if number and counts.get(name) and counts[name] != number
    ]
    return notes


def tie_notes(ties: int, treatment: str) -> list[str]:
    """How many exact ties there were, and what the rule makes of one."""
    return [f"{ties:,} pairs have exactly equal scores: {treatment}"] if ties else []

"""Collects outcomes into figures, and checks the scored comparisons of a suite."""

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
    """Outcomes by the name of their figure, each with its prompt. An outcome takes 16 bytes; texts are not kept."""

    def __init__(self) -> None:
        self._outcomes: dict[str, array[float]] = {}
        self._prompts: dict[str, array[int]] = {}
        self._codes: dict[str, int] = {}

    def add(self, name: str, outcome: float, comparison: Comparison) -> None:
        """Add an outcome, such as 1 for right and 0 for wrong, to the figure ``name``."""
        code = self._codes.setdefault(prompt_key(comparison), len(self._codes))
        self._outcomes.setdefault(name, array("d")).append(outcome)
        self._prompts.setdefault(name, array("q")).append(code)

    def names(self) -> list[str]:
        """The names of figures with outcomes, in the order of their first outcomes."""
        return list(self._outcomes)

    def count(self, name: str) -> int:
        """The number of outcomes of a figure, which may be 0."""
        return len(self._outcomes.get(name, ()))

    def figure(self, name: str, title: str | None = None) -> Figure:
        """The mean of the outcomes of ``name``, of which there must be at least one. title: another name for the figure."""
        correct = np.array(self._outcomes[name], np.float64)
        return Figure(title or name, float(correct.mean()), len(correct), correct, np.array(self._prompts[name], np.int64))

    def figures(self, names: Iterable[str]) -> list[Figure]:
        """The figures of the names that have outcomes."""
        return [self.figure(name) for name in names if name in self._outcomes]


def checked(judged: Iterable[Judged], suite: str) -> Iterator[Judged]:
    """Check that each comparison belongs to the suite and has one finite score for each candidate, and yield it.

    Raises:
        ScoreError: a comparison has other scores. PolarError: it belongs to another suite, or there are no comparisons.
    """
    count = 0
    for item in judged:
        count += 1
        metadata = item.comparison.metadata
        if metadata.get("suite") != suite:
            raise PolarError(f"comparison {count} was not read as {suite}: its metadata says suite {metadata.get('suite')!r}")
        label, scores = f"{suite}: comparison {metadata['id']}", item.scores
        if len(scores) != (candidates := len(item.comparison.candidates)):
            raise ScoreError(f"{label} has {candidates} candidates but {len(scores)} scores")
        if not all(map(math.isfinite, scores)):
            raise ScoreError(f"{label} has the scores {list(scores)}: only finite scores can be compared")
        yield item
    if not count:
        raise PolarError(f"{suite}: there are no comparisons to measure")


def mean_of(name: str, figures: Sequence[Figure], weights: Sequence[float] | None = None) -> Figure:
    """The weighted mean of figures, by default with equal weights. It has no outcomes, unless it is the mean of one figure."""
    if len(figures) == 1:
        return replace(figures[0], name=name)
    value = float(np.average([figure.value for figure in figures], weights=weights))
    shares = [1.0] * len(figures) if weights is None else weights
    parts = tuple((share / sum(shares), figure) for share, figure in zip(shares, figures, strict=True))
    return Figure(name, value, sum(figure.n for figure in figures), None, None, parts)


def tied_pairs(judged: Judged) -> int:
    """The number of pairs of candidates with different ranks and exactly equal scores."""
    return sum(judged.scores[better] == judged.scores[worse] for better, worse in judged.comparison.pairs())


def best_alone(judged: Judged) -> float:
    """1 if the one candidate of rank 0 scores higher than all others, else 0; a tie is wrong."""
    best = judged.comparison.ranks.index(0)
    return float(judged.scores[best] > max(score for i, score in enumerate(judged.scores) if i != best))


def coverage_notes(counts: Mapping[str, int], published: Mapping[str, int], headline: str, kind: str = "parts") -> list[str]:
    """Notes on differences between a headline and the published one.

    counts: numbers of comparisons by part. published: these numbers in the complete benchmark, 0 if unknown. headline: the name
    of the headline.
    """
    notes = []
    if missing := [name for name in published if not counts.get(name)]:
        n_present = len(published) - len(missing)
        notes.append(
            f"{headline!r} rests on {n_present} of {len(published)} {kind} and is no published number; "
            f"missing: {', '.join(missing)}"
        )
    notes += [
        f"{name}: {counts[name]:,} comparisons, but {number:,} are published"
        for name, number in published.items()
        if number and counts.get(name) and counts[name] != number
    ]
    return notes


def tie_notes(ties: int, treatment: str) -> list[str]:
    """A note on the number of exact ties and their treatment by the rule; no note without ties."""
    return [f"{ties:,} pairs have exactly equal scores: {treatment}"] if ties else []

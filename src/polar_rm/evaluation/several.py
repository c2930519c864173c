"""Scores of comparisons with several references, for every kind of contender."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from polar_rm.errors import ScoreError
from polar_rm.evaluation.pairs import NotedScores
from polar_rm.evaluation.references import ComparisonScorer
from polar_rm.records import Comparison, Text, flatten, references_of
from polar_rm.rewards.combining import Combine
from polar_rm.rewards.outcomes import Cut


class CombinedScorer:
    """A scorer that takes comparisons with several references: it scores one comparison for each, and combines the scores.

    combine: see :data:`Combine`; for ``best`` the reference is one more candidate, whose score is the anchor. A blank reference
    has no anchor. reads_references: if false, only the first reference is used, because the scores do not depend on it.
    """

    def __init__(self, scorer: ComparisonScorer, combine: Combine = "mean", *, reads_references: bool = True) -> None:
        self._scorer, self._combine, self._reads_references = scorer, combine, reads_references

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """One score for each candidate, see :class:`ComparisonScorer`; notes and tokens are those of all references."""
        parts: deque[list[bool]] = deque()  # for each comparison on the way, whether each of its parts has an anchor
        collected: list[list[float]] = []
        for scores in self._scorer.score_comparisons(self._parts(comparisons, parts)):
            if not parts:  # more scores than comparisons: whoever collects them refuses it
                yield scores
                continue
            collected.append(scores)
            if len(collected) == len(parts[0]):
                yield _combined(collected, parts.popleft(), self._combine)
                collected = []

    def _parts(self, comparisons: Iterable[Comparison], parts: deque[list[bool]]) -> Iterator[Comparison]:
        for comparison in comparisons:
            references = references_of(comparison) if self._reads_references else references_of(comparison)[:1]
            anchored = [self._has_anchor(reference) for reference in references]
            parts.append(anchored)
            if anchored == [False] and not isinstance(comparison.reference, tuple):
                yield comparison
                continue
            for reference, has_anchor in zip(references, anchored, strict=True):
                candidates, ranks = comparison.candidates, comparison.ranks
                if has_anchor:
                    candidates, ranks = (*candidates, reference), (*ranks, max(ranks) + 1)
                yield replace(comparison, reference=reference, candidates=candidates, ranks=ranks)

    def _has_anchor(self, reference: Text) -> bool:
        return self._combine == "best" and self._reads_references and bool(flatten(reference).strip())


def _combined(parts: Sequence[list[float]], anchored: Sequence[bool], combine: Combine) -> list[float]:
    """The scores of one comparison from those with each reference. anchored: whether the last score of a part is its anchor."""
    if len(parts) == 1 and not anchored[0]:
        return parts[0]
    values = [
        [score - part[-1] for score in part[:-1]] if is_anchored else list(part)
        for part, is_anchored in zip(parts, anchored, strict=True)
    ]
    if len(set(map(len, values))) > 1:
        raise ScoreError(f"a comparison got {', '.join(str(len(column)) for column in values)} scores under its references")
    together = max if combine == "best" else fmean
    scores = [together(column) for column in zip(*values, strict=True)]
    candidates = range(len(scores))
    noted = [part for part in parts if isinstance(part, NotedScores)]
    notes = [tuple(dict.fromkeys(note for part in noted for note in part.notes[i])) for i in candidates]
    with_tokens = [part for part in noted if part.tokens]
    tokens = [
        (sum(part.tokens[i][0] for part in with_tokens), sum((part.tokens[i][1] for part in with_tokens), Cut()))
        for i in (candidates if with_tokens else ())
    ]
    return NotedScores(scores, notes, tokens)

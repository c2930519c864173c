"""Baselines that a reward model must beat: the length of a candidate, and its similarity of characters to the reference.

Both are contenders like a model, so that the same code evaluates them. They get flattened texts and never the prompt.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from polar_rm.common.iteration import windows
from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders.base import Contender
from polar_rm.evaluation.references import ComparisonScorer
from polar_rm.records import Comparison, flatten, one_reference, references_of

_WINDOW = 128  # the number of comparisons whose n-gram counts are held together


class Baseline(Contender):
    """A contender without weights, which is its own scorer. The scale of its scores is arbitrary."""

    kind = "baseline"
    has_scale = False

    def load(self) -> ComparisonScorer:
        """The baseline itself."""
        return self

    @abstractmethod
    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """See :class:`polar_rm.evaluation.references.ComparisonScorer`."""


class Length(Baseline):
    """Closeness of lengths in characters: ``-|log(1 + len(candidate)) - log(1 + len(reference))|``.

    Without a reference (None or empty) it is ``log(1 + len(candidate))``: longer is better, which is the best known bias of
    judges.
    """

    def __init__(self, name: str = "length") -> None:
        super().__init__(name)

    @property
    def needs_references(self) -> bool:
        """False: it uses references only if there are any."""
        return False

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """One score for each candidate, see the class."""
        for comparison in comparisons:
            lengths = [math.log1p(len(flatten(candidate))) for candidate in comparison.candidates]
            reference = flatten(one_reference(comparison))
            yield [-abs(length - math.log1p(len(reference))) for length in lengths] if reference else lengths


class Tfidf(Baseline):
    """Cosine between the character n-gram TF-IDF vectors of candidate and reference; 0 if one of them is empty.

    n-grams of 2 to 4 lower-case characters within words, sublinear term frequency, smoothed inverse document frequency
    over the references (scikit-learn's definitions). n-grams are hashed into ``n_features`` columns, so memory is
    constant: there is no vocabulary, and the document frequencies are one array.
    """

    def __init__(self, name: str = "tfidf", n_features: int = 2**18) -> None:
        super().__init__(name)
        self._counts = HashingVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), n_features=n_features, norm=None, alternate_sign=False
        )
        self._document_frequency: NDArray[np.int64] = np.zeros(n_features, np.int64)
        self._documents = 0

    def fit(self, comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
        """Count the references that contain each n-gram, and yield the comparisons."""
        for window in windows(comparisons, _WINDOW):
            references = [flatten(reference) for comparison in window for reference in references_of(comparison)]
            counts, rows = self._count(references)
            repeats = np.bincount(rows, minlength=counts.shape[0])
            self._document_frequency += np.bincount(
                counts.indices, np.repeat(repeats, np.diff(counts.indptr)), counts.shape[1]
            ).astype(np.int64)
            self._documents += len(references)
            yield from window

    def score_comparisons(self, comparisons: Iterable[Comparison]) -> Iterator[list[float]]:
        """One cosine for each candidate, see the class."""
        for window in windows(comparisons, _WINDOW):
            texts: list[str] = []
            for comparison in window:
                texts += [flatten(text) for text in (one_reference(comparison), *comparison.candidates)]
            counts, rows = self._count(texts)
            vectors = self._weigh(counts)
            start = 0
            for comparison in window:
                end = start + 1 + len(comparison.candidates)
                cosines = vectors[rows[start + 1 : end]] @ vectors[rows[start]].T
                yield cosines.toarray().ravel().tolist()
                start = end

    def _count(self, texts: Sequence[str]) -> tuple[Any, NDArray[np.int64]]:
        """n-gram counts of the distinct texts (CSR), and the row of each text. Neighbouring comparisons often share texts."""
        distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        return self._counts.transform(distinct), np.array([distinct[text] for text in texts], np.int64)

    def _weigh(self, counts: Any) -> Any:
        inverse_document_frequency = np.log((1 + self._documents) / (1 + self._document_frequency)) + 1
        counts.data = (1 + np.log(counts.data)) * inverse_document_frequency[counts.indices]
        return normalize(counts, copy=False)


BASELINES: dict[str, Callable[[str], Baseline]] = {"length": Length, "tfidf": Tfidf}


def make_baselines(names: Iterable[str]) -> dict[str, Baseline]:
    """New baselines by name, in the given order.

    Raises:
        PolarError: a name is unknown.
    """
    names = list(names)
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise PolarError(f"unknown baseline {unknown[0]!r}; known: {', '.join(BASELINES)}")
    return {name: BASELINES[name](name) for name in names}

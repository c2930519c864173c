"""Comparisons with several references, for every kind of contender."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from polar_rm.errors import ScoreError
from polar_rm.evaluation import evaluate, evaluate_files
from polar_rm.evaluation.contenders.base import Given
from polar_rm.evaluation.pairs import NotedScores
from polar_rm.evaluation.several import CombinedScorer
from polar_rm.evaluation.tables import reference_words
from polar_rm.records import Comparison, references_of, write_records
from polar_rm.rewards.outcomes import Cut

ITEMS = [
    Comparison("p0", ("the quick fox", "a lazy dog"), ("the fox", "twelve dogs", "7"), (0, 1, 1), metadata={"id": 0}),
    Comparison("p1", "the river bank", ("a bank", "the quick dog"), (1, 0), metadata={"id": 1}),
    Comparison("p2", ("over", "under the bank", "over a fox"), ("over", "fox"), (0, 1), metadata={"id": 2}),
]


class Overlap:
    """Counts letters that candidate and reference share, on a scale that depends on the reference."""

    def __init__(self):
        self.seen = 0

    def score_comparisons(self, comparisons):
        for each in comparisons:
            self.seen += 1
            scores = [overlap(each.reference, candidate) for candidate in each.candidates]
            notes = [("truncated",) if len(candidate) > 8 else () for candidate in each.candidates]
            yield NotedScores(scores, notes, [(len(candidate), Cut(output=1)) for candidate in each.candidates])


def overlap(reference, candidate):
    return len(set(reference) & set(candidate)) + 10.0 * len(reference)


def literal(item, combine):
    values = []
    for candidate in item.candidates:
        each = [overlap(reference, candidate) for reference in references_of(item)]
        anchors = [overlap(reference, reference) for reference in references_of(item)]
        values.append(np.mean(each) if combine == "mean" else max(s - a for s, a in zip(each, anchors, strict=True)))
    return values


@pytest.mark.parametrize("combine", ["mean", "best"])
def test_scores_equal_plain_loops_over_the_references(combine):
    results = list(CombinedScorer(Overlap(), combine).score_comparisons(iter(ITEMS)))
    assert [list(scores) for scores in results] == [pytest.approx(literal(item, combine)) for item in ITEMS]
    assert [scores.notes for scores in results] == [[(), ("truncated",), ()], [(), ("truncated",)], [(), ()]]
    assert results[0].tokens == [(2 * len(text), Cut(output=2)) for text in ITEMS[0].candidates]


def test_a_scorer_without_references_scores_once():
    scorer = Overlap()
    results = list(CombinedScorer(scorer, "best", reads_references=False).score_comparisons(iter(ITEMS)))
    assert scorer.seen == len(ITEMS) == len(results)


def test_a_blank_reference_has_no_anchor():
    blank = [replace(ITEMS[1], reference=reference) for reference in ("", None)]
    items = [blank[0], replace(blank[1], reference="")]
    assert list(CombinedScorer(Overlap(), "best").score_comparisons(items)) == list(Overlap().score_comparisons(items))


def test_a_scorer_that_loses_scores_is_refused():
    class Short:
        def score_comparisons(self, comparisons):
            for number, each in enumerate(comparisons):
                yield [0.0] * (len(each.candidates) - number % 2)

    with pytest.raises(ScoreError, match="a comparison got 3, 2 scores under its references"):
        list(CombinedScorer(Short()).score_comparisons(iter(ITEMS)))


def test_an_evaluation_with_files_baselines_and_protocols(tmp_path):
    write_records(tmp_path / "items.jsonl", ITEMS)
    result = evaluate_files([Given("m", Overlap())], [tmp_path / "items.jsonl"], combine="best")
    scores = result.scores.scores
    assert scores["m"].values.tolist() == pytest.approx([value for item in ITEMS for value in literal(item, "best")])
    # TF-IDF by scikit-learn's own vectorizer, whose documents are all references.
    references = [text for item in ITEMS for text in references_of(item)]
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit(references)
    expected = []
    for item in ITEMS:
        for candidate in item.candidates:
            vectors = vectorizer.transform([candidate, *references_of(item)]).toarray()
            expected.append(max(vectors[1:] @ vectors[0]) - 1.0)
    known = [i for i, text in enumerate(t for item in ITEMS for t in item.candidates) if known_only(text, references)]
    assert len(known) >= 2
    assert scores["tfidf"].values[known].tolist() == pytest.approx([expected[i] for i in known], abs=1e-6)
    reference = result.report["reference"]
    assert (reference["several"], reference["combine"]) == (2, "best")
    assert reference_words(reference) == "given (best of several)"
    every = evaluate([Given("m", Overlap())], ITEMS, reference="all", resamples=50).report
    assert reference_words(every["reference"]) == "given (mean of several)"
    assert set(every["reference"]["use"]["contenders"]["m"]["accuracy"]) == {"given", "empty", "shuffled", "swapped"}


def known_only(text, references):
    """Whether all n-grams of a text occur in references: the vectorizer leaves others out, and the baseline does not."""
    analyse = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).build_analyzer()
    return set(analyse(text)) <= {gram for reference in references for gram in analyse(reference)}

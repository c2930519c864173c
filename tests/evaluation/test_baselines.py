import math

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders import baselines
from polar_rm.evaluation.contenders.baselines import Length, Tfidf, make_baselines
from polar_rm.records import Comparison

TEXTS = [
    ("The sum is four.", ("The sum is 4, four.", "I can't help with that", "The SUM is four.")),
    ("Bread needs flour and water.", ("Flour, water, yeast.", "Cars need fuel.")),
    ("def add(a, b):\n    return a + b", ("def add(x, y): return x + y", "print('hello')")),
    ("The sum is four.", ("Quatre.", "Four is the sum.")),
]


def comparisons(texts=TEXTS):
    return [
        Comparison(f"prompt {i}", reference, candidates, tuple(range(len(candidates))))
        for i, (reference, candidates) in enumerate(texts)
    ]


def run(baseline, items):
    fitted = list(baseline.fit(items))
    assert fitted == list(items)  # a fit passes the stream on unchanged
    return list(baseline.score_comparisons(items))


def test_tfidf_equals_scikit_learn_with_a_vocabulary():
    items = comparisons()
    got = run(Tfidf(), items)
    oracle = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    # The idf of n-grams that no reference has is needed too: fix the vocabulary by all texts, fit on the references.
    everything = [text for reference, candidates in TEXTS for text in (reference, *candidates)]
    oracle.vocabulary = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit(everything).vocabulary_
    oracle.fit([reference for reference, _ in TEXTS])
    for scores, (reference, candidates) in zip(got, TEXTS, strict=True):
        expected = (oracle.transform(candidates) @ oracle.transform([reference]).T).toarray().ravel()
        assert scores == pytest.approx(expected, abs=1e-9)


def test_tfidf_by_hand():
    # One reference "ab": n-grams " a", "ab", "b ", " ab", "ab ", " ab "; "ac" shares only " a". Every idf of the
    # reference's n-grams is ln(2/2) + 1 = 1, every other ln(2/1) + 1.
    scores = run(Tfidf(), [Comparison("p", "ab", ("ab", "ac", "zz"), (0, 1, 2))])[0]
    unseen = (math.log(2) + 1) ** 2
    assert scores == pytest.approx([1.0, 1 / (math.sqrt(6) * math.sqrt(1 + 5 * unseen)), 0.0])


def test_tfidf_windows_do_not_change_scores(monkeypatch):
    items = comparisons()
    whole = run(Tfidf(), items)
    monkeypatch.setattr(baselines, "_WINDOW", 1)
    assert [pytest.approx(scores) for scores in run(Tfidf(), items)] == whole


def test_tfidf_is_a_tie_without_reference():
    assert run(Tfidf(), [Comparison("p", "", ("a b", "c d"), (0, 1))]) == [[0.0, 0.0]]


def test_length_is_closeness_to_the_reference():
    scores = run(Length(), [Comparison("p", "x" * 9, ("y" * 9, "y" * 19, "y" * 4), (0, 1, 2))])[0]
    assert scores == pytest.approx([0, -math.log(2), -math.log(2)])


def test_length_prefers_longer_without_reference():
    for reference in ("", None):
        scores = run(Length(), [Comparison("p", reference, ("aa", "aaaa", ""), (0, 1, 2))])[0]
        assert scores[1] > scores[0] > scores[2] == 0


def test_message_lists_are_flattened():
    def messages(text):
        return [{"role": "assistant", "content": text}]

    plain = comparisons()[:1]
    listed = [Comparison("p", messages(TEXTS[0][0]), tuple(map(messages, TEXTS[0][1])), (0, 1, 2))]
    for make in (Length, Tfidf):
        assert run(make(), plain) == run(make(), listed)


def test_scores_are_finite_for_any_text():
    odd = ["", " ", "\n\n", "\0", "a" * 20000, "日本語", "🙂👩‍💻", "<|reward|>"]
    items = [Comparison("p", reference, tuple(odd), tuple(range(len(odd)))) for reference in odd]
    for make in (Length, Tfidf):
        assert np.isfinite(run(make(), items)).all()


def test_unknown_baseline():
    assert list(make_baselines(["tfidf", "length"])) == ["tfidf", "length"]
    with pytest.raises(PolarError, match="unknown baseline 'bleu'; known: length, tfidf"):
        make_baselines(["length", "bleu"])

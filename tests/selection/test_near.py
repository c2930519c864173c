"""Near duplicates against exact Jaccard similarities of word 5-grams."""

import random
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from polar_rm.selection import near
from polar_rm.selection.near import find_near_duplicates, rows_per_band, signature

WORDS = [f"word{i}" for i in range(400)]


@cache
def grams(text):
    words = text.lower().split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def jaccard(first, second):
    return len(grams(first) & grams(second)) / len(grams(first) | grams(second))


def changed(text, count, rng):
    words = text.split()
    for place in rng.sample(range(len(words)), count):
        words[place] = rng.choice(WORDS)
    return " ".join(words)


def test_signatures_estimate_the_jaccard_similarity():
    rng = random.Random(1)
    errors = []
    for _ in range(300):
        text = " ".join(rng.choices(WORDS, k=rng.randint(30, 300)))
        other = changed(text, rng.randint(0, 12), rng)
        estimate = (signature(text) == signature(other)).mean()
        errors.append(estimate - jaccard(text, other))
    assert abs(np.mean(errors)) < 0.008  # no bias: 300 estimates of a standard error of 0.044 at most
    assert np.sqrt(np.mean(np.square(errors))) < 0.044


@pytest.mark.parametrize("similarity", [0.6, 0.8, 1.0])
def test_what_is_dropped_is_what_a_greedy_comparison_of_all_pairs_drops(similarity):
    """The texts are far from the threshold on either side, so that the estimate can't be wrong."""
    rng = random.Random(2)
    texts = []
    for _ in range(30):
        text = " ".join(rng.choices(WORDS, k=200))
        copies = [text.upper() if similarity == 1 else changed(text, 1, rng) for _ in range(rng.randint(0, 3))]
        texts += [text, *copies, changed(text, 60, rng)]
    rng.shuffle(texts)
    for first, second in combinations(texts, 2):
        assert not similarity - 0.15 < jaccard(first, second) < min(1, similarity + 0.1)
    signatures = np.array([signature(text) for text in texts])
    order = np.array(rng.sample(range(len(texts)), len(texts)))
    kept, expected = [], {}
    for index in order.tolist():
        copies = [other for other in kept if jaccard(texts[index], texts[other]) >= similarity]
        expected[index] = copies[0] if copies else -1
        kept += [] if copies else [index]
    copy_of, similarities, cut = find_near_duplicates(signatures, order, np.zeros(len(texts), np.uint64), similarity)
    assert copy_of.tolist() == [expected[index] for index in range(len(texts))]
    assert cut == 0
    assert (copy_of >= 0).sum() > 10
    assert (similarities[copy_of >= 0] >= similarity).all()


def test_only_answers_of_one_cell_are_compared_and_only_those_in_the_order():
    signatures = np.array([signature("the same few words here")] * 4)
    cells = np.array([1, 1, 2, 2], np.uint64)
    copy_of, _, _ = find_near_duplicates(signatures, np.array([1, 0, 3]), cells, 0.8)
    assert copy_of.tolist() == [1, -1, -1, -1]


def test_a_sign_or_a_digit_makes_short_answers_different():
    """Nothing is dropped that differs in what matters: -1 is not 1."""
    texts = ["x = -1", "x = 1", "x = 1.5", "x=1", "", "東京です", "東京都です", "_", "€"]
    signatures = np.array([signature(text) for text in texts])
    copy_of, _, _ = find_near_duplicates(signatures, np.arange(len(texts)), np.zeros(len(texts), np.uint64), 0.8)
    assert copy_of.tolist() == [-1, -1, -1, 1, -1, -1, -1, -1, -1]


def test_a_very_long_text_is_hashed_in_chunks(monkeypatch):
    text = " ".join(random.Random(3).choices(WORDS, k=1000))
    whole = signature(text)
    monkeypatch.setattr(near, "_CHUNK", 64)
    assert (signature(text) == whole).all()


def test_bands_find_pairs_of_the_threshold():
    for similarity in (0.5, 0.7, 0.8, 0.9, 0.99):
        rows = rows_per_band(similarity)
        assert 1 - (1 - similarity**rows) ** (128 // rows) >= 0.99
        assert 1 - (1 - similarity ** (rows + 1)) ** (128 // (rows + 1)) < 0.99
    assert rows_per_band(1.0) == 128


def test_comparisons_that_are_cut_are_counted(monkeypatch):
    """Texts with a long common beginning share bands but are no near duplicates."""
    monkeypatch.setattr(near, "_MAX_COMPARED", 3)
    rng = random.Random(4)
    common = " ".join(rng.choices(WORDS, k=200))
    texts = [f"{common} {' '.join(rng.choices(WORDS, k=60))}" for _ in range(40)]
    signatures = np.array([signature(text) for text in texts])
    copy_of, _, cut = find_near_duplicates(signatures, np.arange(40), np.zeros(40, np.uint64), 0.8)
    assert (copy_of < 0).all()
    assert cut > 0

"""Near copies among many texts: the pairs of a comparison of all with all."""

import random

from polar_rm.records import is_copy, near_copies

WORDS = "the quick brown fox jumps over a lazy dog near the river bank while it watches a slow green turtle".split()


def test_near_copies_are_those_of_all_pairs():
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=60)) for _ in range(40)]
    others = [f"{text[:150]}{draw.choice('xyz')}{text[150:]}" if index % 3 else text.upper() for index, text in enumerate(texts)]
    others += ["", " ".join(draw.choices(WORDS, k=60)), *texts[:2]]
    draw.shuffle(others)
    expected = [(i, j) for j, other in enumerate(others) for i, text in enumerate(texts) if is_copy(text, other)]
    assert list(near_copies(texts, others)) == expected and len(expected) == 42


def test_empty_and_short_texts():
    assert list(near_copies(["", "a", "b"], ["", "A ", "c"])) == [(1, 1)]
    assert list(near_copies([], ["a"])) == []

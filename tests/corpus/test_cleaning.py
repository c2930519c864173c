"""Cleaning only shortens, never to nothing, and leaves ordinary text alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polar_rm.corpus.cleaning import clean
from polar_rm.corpus.config import Cleaning


def is_subsequence(short: str, long: str) -> bool:
    rest = iter(long)
    return all(character in rest for character in short)


@given(
    st.text(max_size=40),
    st.sampled_from(["ha", "the cat sat. ", "- item\n", "\U0001f642"]),
    st.integers(0, 200),
    st.sampled_from([None, "length", "stop"]),
)
def test_texts_only_get_shorter_and_never_empty(text, unit, copies, finish_reason):
    text = text + unit * copies
    cleaned = clean(text, finish_reason).text
    assert is_subsequence(cleaned, text)
    assert bool(cleaned.strip()) == bool(text.strip())
    assert clean(cleaned, finish_reason).text == cleaned


def test_loops_are_cut_but_stay_recognisable():
    text = "A list follows.\n" + "I am sorry.\n" * 50
    cleaned = clean(text, "stop")
    assert 3 <= cleaned.text.count("I am sorry.") < 10
    assert cleaned.removed["repeated_lines"] > 0
    assert clean("no " * 300, "stop").text.split()[:3] == ["no", "no", "no"]


def test_unfinished_endings_are_trimmed_where_the_limit_cut():
    text = "It rains because clouds are full. Rivers carry the wat"
    assert clean(text, "length").text == "It rains because clouds are full."
    assert clean(text, "stop").text == text


def test_rules_can_be_switched_off():
    text = "ha" * 200
    off = Cleaning(repeated_lines=False, repeated_words=False, repeated_characters=False, unfinished_endings=False)
    assert clean(text, "length", off).text == text
    assert clean(text, "stop").text != text

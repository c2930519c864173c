import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_rm.corpus.cleaning import LOOPS, clean, clean_all
from polar_rm.corpus.config import Cleaning

SENTENCE = "The cat sat on the mat and looked out."


def texts():
    """Ordinary characters, and repeated units, also nested ones."""
    unit = st.text("ab .\n,x?é中", min_size=1, max_size=6)
    looped = st.tuples(unit, st.integers(1, 120)).map(lambda pair: pair[0] * pair[1])
    flat = st.lists(st.one_of(unit, looped, st.just(SENTENCE)), max_size=5).map("".join)
    return st.one_of(st.text(max_size=60), flat, st.tuples(flat, st.integers(1, 12)).map(lambda pair: pair[0][:200] * pair[1]))


REASONS = st.sampled_from([None, "length", "stop"])


def is_subsequence(short, long):
    rest = iter(long)
    return all(character in rest for character in short)


def max_repeats(tokens, period):
    """By brute force: the maximum number of consecutive repeats of a unit of ``period`` tokens."""
    longest = run = 0
    for i in range(period, len(tokens)):
        run = run + 1 if tokens[i] == tokens[i - period] else 0
        longest = max(longest, run)
    return longest // period + 1


@given(texts(), REASONS)
@settings(max_examples=60)
def test_texts_are_only_shortened_never_emptied_and_cleaning_is_idempotent(text, reason):
    cleaned = clean(text, reason)
    assert is_subsequence(cleaned.text, text)
    assert bool(cleaned.text.strip()) == bool(text.strip())
    assert sum(cleaned.removed.values()) == len(text) - len(cleaned.text)
    assert clean(cleaned.text, reason).text == cleaned.text


@given(texts())
@settings(max_examples=60)
def test_no_loop_is_left(text):
    cleaned = clean(text, "stop").text
    tokens = {
        "repeated_characters": list(cleaned),
        "repeated_words": cleaned.split(),
        "repeated_lines": [line.rstrip() for line in cleaned.split("\n") if line.strip()],
    }
    for rule, loop in LOOPS.items():
        for period in range(1, loop.max_period + 1):
            assert max_repeats(tokens[rule], period) < loop.min_repeats(period), (rule, period)


@given(st.lists(st.tuples(texts(), REASONS), max_size=8))
@settings(max_examples=25)
def test_many_texts_are_cleaned_like_single_ones(rows):
    columns = [text for text, _ in rows], [reason for _, reason in rows]
    assert clean_all(*columns, Cleaning()) == [clean(text, reason) for text, reason in rows]


@pytest.mark.parametrize(
    ("rule", "unit", "unfinished"),
    [
        ("repeated_characters", "!", ""),
        ("repeated_characters", "哈嘻", "哈"),
        ("repeated_words", "I  love it, I do, ", "I  love "),
        ("repeated_lines", "- travel to Hungary\n- come back\n", "- travel to Hungary\n"),
    ],
)
def test_a_loop_is_shortened_and_stays_recognisable(rule, unit, unfinished):
    before, after = "It began well.\n\n", "\n\nAnd so it ended."
    after = after.lstrip("\n") if unit.endswith("\n") else after
    cleaned = clean(before + unit * 200 + after)
    assert list(cleaned.removed) == [rule]
    assert 3 <= cleaned.text.count(unit) < 40
    assert cleaned.text.startswith(before)
    assert cleaned.text.endswith(after)
    # At the end of a text the unfinished repeat is removed, too.
    assert clean(before + unit * 200 + unfinished, "stop").text.endswith(unit)


@pytest.mark.parametrize(
    "text",
    [
        "| a | b | c |\n|---|---|---|\n| 1 | 2 | 3 |\n" + "-" * 80,
        "Row, row, row your boat\n" * 4 + "Merrily, merrily, merrily, merrily\n" * 4,
        "for i in range(3):\n    x = [0, 0, 0, 0, 0, 0]\n    if x:\n        pass\n    }\n  }\n}\n",
        "0 1 0 1\n1 0 1 0\n0 1 0 1\n",
        "no no no no no, never",
    ],
)
def test_texts_of_people_are_unchanged(text):
    assert clean(text, "stop").text == text


@pytest.mark.parametrize("beside", ["", "go on\n" * 40])
def test_lines_that_differ_by_their_indentation_are_no_loop_and_by_blanks_at_their_end_they_are(beside):
    code = "".join(f"{'    ' * depth}}}\n" for depth in range(9, -1, -1))
    assert clean(code + beside, "stop").text.startswith(code)
    listed = "".join(f"- item{' ' * (number % 3)}\n" for number in range(20))
    assert clean(listed + beside, "stop").text.count("- item") < 8


@pytest.mark.parametrize(
    ("unit", "kept", "shortened"),
    [
        (f"{SENTENCE}\n", 7, 8),  # lines, and long units
        ("go ", 31, 32),  # words
        ("a", 95, 96),  # characters
        ("on and off, ", 7, 8),  # three words
    ],
)
def test_a_loop_is_as_long_as_published(unit, kept, shortened):
    """cle-1: by numbers, not by the thresholds in the code."""
    assert clean(f"Well: {unit * kept}", "stop").text == f"Well: {unit * kept}"
    cleaned = clean(f"Well: {unit * shortened}", "stop")
    assert cleaned.removed and len(cleaned.text) < len(unit * shortened)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"{SENTENCE} {SENTENCE} Then it", f"{SENTENCE} {SENTENCE}"),
        (f"- one thing to do here\n{SENTENCE}\n- two thi", f"- one thing to do here\n{SENTENCE}\n"),
        (f'{SENTENCE} "So it is!" She', f'{SENTENCE} "So it is!"'),
        (f"{SENTENCE} {SENTENCE} Use fruit, e.g. apples, with Dr. J. Smith, who", f"{SENTENCE} {SENTENCE}"),
        ("天气很好。我们去公园。然后", "天气很好。我们去公园。"),
        ("def f(x):\n    y = x + 1\n    return y *", "def f(x):\n    y = x + 1\n"),
        (SENTENCE, SENTENCE),  # finished
        ("one sentence that goes on and on and", "one sentence that goes on and on and"),  # no end of a sentence
        (f"Sure! {SENTENCE[:-1]}", f"Sure! {SENTENCE[:-1]}"),  # most of it would be removed
    ],
)
def test_an_unfinished_ending_is_trimmed_where_the_limit_ended_the_text(text, kept):
    """cle-2: every finish_reason of the limit."""
    for reason in ("length", "max_tokens", "max_length"):
        assert clean(text, reason).text == kept
    assert clean(text, "stop").text == text


def test_at_most_half_of_a_text_is_removed_at_its_end():
    start, rest = "All is well.", " And then on"  # of equal length
    assert clean(start + rest, "length").text == start
    assert clean(f"{start}{rest}e", "length").text == f"{start}{rest}e"


@pytest.mark.parametrize(
    ("text", "trimmed"),
    [
        (f"{SENTENCE} {SENTENCE} Then it went out and", True),
        (f"{SENTENCE} {SENTENCE} Good luck", False),  # three words or fewer may be a farewell
        (f"{SENTENCE}\nKind regards from all of us", False),
        (f"{SENTENCE} So the answer we get is 42", False),
        (f"{SENTENCE} ```python\nprint(1). Then we go on and on", False),
        ("# Title\n- buy a good pair of shoes\n- run", False),
        ("all small letters. nobody knows where it ends and", False),
    ],
)
def test_endings_without_a_finish_reason_are_trimmed_if_the_line_looks_unfinished(text, trimmed):
    assert (clean(text, None).text != text) == trimmed
    assert clean(text, None, Cleaning(guess_unfinished=False)).text == text


@pytest.mark.parametrize("rule", [*LOOPS, "unfinished_endings"])
def test_every_rule_can_be_switched_off(rule):
    text = {
        "repeated_characters": "a" * 200 + ".",
        "repeated_words": "on and off, " * 40,
        "repeated_lines": "x.\n" * 30,
        "unfinished_endings": f"{SENTENCE} {SENTENCE} Then it",
    }[rule]
    assert list(clean(text, "length").removed) == [rule]
    others = {name: name == rule for name in (*LOOPS, "unfinished_endings")}
    assert list(clean(text, "length", Cleaning(**others)).removed) == [rule]
    assert clean(text, "length", Cleaning(**{name: not on for name, on in others.items()})).removed.keys() <= {
        "repeated_characters"
    }

"""Where texts are divided, and which continuations become negatives."""

import json
import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

from polar_rm.corpus.config import Continuations
from polar_rm.corpus.continuations import Divider, copy_key, draw, first_characters, is_border, nearest_border
from polar_rm.errors import PolarError


def pairing(**changes):
    return Continuations.model_validate({"kind": "continuations"} | changes)


def divided(text, text_id="i", seed=0, **changes):
    return Divider(pairing(**changes), seed)(text, text_id)


# ------------------------------------------------------------------------------------------------------------- division


def test_words_end_before_white_space_and_between_ideographs():
    text = "ab  c\r\nd 中文。日本 é"
    borders = [index for index in range(len(text) + 1) if is_border(text, index)]
    assert [text[:index] for index in borders] == [
        "ab", "ab  c", "ab  c\r\nd", "ab  c\r\nd 中", "ab  c\r\nd 中文。日", "ab  c\r\nd 中文。日本",
    ]  # fmt: skip


ODD = [
    "e\u0301",
    "\u304b\u3099",
    "👩\u200d🔬",
    "🇩🇪",
    "\r\n",
    " ",
    " \u0301",
    "中",
    "か",
    "a",
    "\U00020000",
    "葛\U000e0100",
    "\u0930\u094d",
]


@given(st.lists(st.sampled_from(ODD), max_size=12).map("".join))
def test_no_border_is_inside_what_a_reader_sees_as_one_character(text):
    regex = pytest.importorskip("regex")
    ends = {match.end() for match in regex.finditer(r"\X", text)}
    assert {index for index in range(len(text) + 1) if is_border(text, index)} <= ends


@given(st.text("ab \n中か", max_size=30), st.data())
def test_the_nearest_border_is_that_of_all(text, data):
    low = data.draw(st.integers(0, len(text)))
    high = data.draw(st.integers(low, len(text)))
    target = data.draw(st.integers(low, high))
    borders = [index for index in range(low, high + 1) if is_border(text, index)]
    assert nearest_border(text, target, low, high) == min(borders, key=lambda i: (abs(i - target), i), default=None)


def test_both_parts_are_the_text_and_long_enough():
    rng = random.Random(0)
    lengths = set()
    for number in range(200):
        text = " ".join("x" * rng.randint(1, 9) for _ in range(60))
        beginning, continuation = divided(text, str(number), min_beginning=70, min_continuation=80)
        assert beginning + continuation == text
        assert len(beginning) >= 70 and len(continuation) >= 80
        assert continuation.startswith(" ") and not beginning.endswith(" ")
        assert 0.2 <= len(beginning) / len(text) <= 0.8
        lengths.add(len(beginning))
    assert len(lengths) > 100  # the place is random
    assert divided(text, "1") == divided(text, "1") != divided(text, "2") != divided(text, "1", seed=1)


def test_the_place_is_uniform_within_the_range():
    text = "a " * 500 + "a"
    fractions = [len(divided(text, str(number))[0]) / len(text) for number in range(2000)]
    assert abs(sum(fractions) / 2000 - 0.5) < 0.02
    assert sum(fraction < 0.35 for fraction in fractions) / 2000 == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a" * 49 + " " + "b" * 49, "too_short"),
        ("a" * 200, "without_border"),
        ("", "too_short"),
        ("ab " + "c" * 200 + " de", "without_border"),  # both borders leave one side too short
    ],
)
def test_texts_that_can_not_be_divided(text, reason):
    assert divided(text) == reason


def test_a_text_of_exactly_both_minimum_lengths_has_one_place():
    text = "a" * 50 + " " + "b" * 49
    assert divided(text, beginning={"low": 0.5, "high": 0.5}) == ("a" * 50, " " + "b" * 49)


def test_beginnings_of_characters_and_of_tokens(tmp_path):
    text = " ".join(["word"] * 300)
    many = [len(divided(text, str(n), beginning={"unit": "characters", "low": 100, "high": 120})[0]) for n in range(50)]
    assert 100 <= min(many) <= max(many) <= 120
    tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
    beginning = {"unit": "tokens", "low": 60, "high": 90, "tokenizer": str(tmp_path)}
    counts = {
        len(tiny.tokenizer().encode(divided(text, str(n), beginning=beginning)[0], add_special_tokens=False).ids)
        for n in range(50)
    }
    assert min(counts) >= 60 and max(counts) <= 90 and len(counts) > 5
    assert divided("word " * 10, beginning=beginning) == "too_short"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PolarError, match=r"tokenizer.json: not a tokenizer"):
        divided(text, beginning=beginning)
    bomb = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}  # F12
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(tiny.tokenizer().to_str()) | {"normalizer": bomb}))
    with pytest.raises(PolarError, match="can make a text 1,000 times as long"):
        divided(text, beginning=beginning)


@pytest.mark.parametrize(("count", "expected"), [(100, "ab cd ef"), (7, "ab cd"), (5, "ab cd"), (4, "ab"), (1, "")])
def test_a_text_is_cut_at_a_word(count, expected):
    assert first_characters("ab cd ef", count) == expected


def test_copies_have_one_key_whatever_their_case_and_white_space():
    assert copy_key(" An  Apple\n") == copy_key("an apple") != copy_key("an apples")
    assert copy_key(unicodedata.normalize("NFD", "café")) == copy_key(unicodedata.normalize("NFC", "CAFÉ"))


# ------------------------------------------------------------------------------------------------------------ negatives


def brute_force(lengths, copies, pools, negatives, near_length, uses, window):
    """The first texts after each text, in its pool's ring, that the settings allow."""
    used, chosen = [0] * len(lengths), [[] for _ in lengths]
    for pool in set(pools):
        ring = [i for i, each in enumerate(pools) if each == pool]
        for place, i in enumerate(ring):
            for j in (ring[(place + step) % len(ring)] for step in range(1, min(window, len(ring) - 1) + 1)):
                near = near_length is None or max(1 + lengths[i], 1 + lengths[j]) <= near_length * min(
                    1 + lengths[i], 1 + lengths[j]
                )
                fresh = copies[j] not in {copies[k] for k in [i, *chosen[i]]}
                if len(chosen[i]) < negatives and used[j] < uses and near and fresh:
                    chosen[i].append(j)
                    used[j] += 1
    return chosen


@pytest.mark.parametrize("n", [0, 1, 2, 5, 255, 256, 257, 258, 700])
@pytest.mark.parametrize(
    "settings", [{}, {"negatives": 2, "near_length": 1.3}, {"negatives": 70, "uses": 80}, {"uses": 5, "near_length": 2.0}]
)
def test_negatives_are_those_of_brute_force(n, settings):
    rng = random.Random(n)
    lengths, copies = [rng.randint(1, 60) for _ in range(n)], [rng.randrange(max(1, n // 2)) for _ in range(n)]
    pools = rng.choices(["a", "b", "c"], [1, 20, 300], k=n)
    chosen = pairing(**settings)
    window = max(256, 4 * chosen.negatives)
    expected = brute_force(lengths, copies, pools, chosen.negatives, chosen.near_length, chosen.uses or chosen.negatives, window)
    assert draw(lengths, copies, pools, chosen) == expected


def test_without_conditions_every_text_is_used_equally():
    chosen = draw([9] * 50, list(range(50)), ["p"] * 50, pairing(negatives=4))
    uses = [each for row in chosen for each in row]
    assert {len(row) for row in chosen} == {4}
    assert {uses.count(number) for number in range(50)} == {4}


# --------------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"uses": 2}, "uses 2 is less than negatives 3"),
        ({"max_characters": 99}, "max_characters 99 is less than min_beginning and min_continuation, 100"),
        ({"rows": "trajectories", "column": "body"}, "column can't be set with rows: trajectories"),
        ({"beginning": {"low": 0.9}}, "low 0.9 is more than high 0.8"),
        ({"beginning": {"high": 1}}, "nothing would continue a whole text"),
        ({"beginning": {"unit": "characters"}}, "low and high must be whole numbers of characters"),
        ({"beginning": {"unit": "tokens", "low": 1, "high": 9}}, "unit: tokens and a tokenizer go together"),
        ({"beginning": {"tokenizer": "t"}}, "unit: tokens and a tokenizer go together"),
    ],
)
def test_settings_that_contradict_each_other(values, message):
    with pytest.raises(ValueError, match=message):
        pairing(**values)
    json.dumps(pairing().model_dump(mode="json"))

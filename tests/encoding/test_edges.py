"""F3: text beyond a limit is not tokenised, and this changes no id."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from polar_rm.encoding import edges
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.encoding.tree import PrefixTree
from polar_rm.errors import PolarError
from polar_rm.model.native import add_role_tokens
from polar_rm.records import Comparison


def whole_text() -> Tokenizer:
    """No pre-tokenizer: the whole text is one word, as in Llama 2 and POLAR."""
    tokenizer = Tokenizer.from_str(tiny.tokenizer(bos=True).to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return tokenizer


def digits(pattern: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tiny.tokenizer().to_str())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return tokenizer


def normalising() -> Tokenizer:
    tokenizer = Tokenizer.from_str(tiny.tokenizer().to_str())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("the", "")])
    return tokenizer


TOKENIZERS = {
    "byte level": tiny.tokenizer,
    "whole text": whole_text,
    "digits from the left": lambda: digits(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    "digits from the right": lambda: digits(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    "normalising": normalising,
}
ENCODERS = {
    (name, side): Encoder(
        add_role_tokens(build()), EncoderSettings(max_length=160, max_response_length=40, response_cut_side=side)
    )
    for name, build in TOKENIZERS.items()
    for side in ("right", "left")
}
PIECES = st.sampled_from(
    [
        "the quick ",
        "fox",
        " ",
        "\n",
        "1234567",
        "aaaaaaaa",
        "naïve ",
        "e\u0301",
        "🙂",
        "中文",
        "<|rew",
        "ard|>",
        "<|reward|>",
        "...",
        "x",
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=400).map("".join),
    st.tuples(
        st.lists(PIECES, max_size=9).map("".join),
        st.sampled_from(["7", "a", " ", "ab", "<|reward|>", "the ", "=", "🙂"]),
        st.integers(0, 3000),
    ).map(lambda parts: parts[0] + parts[1] * parts[2] + parts[0]),
)


def in_small_parts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(edges, "CHARACTERS_PER_TOKEN", 1)
    patch.setattr(edges, "MARGIN", 64)
    patch.setattr(edges, "ZONE", 64)


def read_whole(encoder: Encoder, comparison: Comparison) -> PrefixTree:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edges, "CHARACTERS_PER_TOKEN", 10**6)
        return encoder.encode(comparison)


def read_in_small_parts(encoder: Encoder, comparison: Comparison) -> PrefixTree:
    with pytest.MonkeyPatch.context() as patch:
        in_small_parts(patch)
        return encoder.encode(comparison)


@pytest.mark.parametrize("key", [("digits from the right", "right"), ("digits from the left", "left")], ids="-".join)
@pytest.mark.parametrize("length", [2998, 2999, 3000])
def test_what_the_unread_rest_of_a_number_decides_is_not_taken_from_a_part(key, length):
    """The groups of three of a long number begin at its other end."""
    number = ("345" * length)[:length]
    comparison = Comparison("p", number, (number + ".", "x"), (0, 1))
    whole, found = (read(ENCODERS[key], comparison) for read in (read_whole, read_in_small_parts))
    assert (found.prefix, found.branches) == (whole.prefix, whole.branches)


@pytest.mark.parametrize("key", ENCODERS, ids="-".join)
@settings(max_examples=40)
@given(prompt=TEXTS, reference=TEXTS, candidates=st.lists(TEXTS, min_size=1, max_size=2))
def test_ids_equal_those_of_the_whole_text(key, prompt, reference, candidates):
    encoder = ENCODERS[key]
    comparison = Comparison(prompt, reference, tuple(candidates), tuple(range(len(candidates))))
    whole, tree = read_whole(encoder, comparison), read_in_small_parts(encoder, comparison)
    assert (tree.prefix, tree.branches) == (whole.prefix, whole.branches)
    assert bool(tree.truncation) == bool(whole.truncation)
    is_truncated = [(t.prompt > 0, t.reference > 0, *(c > 0 for c in t.candidates)) for t in (tree.truncation, whole.truncation)]
    assert is_truncated[0] == is_truncated[1]


def count_characters(encoder: Encoder, monkeypatch) -> list[int]:
    seen: list[int] = []
    tokenise = encoder._tokenise
    monkeypatch.setattr(encoder, "_tokenise", lambda texts, encode: seen.append(sum(map(len, texts))) or tokenise(texts, encode))
    return seen


@pytest.mark.parametrize("field", ["prompt", "reference", "output"])
@pytest.mark.parametrize("unit", ["the quick brown fox ", "7", "<|reward|>", "<|rew", "a"])
def test_only_a_small_part_of_megabytes_is_read(monkeypatch, field, unit):
    encoder = Encoder(add_role_tokens(tiny.tokenizer()), EncoderSettings(max_length=2000, max_response_length=500))
    seen = count_characters(encoder, monkeypatch)
    texts = {"prompt": "p", "reference": "r", "output": "o"} | {field: unit * (4_000_000 // len(unit))}
    [(_, tree)] = encoder.encode_outputs(texts["prompt"], texts["reference"], [texts["output"]])
    assert tree.truncation
    assert len(tree.sequence(0)) <= 2000
    assert sum(seen) < 4 * edges.MAX_CHARACTERS
    if unit == "the quick brown fox ":
        assert sum(seen) < 120_000


def test_counts_of_truncated_tokens_are_estimates_beyond_the_part_that_is_read():
    encoder = Encoder(add_role_tokens(tiny.tokenizer()), EncoderSettings(max_length=400, max_response_length=100))
    random.seed(0)
    text = " ".join(random.choices(["the quick", "brown", "fox 12", "naïve,"], k=60_000))
    n_tokens = len(encoder.ids(text))
    [(_, tree)] = encoder.encode_outputs(text, text, [text])
    truncation = tree.truncation
    for removed, kept in ((truncation.prompt, 98), (truncation.reference, 100), (truncation.candidates[0], 100)):
        assert removed == pytest.approx(n_tokens - kept, rel=0.02)


@pytest.mark.parametrize("length", [0, 3_000, 40_000, 1_500_000])
@pytest.mark.parametrize("position", ["first", "middle", "last"])
def test_a_lone_surrogate_is_one_clear_error_at_any_length(length, position):
    """B3."""
    encoder = Encoder(add_role_tokens(tiny.tokenizer()), EncoderSettings(max_length=500, max_response_length=64))
    words = "fox " * (length // 8)
    text = {"first": "\ud800" + words + words, "middle": words + "\udfff" + words, "last": words + words + "\ud83d"}[position]
    for prompt, reference, output in ((text, "r", "o"), ("p", text, "o"), ("p", "r", text)):
        with pytest.raises(PolarError, match="not valid Unicode"):
            encoder.encode_outputs(prompt, reference, [output])
        with pytest.raises(PolarError, match="not valid Unicode"):
            encoder.encode(Comparison(prompt, reference, (output, "x"), (0, 1)))


@pytest.mark.parametrize("text", ["\ud800", "\ud800" + "fox " * 500])
def test_a_rendered_text_with_a_lone_surrogate_is_refused(text):
    """B3."""
    encoder = Encoder(add_role_tokens(tiny.tokenizer()), EncoderSettings(max_length=500, max_response_length=64))
    with pytest.raises(PolarError, match="not valid Unicode|more than max_length"):
        encoder.ids_of_rendered(text)


def test_a_rendered_text_beyond_the_limit_is_refused_by_its_beginning(monkeypatch):
    encoder = Encoder(add_role_tokens(tiny.tokenizer()), EncoderSettings(max_length=500, max_response_length=64))
    seen = count_characters(encoder, monkeypatch)
    with pytest.raises(PolarError, match=r"8,008 characters are more than max_length 500 tokens"):
        encoder.ids_of_rendered("the fox 1234567 " * 500 + "\ud800\ud800\ud800end..")
    assert sum(seen) <= 6_000
    assert len(encoder.ids_of_rendered("a<|reward|>" + "jumps over the lazy dog " * 60 + "[UNUSED_TOKEN_130]")) > 300

"""The fast tokenizer against SentencePiece itself, with a model that is trained here with the settings of the official one."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import official
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from polar_rm.conversion.sentencepiece import SentencePieces, fast_tokenizer
from polar_rm.errors import PolarError, UnsupportedModel

AWKWARD = [
    "",
    " ",
    "   leading and trailing   ",
    "\n\nnewlines\r\n\tand tabs\n",
    "中文 日本語 한국어 naïve Ünïcode e\u0301",
    "🙂👩‍💻 \U0010ffff \ufeff \u200b",
    "a  b   c    d" + " " * 37 + "e",
    "aaaaaaa aaaaaaaaaaaa -------- ------------",
    "▁literal▁▁ ▁ blanks",
    "<0x41> <0x0A> <s>a</s> <unk> < s >",
    "[UNUSED_TOKEN_1]x[UNUSED_TOKEN_2] [UNUSED_TOKEN_130].[UNUSED_TOKEN_9] [UNUSED_TOKEN_",
    "<|reward|>a<|im_end|> <|rew<|reward|>ard|> [UNUSED_TOKEN_0] [UNUSED_TOKEN_145]",
    "ＡＥＦ ＥＥ",
]


@pytest.fixture(scope="module")
def fast(converted):
    return Tokenizer.from_file(str(converted / "tokenizer.json"))


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_get_sentencepieces_ids(fast, text):
    assert fast.encode(text).ids == official.SlowTokenizer().encode(text)


@settings(max_examples=200)
@given(st.lists(st.one_of(st.text(), st.sampled_from(AWKWARD), st.sampled_from(["a", "aa", " ", "-"])), max_size=8).map("".join))
def test_any_text_gets_sentencepieces_ids(fast, text):
    text = text.replace("\0", "")  # releases of SentencePiece differ here
    assert fast.encode(text).ids == official.SlowTokenizer().encode(text)


def test_runs_of_one_character_merge_as_in_sentencepiece(fast):
    slow = official.SlowTokenizer()
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("a -=eｅ.") * rng.randint(1, 40) for _ in range(rng.randint(1, 5)))
        assert fast.encode(text).ids == slow.encode(text)


def test_transformers_gives_the_same_ids_and_decodes_to_the_text(converted, fast):
    loaded = AutoTokenizer.from_pretrained(converted)
    for text in AWKWARD:
        assert loaded(text)["input_ids"] == fast.encode(text).ids
    assert loaded.padding_side == "left"
    assert loaded.pad_token == "</s>"
    plain = "  It's a text , isn't it ?\n中文🙂 "
    assert fast.decode(fast.encode(plain).ids, skip_special_tokens=True) == plain


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"add_dummy_prefix": True}, "puts a space before every text"),
        ({"remove_extra_whitespaces": True}, "removes repeated spaces"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises characters"),
        ({"byte_fallback": False, "vocab_size": 400}, "no byte fallback"),
        ({"model_type": "unigram", "hard_vocab_limit": False}, "not a BPE model"),
    ],
)
def test_models_that_a_fast_tokenizer_can_not_reproduce_are_refused(tmp_path, changes, reason):
    (tmp_path / "tokenizer.model").write_bytes(official.sentencepiece_model(**changes))
    with pytest.raises(UnsupportedModel, match=reason):
        fast_tokenizer(tmp_path / "tokenizer.model", {}, 3, None)


def test_invalid_files_and_ids_are_refused(tmp_path):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(PolarError, match="No such file"):
        fast_tokenizer(path, {}, 3, None)
    path.write_bytes(b"{}" * 40)
    with pytest.raises(PolarError, match="not a SentencePiece model"):
        fast_tokenizer(path, {}, 3, None)
    path.write_bytes(official.sentencepiece_model())
    with pytest.raises(UnsupportedModel, match="700 pieces, but a token has the id 700"):
        fast_tokenizer(path, {700: AddedToken("<|reward|>")}, 3, None)
    with pytest.raises(UnsupportedModel, match="'Ｅ' would have two ids"):
        fast_tokenizer(path, {5: AddedToken("Ｅ")}, 3, None)
    with pytest.raises(UnsupportedModel, match="BOS '<bos>' is not a piece"):
        fast_tokenizer(path, {}, 3, "<bos>")


def test_what_a_normaliser_does_not_say_is_what_sentencepiece_does():
    """The defaults of sentencepiece_model.proto: a space before every text, no repeated spaces, spaces escaped."""
    exact = {1: b"identity", 3: 0, 4: 0, 5: 1}
    trainer = {3: 2, 35: 1}
    for number, reason in ((3, "a space before every text"), (4, "removes repeated spaces"), (5, None)):
        pieces = SentencePieces([("a", 0.0, 1)], trainer, {key: value for key, value in exact.items() if key != number})
        if reason is None:
            pieces.check(Path("m"))
        else:
            with pytest.raises(UnsupportedModel, match=reason):
                pieces.check(Path("m"))
    SentencePieces([("a", 0.0, 1)], trainer, exact).check(Path("m"))

import json
import unicodedata

import pytest

from polar_rm.corpus.contamination import index_evaluations
from polar_rm.errors import PolarError
from polar_rm.records import words

LONG = "Write a short story about a lighthouse keeper who has never once seen the open sea."


@pytest.fixture
def index(tmp_path):
    rows = [{"prompt": LONG, "chosen": "x", "rejected": "y"}, {"prompt": "Say hello."}]
    rows.append({"prompt": [{"role": "user", "content": "为什么天空是蓝色的而不是绿色的呢请说明"}]})
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return index_evaluations([str(tmp_path / "eval.jsonl")], 13)


def test_words_are_normalised():
    assert words("It's 5 O'Clock, isn't_it? 天空") == ["it", "s", "5", "o", "clock", "isn", "t", "it", "天", "空"]
    assert words(unicodedata.normalize("NFD", "Préféré")) == ["préféré"]


def test_shared_ngrams_are_found_whatever_the_case_and_punctuation(index):
    match = index.match("Please: WRITE a short story - about a lighthouse keeper, who has never once seen land!")
    assert match["row"] == 1
    assert match["words"] == "write a short story about a lighthouse keeper who has never once seen"
    assert index.match([{"role": "user", "content": "请问为什么天空是蓝色的而不是绿色的呢"}])["row"] == 3


def test_twelve_shared_words_do_not_match(index):
    assert index.match("Write a short story about a lighthouse keeper who has never swum") is None
    assert index.match("") is None


def test_short_evaluation_prompts_match_only_equal_ones(index):
    assert index.match("say  HELLO")["row"] == 2
    assert index.match("Say hello. Then go on with whatever you like, but never say hello.") is None


def test_prompts_without_words_match_only_themselves(tmp_path):
    (tmp_path / "eval.jsonl").write_text(json.dumps({"prompt": "🙂 ?"}) + "\n")
    index = index_evaluations([str(tmp_path / "eval.jsonl")], 13)
    assert index.match(" 🙂  ?")["row"] == 1
    assert index.match("!") is index.match("") is None


def test_files_without_prompts_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(PolarError, match="row 1: field 'prompt'"):
        index_evaluations([str(tmp_path / "x.jsonl")], 13)

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import tiny
from transformers import AutoTokenizer

from polar_rm.errors import BadRow, PolarError
from polar_rm.records import OnBadRow
from polar_rm.sampling.prompts import Prefixes, PromptRows, make_prefixes, read_rows

TEXTS = [f"The quick brown fox number {i} jumps over the lazy dog. 中文 🙂 naïve {i}. " * 4 for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.causal_lm(tmp_path_factory.mktemp("lm"))


def prefixes(path, tokenizer, seed=0, mode="error", **changes):
    source = Prefixes.model_validate({"texts": str(path), "tokenizer": str(tokenizer)} | changes)
    drawn, counts = make_prefixes(source, seed, None, OnBadRow(mode, path.parent / "rejected.jsonl"))
    return {prompt.prompt_id: prompt.prompt for prompt in drawn}, counts


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_prefixes_are_beginnings_of_texts_of_random_length_and_reproducible(tmp_path, tokenizer):
    path = jsonl(tmp_path / "texts.jsonl", TEXTS)
    drawn, counts = prefixes(path, tokenizer, count=30, max_tokens=50)
    assert counts == {"texts": 40, "empty": 0, "repeated": 0, "bad": 0, "too_short": 0}
    assert all(any(text.startswith(prefix) for text in TEXTS) for prefix in drawn.values())
    encode = AutoTokenizer.from_pretrained(tokenizer)
    lengths = [len(encode(prefix)["input_ids"]) for prefix in drawn.values()]
    assert 1 <= min(lengths) < 15 and 35 < max(lengths) <= 52  # a cut beside a multi-byte character may move by its bytes
    assert prefixes(path, tokenizer, count=30, max_tokens=50)[0] == drawn
    # The order of texts does not matter. A larger count keeps the prefixes of a smaller one; another seed draws others.
    jsonl(path, TEXTS[::-1])
    assert prefixes(path, tokenizer, count=30, max_tokens=50)[0] == drawn
    assert drawn.items() < prefixes(path, tokenizer, count=40, max_tokens=50)[0].items()
    assert not set(drawn.values()) & set(prefixes(path, tokenizer, seed=1, max_tokens=50)[0].values()) > {""}


def test_all_kinds_of_files_give_the_same_prefixes(tmp_path, tokenizer):
    expected, _ = prefixes(jsonl(tmp_path / "texts.jsonl", TEXTS), tokenizer)
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "texts.parquet")
    assert prefixes(tmp_path / "texts.parquet", tokenizer, column="body")[0] == expected
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    assert prefixes(tmp_path / "saved", tokenizer)[0] == expected
    (tmp_path / "plain").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / f"plain/{number}.txt").write_text(text)
    assert prefixes(tmp_path / "plain/*.txt", tokenizer)[0].keys() != {} and len(prefixes(tmp_path / "plain", tokenizer)[0]) == 40


def test_a_folder_of_data_with_a_readme_gives_its_data(tmp_path, tokenizer):
    """A folder from a hub has a README.md beside its data."""
    expected, _ = prefixes(jsonl(tmp_path / "texts.jsonl", TEXTS), tokenizer)
    (tmp_path / "data/train").mkdir(parents=True)
    jsonl(tmp_path / "data/train/texts.jsonl", TEXTS)
    (tmp_path / "data/README.md").write_text("# A data set\n\nOf many texts, each longer than this one.\n" * 20)
    assert prefixes(tmp_path / "data", tokenizer)[0] == expected
    assert prefixes(tmp_path / "data/*", tokenizer)[0] == expected
    readme, _ = prefixes(tmp_path / "data/*.md", tokenizer)
    assert readme and not readme.keys() & expected.keys()
    (tmp_path / "data/train/texts.jsonl").unlink()
    assert prefixes(tmp_path / "data", tokenizer)[0] == readme


def test_a_long_file_gives_passages_from_paragraph_to_paragraph(tmp_path, tokenizer):
    paragraphs = [f"Paragraph {i} begins here.\nIt has two lines." for i in range(60)]
    path = tmp_path / "book.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(paragraphs).encode())
    drawn, counts = prefixes(path, tokenizer, max_tokens=30)
    assert 10 < counts["texts"] < 30 and len(drawn) == counts["texts"]
    assert all(prompt.startswith("Paragraph"[: len(prompt)]) for prompt in drawn.values())


def test_empty_repeated_and_short_texts_are_counted(tmp_path, tokenizer):
    path = jsonl(tmp_path / "texts.jsonl", [*TEXTS, "", " \n", TEXTS[0], "fox"])
    drawn, counts = prefixes(path, tokenizer, min_tokens=10, max_tokens=20)
    assert counts == {"texts": 44, "empty": 2, "repeated": 1, "bad": 0, "too_short": 1}
    assert len(drawn) == 40
    with pytest.raises(PolarError, match="count asks for 41 prefixes, its texts give 40 .*2 empty, 1 repeated"):
        prefixes(path, tokenizer, count=41, min_tokens=10)


def test_a_blank_prefix_is_too_short(tmp_path, tokenizer):
    path = jsonl(tmp_path / "texts.jsonl", [f"\n\n\n   fox {i}" for i in range(30)])
    drawn, counts = prefixes(path, tokenizer, max_tokens=6)
    assert all(prefix.strip() for prefix in drawn.values())
    assert counts["too_short"] == 30 - len(drawn) > 0


def test_broken_unicode_names_the_row_or_is_counted(tmp_path, tokenizer):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'{"text": "good fox"}\n{"text": "bad \\ud800"}\n{"text": "bad \xff"}\n{"text": 3}\n')
    with pytest.raises(BadRow, match="row 2: field 'text': expected Unicode text"):
        prefixes(path, tokenizer)
    drawn, counts = prefixes(path, tokenizer, mode="skip")
    assert len(drawn) == 1 and counts["bad"] == 3
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 3
    plain = tmp_path / "text.txt"
    plain.write_bytes(b"fine\n\nnot \xff fine\n")
    with pytest.raises(BadRow, match="text.txt: row 3: expected UTF-8 text, but byte 5"):
        prefixes(plain, tokenizer)


def test_prefixes_are_cached_until_texts_or_settings_change(tmp_path, tokenizer, monkeypatch):
    path, cache = jsonl(tmp_path / "texts.jsonl", TEXTS), tmp_path / "prefixes.json"
    source = Prefixes(texts=(path,), tokenizer=str(tokenizer), count=5)
    drawn = make_prefixes(source, 0, cache, OnBadRow())
    with monkeypatch.context() as patch:
        patch.setattr("polar_rm.sampling.prompts._choose", None)
        assert make_prefixes(source, 0, cache, OnBadRow()) == drawn
    assert make_prefixes(source, 1, cache, OnBadRow()) != drawn
    jsonl(path, TEXTS[5:])
    assert make_prefixes(source, 1, cache, OnBadRow())[1]["texts"] == 35


def test_bad_prompt_rows(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt_id": "a", "prompt": "x"}\n{"prompt_id": "b", "prompt": " "}\n{"prompt_id": "a", "prompt": "y"}\n')
    with pytest.raises(BadRow, match="row 2: field 'prompt': expected a prompt, but it is empty"):
        list(read_rows(PromptRows(rows=path), OnBadRow()))
    bad = OnBadRow("skip", tmp_path / "rejected.jsonl")
    assert [prompt.prompt_id for prompt in read_rows(PromptRows(rows=path), bad)] == ["a"]
    assert bad.count == 2

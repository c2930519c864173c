import json

import pytest
import tiny

from polar_rm.errors import PolarError
from polar_rm.records import OnBadRow, read_comparisons
from polar_rm.training import data
from polar_rm.training.data import encode_corpus


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    settings = tiny.EncoderSettings(max_length=120, max_response_length=8)
    return tiny.reward_model(tmp_path_factory.mktemp("lm"), settings=settings).encoder


def write(path, count, start=0):
    rows = [
        {
            "prompt": f"p{i}",
            "reference": "fox",
            "candidates": ["fox " * (i % 9 + 1), *map(str, range(i % 3 + 1))],
            "ranks": [0] + [1] * (i % 3 + 1),
        }
        for i in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_random_access_equals_encoding_across_batches_and_files(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_ROWS_PER_BATCH", 7)
    files = [write(tmp_path / "a.jsonl", 10), write(tmp_path / "b.jsonl", 23, start=10)]
    corpus = encode_corpus(files, encoder, tmp_path / "data")
    expected = encoder.encode_many([c for file in files for c in read_comparisons(file)])
    assert len(corpus) == 33
    for index in (0, 6, 7, 9, 10, 32):
        tree = corpus[index]
        assert (tree.prefix, tree.branches, tree.ranks) == (
            expected[index].prefix,
            expected[index].branches,
            expected[index].ranks,
        )
    assert corpus.lengths.tolist() == [tree.n_tokens for tree in expected]
    stats = corpus.stats
    assert stats.pairs == sum(len(tree.ranks) - 1 for tree in expected)
    assert stats.tokens == sum(tree.n_tokens for tree in expected)
    assert stats.separate_tokens == sum(len(tree.sequence(i)) for tree in expected for i in range(len(tree.ranks)))
    assert stats.truncated == sum(bool(tree.truncation) for tree in expected) > 0
    assert corpus.describe(12) == f"{files[1]}: comparison 3"


def test_what_was_encoded_is_reused_until_something_changes(encoder, tmp_path):
    file = write(tmp_path / "a.jsonl", 5)
    seen = []
    for _ in range(2):
        encode_corpus([file], encoder, tmp_path / "data", progress=seen.append)
    assert seen == [5]
    write(file, 6)
    assert len(encode_corpus([file], encoder, tmp_path / "data", progress=seen.append)) == 6
    encode_corpus([file], encoder, tmp_path / "data", empty_reference=True, progress=seen.append)
    assert seen == [5, 6, 6]


def test_missing_references_and_bad_rows(encoder, tmp_path):
    file = write(tmp_path / "a.jsonl", 2)
    with file.open("a") as rows:
        rows.write('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(PolarError, match=r"comparison 3 has no reference; data.reference=empty"):
        encode_corpus([file], encoder, tmp_path / "data")
    assert not list((tmp_path / "data").glob("*.json"))
    assert len(encode_corpus([file], encoder, tmp_path / "data", empty_reference=True)) == 3
    write(file, 2)
    with file.open("a") as rows:
        rows.write("{}\n")
    bad = OnBadRow("skip", tmp_path / "side.jsonl")
    assert len(encode_corpus([file], encoder, tmp_path / "data", on_bad_row=bad)) == 2
    assert bad.count == 1

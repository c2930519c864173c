import errno
import io
import json
import os
import re
from dataclasses import replace

import pytest
from rich.console import Console
from support import runs, tiny

from polar_rm.common import files
from polar_rm.common.config import load_config
from polar_rm.common.files import sha256
from polar_rm.encoded import build, shards
from polar_rm.encoded import corpus as corpus_module
from polar_rm.encoded.corpus import open_corpus
from polar_rm.errors import PolarError
from polar_rm.records import OnBadRow, read_comparisons
from polar_rm.training.config import TrainConfig
from polar_rm.training.data import encode_corpus
from polar_rm.training.trainer import plan


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
    for module in (shards, corpus_module):
        monkeypatch.setattr(module, "ROWS_PER_BATCH", 7)
    monkeypatch.setattr(build, "_SMALLEST_PART", 300)
    files = [write(tmp_path / "a.jsonl", 10), write(tmp_path / "b.jsonl", 23, start=10)]
    corpus = encode_corpus(files, encoder, tmp_path / "data")
    expected = encoder.encode_many([c for file in files for c in read_comparisons(file)])
    assert len(corpus) == 33 and len(corpus.shards) > 4
    for index in range(33):
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
    assert stats.longest_sequence == max(len(tree.sequence(i)) for tree in expected for i in range(len(tree.ranks)))
    assert stats.truncated == sum(bool(tree.truncation) for tree in expected) > 0
    assert stats.longest == max(tree.n_tokens for tree in expected)
    for budget in (0, stats.longest - 1, stats.longest, 30):
        assert corpus.n_longer(budget) == sum(tree.n_tokens > budget for tree in expected)
    assert corpus.describe(12) == f"{files[1]}: comparison 3"


def test_encoded_data_is_reused_until_something_changes(encoder, tmp_path, monkeypatch):
    file = write(tmp_path / "a.jsonl", 5)
    encoded = []
    write_shard = shards.write_shard
    monkeypatch.setattr(shards, "write_shard", lambda *args: encoded.append(write_shard(*args)["comparisons"]))
    for _ in range(2):
        encode_corpus([file], encoder, tmp_path / "data")
    assert encoded == [5]
    write(file, 6)
    assert len(encode_corpus([file], encoder, tmp_path / "data")) == 6
    encode_corpus([file], encoder, tmp_path / "data", empty_reference=True)
    assert encoded == [5, 6, 6]


def test_missing_references_and_bad_rows(encoder, tmp_path):
    file = write(tmp_path / "a.jsonl", 2)
    with file.open("a") as rows:
        rows.write('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(PolarError, match=r"a.jsonl: row 3 has no reference; data.reference=empty"):
        encode_corpus([file], encoder, tmp_path / "data")
    (tmp_path / "b.jsonl").write_text(write(tmp_path / "c.jsonl", 1).read_text().replace("reference", "refrence"))
    with pytest.raises(PolarError, match=r"row 1 has no reference \(it has 'refrence': did you mean 'reference'\?\); data"):
        encode_corpus([tmp_path / "b.jsonl"], encoder, tmp_path / "data")
    assert not list((tmp_path / "data").glob("*/manifest.json"))
    assert len(encode_corpus([file], encoder, tmp_path / "data", empty_reference=True)) == 3
    write(file, 2)
    with file.open("a") as rows:
        rows.write("{}\n")
    bad = OnBadRow("skip", tmp_path / "side.jsonl")
    assert len(encode_corpus([file], encoder, tmp_path / "data", on_bad_row=bad)) == 2
    assert bad.count == 1


def test_rows_that_an_earlier_run_skipped_are_reported_again_or_refused(encoder, tmp_path):
    file = write(tmp_path / "a.jsonl", 2)
    with file.open("a") as rows:
        rows.write("{}\n")
    encode_corpus([file], encoder, tmp_path / "data", on_bad_row=OnBadRow("skip", tmp_path / "train.jsonl"))
    later = OnBadRow("skip", tmp_path / "eval.jsonl")
    assert len(encode_corpus([file], encoder, tmp_path / "data", on_bad_row=later)) == 2
    assert (later.count, later.side_file) == (1, str(tmp_path / "train.jsonl"))
    for strict in (None, OnBadRow()):
        with pytest.raises(PolarError, match=r"a\.jsonl: an earlier run skipped 1 bad rows, see .*train\.jsonl; .*=skip"):
            encode_corpus([file], encoder, tmp_path / "data", on_bad_row=strict)
    write(file, 3)
    assert len(encode_corpus([file], encoder, tmp_path / "data")) == 3


def test_every_run_reports_the_number_of_skipped_rows(tmp_path):
    file = runs.config(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as rows:
        rows.write("{}\n")
    for _ in range(2):
        messages = io.StringIO()
        config = load_config(TrainConfig, [file], ["on_bad_row=skip"])
        assert plan(config, console=Console(file=messages, soft_wrap=True)).comparisons == 40
        assert f"1 bad rows of the train data were skipped, see {tmp_path / 'run/train.rejected'}" in messages.getvalue()
    with pytest.raises(PolarError, match=r"skipped 1 bad rows, see .*train\.rejected"):
        plan(load_config(TrainConfig, [file]))


@pytest.mark.parametrize("failing", range(1, 12))
def test_data_truncated_by_a_full_disk_is_not_used(encoder, tmp_path, monkeypatch, failing):
    """F6, F7: every file and its folder are synced, settings first and the index last; nothing partial is left."""
    file = write(tmp_path / "a.jsonl", 2)
    calls = []

    def full(descriptor):
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(files.os, "fsync", full)
        with pytest.raises(PolarError, match=r"could not be written: .*No space left on device"):
            encode_corpus([file], encoder, tmp_path / "data")
    synced = [name for call in calls for name in re.findall(r"settings|arrow|\.bin|0\.json|numbers|manifest", call)]
    assert synced == ["settings", "arrow", ".bin", "0.json", "numbers", ".bin", "manifest"][: len(synced)]
    assert not list((tmp_path / "data").rglob("*/manifest.json"))
    assert not list((tmp_path / "data").rglob(".*.partial"))
    assert len(encode_corpus([file], encoder, tmp_path / "data")) == 2


def damage(path, how):
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        middle = len(content) // 2
        changed = {
            "emptied": b"",
            "truncated": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        }
        path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["removed", "emptied", "truncated", "flipped"])
@pytest.mark.parametrize("kind", ["shards/000000.arrow", "numbers.bin", "manifest.json"])
def test_damaged_data_is_reported_and_encoded_again(encoder, tmp_path, kind, how):
    """F6, H11."""
    file = write(tmp_path / "a.jsonl", 20)
    intact = encode_corpus([file], encoder, tmp_path / "data")
    expected = [intact[i] for i in range(20)]
    [damaged] = (tmp_path / "data").glob(f"*/{kind}")
    damage(damaged, how)
    reported = []
    corpus = encode_corpus([file], encoder, tmp_path / "data", report=reported.append)
    assert [corpus[i] for i in range(20)] == expected
    if (kind, how) == ("manifest.json", "removed"):  # as after a kill before the index is written
        assert reported == []
    else:
        [message] = reported
        what = "shard" if kind.endswith("arrow") else "data"
        assert message.startswith(str(damaged)) and message.endswith(f"the {what} is encoded again")


def test_files_are_hashed_once_before_they_are_read_and_must_not_change(encoder, tmp_path):
    """B9, B25: patterns and folders mean files, and the hashes are those of the files that were trained on."""
    (tmp_path / "in").mkdir()
    paths = [write(tmp_path / f"in/{name}.jsonl", 3) for name in "ab"]
    hashes = {str(path): sha256(path) for path in paths}
    by_pattern = encode_corpus([tmp_path / "in/*.jsonl"], encoder, tmp_path / "data")
    by_folder = encode_corpus([tmp_path / "in"], encoder, tmp_path / "data")
    assert by_pattern.inputs == by_folder.inputs == hashes
    assert by_pattern.digest == by_folder.digest
    assert by_folder.describe(4) == f"{paths[1]}: comparison 2"

    def change(task, done, total, status=""):
        with paths[0].open("a") as file:
            file.write("\n")

    with pytest.raises(PolarError, match=r"a\.jsonl: it changed while it was read"):
        encode_corpus([tmp_path / "in"], encoder, tmp_path / "other", progress=change)
    assert not list((tmp_path / "other").glob("*/manifest.json"))


def test_inputs_have_the_names_of_this_runs_files(encoder, tmp_path):
    first, second = write(tmp_path / "first.jsonl", 3), tmp_path / "second.jsonl"
    digest = encode_corpus([first], encoder, tmp_path / "data").digest
    first.rename(second)
    reused = encode_corpus([second], encoder, tmp_path / "data", progress=lambda *_: pytest.fail("it is encoded already"))
    assert (reused.digest, reused.inputs) == (digest, {str(second): sha256(second)})
    for corpus in (reused, open_corpus(reused.folder)):  # the other ranks open the data of rank 0
        assert corpus.describe(2) == f"{second}: comparison 3"


def test_patterns_and_folders_are_the_files_that_they_mean(encoder, tmp_path):
    """B25, H14: files are hashed and listed one by one; hidden files change nothing (H6)."""
    (tmp_path / "in").mkdir()
    files = [write(tmp_path / "in/a.jsonl", 3), write(tmp_path / "in/b.jsonl", 4)]
    plain = encode_corpus(files, encoder, tmp_path / "data")
    write(tmp_path / "in/.hidden.jsonl", 2)
    for path in (tmp_path / "in", tmp_path / "in/*.jsonl"):
        corpus = encode_corpus([path], encoder, tmp_path / "data")
        assert (len(corpus), corpus.digest) == (7, plain.digest)
        assert corpus.inputs == {str(file): sha256(file) for file in files}
    assert corpus.describe(3) == f"{files[1]}: comparison 1"
    with pytest.raises(PolarError, match="b.jsonl: this run writes this file"):
        encode_corpus([tmp_path / "in"], encoder, tmp_path / "data", outputs=[files[1]])


def test_stripped_prompts_are_another_corpus_and_are_reported_again(encoder, tmp_path):
    """H4: also by a run that reuses encoded data."""
    prompt = {"role": "user", "content": "p"}
    row = {"prompt": "p", "reference": "r", "chosen": [prompt, {"role": "assistant", "content": "a"}], "rejected": "b"}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(PolarError, match="row 1: field 'chosen': expected the answer alone"):
        encode_corpus([file], encoder, tmp_path / "data")
    for _ in range(2):
        bad = OnBadRow(strip_prompt=True)
        corpus = encode_corpus([file], encoder, tmp_path / "data", on_bad_row=bad)
        assert bad.warnings() == [
            f"1 row: the prompt's messages at the beginning of 'chosen' were dropped (strip_prompt) (first: {file}: row 1)"
        ]
    file.write_text(json.dumps(row | {"chosen": "a"}) + "\n")
    other = encode_corpus([file], encoder, tmp_path / "data")
    assert (corpus[0].branches, corpus.digest != other.digest) == (other[0].branches, True)


def test_runs_share_encoded_data(tmp_path, monkeypatch):
    encoded = []
    write_shard = shards.write_shard
    monkeypatch.setattr(shards, "write_shard", lambda *args: encoded.append(args) or write_shard(*args))
    shared = f"data.cache={tmp_path / 'shared'}"
    plans = [plan(load_config(TrainConfig, [runs.config(tmp_path)], [shared, f"output={tmp_path / name}"])) for name in "ab"]
    assert [str(tmp_path / name) in str(each.output) for name, each in zip("ab", plans, strict=True)] == [True, True]
    assert replace(plans[0], output=None) == replace(plans[1], output=None) and len(encoded) == 1
    assert len(list((tmp_path / "shared").glob("*/shards/*.arrow"))) == 1 and not (tmp_path / "a/data").exists()

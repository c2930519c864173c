"""Shards, their making by several workers and commands, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support import runs, tiny

from polar_rm.common.locks import owned
from polar_rm.encoded import build, shards
from polar_rm.encoded.build import Encoding, encode_folder, survey_input
from polar_rm.encoded.corpus import EncodedCorpus, check_sizes, open_corpus
from polar_rm.errors import Damaged, PolarError
from polar_rm.records import Comparison, FilePart, divide_file, read_comparisons, read_numbered_comparisons, write_records
from polar_rm.training.data import given_corpus


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    settings = tiny.EncoderSettings(max_length=256, max_response_length=64)
    return tiny.reward_model(tmp_path_factory.mktemp("lm"), settings=settings).encoder


@pytest.fixture
def file(tmp_path):
    return runs.comparisons(tmp_path / "rows.jsonl", 60)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(build, "_SMALLEST_PART", 2000)


def run(files, encoder, folder, **changes) -> Encoding:
    return replace(Encoding(survey_input(files), encoder, folder, folder.with_name("rejected")), **changes)


def content(folder: Path) -> dict[str, bytes]:
    """The files of a corpus, without the versions in its index."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    index = json.loads(found.pop("manifest.json"))
    return found | {"index": json.dumps({key: index[key] for key in ("digest", "settings", "stats", "lengths", "files")})}


# ---------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("ending", ["\n", ""])
@pytest.mark.parametrize("part_bytes", [1, 7, 100, 301, 5000, 10**9])
def test_parts_of_lines_have_every_row_once_with_its_number(tmp_path, part_bytes, ending):
    path = runs.comparisons(tmp_path / "rows.jsonl", 40)
    lines = path.read_text().splitlines()
    lines[3:3] = ["", "  "]  # blank lines count as lines
    path.write_text("\n".join(lines) + ending)
    _, parts = divide_file(path, part_bytes)
    expected = list(read_numbered_comparisons(path))
    assert [row for part in parts for row in read_numbered_comparisons(part)] == expected
    assert sum(part.n_bytes for part in parts) == path.stat().st_size
    assert len(parts) == {1: 42, 10**9: 1}.get(part_bytes, len(parts))


@pytest.mark.parametrize("part_bytes", [300, 2000, 10**9])
def test_parts_of_parquet_have_every_row_once_with_its_number(tmp_path, part_bytes, monkeypatch):
    monkeypatch.setattr("polar_rm.records.tables._ROW_GROUP", 13)
    rows = list(read_comparisons(runs.comparisons(tmp_path / "rows.jsonl", 60)))
    path = tmp_path / "rows.parquet"
    write_records(path, rows)
    _, parts = divide_file(path, part_bytes)
    assert [row for part in parts for row in read_numbered_comparisons(part)] == list(enumerate(rows, 1))
    assert (len(parts) == 1) == (part_bytes == 10**9)


def test_other_files_are_one_part(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": "p", "reference": "r", "chosen": "a", "rejected": "b"}] * 50))
    assert divide_file(path, 10)[1] == [FilePart(path, n_bytes=path.stat().st_size)]


# --------------------------------------------------------------------------------------------------------------- shards


def test_no_byte_depends_on_the_workers(encoder, file, tmp_path, small_parts):
    other = tmp_path / "more.parquet"
    write_records(other, (Comparison(f"p{i}", "r", ("a", "b"), (0, 1)) for i in range(30)))
    found = []
    for name, workers in (("one", 1), ("three", 3)):
        corpus = encode_folder(run([file, other], encoder, tmp_path / name, workers=workers))
        found.append(content(tmp_path / name))
    assert found[0] == found[1] and len(corpus.shards) > 3
    expected = encoder.encode_many([*read_comparisons(file), *read_comparisons(other)])
    assert [(t.prefix, t.branches, t.ranks) for t in map(corpus.__getitem__, range(90))] == [
        (t.prefix, t.branches, t.ranks) for t in expected
    ]
    assert corpus.describe(65) == f"{other}: comparison 6"


@pytest.mark.slow
def test_ray_writes_the_same_bytes(encoder, file, tmp_path, small_parts):
    ray = pytest.importorskip("ray")
    try:
        encode_folder(run([file], encoder, tmp_path / "ray", engine="ray", workers=2))
    finally:
        ray.shutdown()
    encode_folder(run([file], encoder, tmp_path / "local", workers=1))
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_a_second_run_writes_only_the_missing_shards(encoder, file, tmp_path, small_parts, monkeypatch):
    encode_folder(run([file], encoder, tmp_path / "whole", workers=1))
    job = run([file], encoder, tmp_path / "part").job
    shutil.copytree(tmp_path / "whole", tmp_path / "kept")
    build.claim_folder(tmp_path / "part", {"schema": build.SCHEMA_NAME, **run([file], encoder, tmp_path / "part").settings}, "it")
    for number in (0, 2):
        shards.encode_shard(job, number)
    (tmp_path / "part/shards/000002.arrow").write_bytes(b"cut")  # found by its size
    written = []
    write_shard = shards.write_shard
    monkeypatch.setattr(shards, "write_shard", lambda job, number: written.append(number) or write_shard(job, number))
    encode_folder(run([file], encoder, tmp_path / "part", workers=1))
    assert written == list(range(1, len(job.parts)))
    assert content(tmp_path / "part") == content(tmp_path / "whole")


def test_damaged_shards_of_a_finished_corpus_are_encoded_again(encoder, file, tmp_path, small_parts):
    encode_folder(run([file], encoder, tmp_path / "corpus", workers=1))
    before = content(tmp_path / "corpus")
    (tmp_path / "corpus/shards/000000.arrow").unlink()
    path = tmp_path / "corpus/shards/000001.arrow"
    path.write_bytes(bytes([*path.read_bytes()[:-600], 7, *path.read_bytes()[-599:]]))
    reported = []
    encode_folder(run([file], encoder, tmp_path / "corpus", workers=1, report=reported.append))
    assert len(reported) == 1 and "000000.arrow: the file is missing; the shard is encoded again" in reported[0]
    encode_folder(run([file], encoder, tmp_path / "corpus", workers=1, report=reported.append, verify=True))
    assert len(reported) == 2 and "000001.arrow: the content is not what was written" in reported[1]
    assert content(tmp_path / "corpus") == before


def test_rows_that_are_refused_have_their_numbers_and_nothing_is_lost(encoder, file, tmp_path, small_parts):
    lines = file.read_text().splitlines()
    for number in (2, 31, 60):
        lines[number - 1] = "{}"
    lines[44] = json.dumps({"prompt": "\ud800", "reference": "r", "chosen": "a", "rejected": "b"})  # can be read, not encoded
    file.write_text("\n".join(lines))
    with pytest.raises(PolarError, match=r"rows.jsonl: row 2: "):
        encode_folder(run([file], encoder, tmp_path / "corpus", workers=1))
    corpus = encode_folder(run([file], encoder, tmp_path / "corpus", workers=1, skip_bad_rows=True))
    assert (len(corpus), corpus.rejected) == (56, 4)
    refused = [json.loads(line) for line in Path(corpus.side_file).read_text().splitlines()]
    assert [row["row"] for row in refused] == [2, 31, 45, 60]


# ------------------------------------------------------------------------------------------------------ several commands


def _encode(encoder, file, folder, barrier=None):
    if barrier:
        barrier.wait()
    encode_folder(run([file], encoder, folder, workers=1))


def start(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def test_several_commands_share_one_output(encoder, file, tmp_path, small_parts):
    _encode(encoder, file, tmp_path / "alone")
    barrier = multiprocessing.get_context("fork").Barrier(3)
    processes = [start(_encode, encoder, file, tmp_path / "shared", barrier) for _ in range(3)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert content(tmp_path / "shared") == content(tmp_path / "alone")
    assert not [path for path in tmp_path.rglob(".*") if path.name.endswith((".lock", ".partial"))]


def test_a_dead_command_keeps_no_claim(encoder, file, tmp_path, small_parts):
    """A node that dies: the kernel releases its lock, and another command encodes its shard."""
    _encode(encoder, file, tmp_path / "alone")

    def held(folder):
        with owned(folder / "shards/000001.arrow", "encode"):
            (folder / "shards/.000001.arrow.0123abcd.partial").write_bytes(b"unfinished")
            time.sleep(600)

    (tmp_path / "shared/shards").mkdir(parents=True)
    (tmp_path / "shared/settings.json").write_bytes((tmp_path / "alone/settings.json").read_bytes())
    dying = start(held, tmp_path / "shared")
    while not list((tmp_path / "shared/shards").glob("*.partial")):
        time.sleep(0.01)
    other = start(_encode, encoder, file, tmp_path / "shared")
    while len(list((tmp_path / "shared/work").glob("*.json"))) < len(list((tmp_path / "alone/shards").iterdir())) - 1:
        assert other.is_alive()
        time.sleep(0.01)
    assert not (tmp_path / "shared/manifest.json").exists()  # it waits for the shard of the other
    os.kill(dying.pid, signal.SIGKILL)
    other.join(120)
    assert other.exitcode == 0
    dying.join()
    assert content(tmp_path / "shared") == content(tmp_path / "alone")


# -------------------------------------------------------------------------------------------------------------- refusals


def test_other_settings_and_other_folders_are_refused(encoder, file, tmp_path):
    encode_folder(run([file], encoder, tmp_path / "corpus"))
    with pytest.raises(
        PolarError, match=r"corpus: it holds an encoded corpus of other settings \(reference: .given. there, .empty. now"
    ):
        encode_folder(run([file], encoder, tmp_path / "corpus", reference="empty"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(PolarError, match=r"notes: it is not empty and holds no encoded corpus"):
        encode_folder(run([file], encoder, tmp_path / "notes"))


def test_bad_corpora_are_one_line(encoder, file, tmp_path, small_parts):
    folder = tmp_path / "corpus"
    encode_folder(run([file], encoder, folder))
    assert given_corpus([file], encoder, "data.train", "given") is None
    assert len(given_corpus([folder], encoder, "data.train", "given")) == 60
    with pytest.raises(PolarError, match=r"data.train: the encoded corpus .* must be alone"):
        given_corpus([folder, file], encoder, "data.train", "given")
    with pytest.raises(PolarError, match=r"reference=given, but data.reference is empty"):
        given_corpus([folder], encoder, "data.train", "empty")
    with pytest.raises(PolarError, match=f"another encoder .hash {encoder.hash}. than the model's .hash other."):
        open_corpus(folder, encoder="other")
    index = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(index.replace('"comparisons": 60', '"comparisons": 61'))
    with pytest.raises(Damaged, match="manifest.json: the content is not what was written"):
        open_corpus(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(PolarError, match="polar encode has not finished here"):
        given_corpus([folder], encoder, "data.train", "given")
    (folder / "manifest.json").write_text(index)
    (folder / "shards/000001.arrow").write_bytes(b"cut")
    with pytest.raises(Damaged, match=r"000001.arrow: the file has 3 bytes, but"):
        check_sizes(open_corpus(folder))
    with pytest.raises(Damaged, match=r"000001.arrow: the file has 3 bytes, but"):
        list(map(EncodedCorpus(folder).__getitem__, range(60)))
    (folder / "numbers.bin").unlink()
    with pytest.raises(Damaged, match="numbers.bin: the file is missing"):
        open_corpus(folder)


def test_an_index_that_promises_more_than_there_is(encoder, file, tmp_path):
    from polar_rm.common.checksums import read_sealed, write_sealed

    folder = tmp_path / "corpus"
    encode_folder(run([file], encoder, folder))
    index = read_sealed(folder / "manifest.json")
    index["stats"]["comparisons"] = 61
    write_sealed(folder / "manifest.json", index)
    with pytest.raises(Damaged, match=r"manifest.json: its counts of comparisons contradict each other"):
        open_corpus(folder)

"""The files that are read and those that are left out (H1, H6, H14, H15, B26, Missing 22 and 24)."""

import json

import pytest

from polar_rm.common.files import sha256
from polar_rm.errors import BadRow, PolarError
from polar_rm.records import (
    PLAIN_SUFFIXES,
    OnBadRow,
    find_file,
    find_files,
    read_comparisons,
    read_numbered_comparisons,
    side_file,
    survey_files,
)

PAIR = {"prompt": "p", "reference": "r", "chosen": "a", "rejected": "b"}


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_plain_files_are_read_where_there_are_no_data_files(tmp_path):
    for name in ("a.jsonl", "b/c.parquet", "README.md", "b/NOTES.TXT", ".d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*sources):
        data = survey_files([tmp_path / source for source in sources], plain=PLAIN_SUFFIXES)
        return sorted(str(file.relative_to(tmp_path)) for file in data.files), data.describe()

    assert found("") == (["a.jsonl", "b/c.parquet"], "2 files; left out: 1 hidden, 2 plain texts beside data files")
    assert found("*") == (["a.jsonl", "b/c.parquet"], "2 files; left out: 2 plain texts beside data files")
    assert found("README.md") == (["README.md"], "1 file")
    (tmp_path / "b/c.parquet").unlink()
    assert found("b") == (["b/NOTES.TXT"], "1 file")
    assert found("b", "a.jsonl") == (["a.jsonl", "b/NOTES.TXT"], "2 files")
    with pytest.raises(PolarError, match="unknown kind of file"):
        find_files(tmp_path / "README.md")
    with pytest.raises(PolarError, match="b: the folder holds no .*arrow, .feather file$"):
        find_files(tmp_path / "b")


def test_only_who_names_folders_or_patterns_is_told_what_they_mean(tmp_path):
    """H6."""
    for name in ("a.jsonl", "b.jsonl", ".c.jsonl"):
        (tmp_path / name).touch()
    assert survey_files([tmp_path / "a.jsonl"]).note() is None
    assert survey_files([tmp_path]).note() == "the folders and patterns mean 2 files; left out: 1 hidden"
    assert survey_files([tmp_path / "[ab].jsonl", tmp_path / "a.jsonl"]).note() == "the folders and patterns mean 3 files"


def test_hidden_files_and_our_lists_are_left_out_of_folders(tmp_path):
    """H1, H6: notebooks, macOS, Spark and polar itself leave such files beside data."""
    for name in ("b.jsonl", "deeper/a.jsonl"):
        lines(tmp_path / name, PAIR)
    digest = sha256(tmp_path)
    for name in (
        ".ipynb_checkpoints/b-checkpoint.jsonl",
        "__MACOSX/b.jsonl",
        "._b.jsonl",
        "_SUCCESS.jsonl",
        "_temporary/0/part.jsonl",
    ):
        lines(tmp_path / name, PAIR | {"prompt": name})
    assert sha256(tmp_path) == digest
    for name in (
        "b.jsonl.rejected",
        "b.jsonl.rejected.jsonl",
        "run/metrics.jsonl",
        "run/data/0123.arrow",
        "corpus/refused.jsonl",
        "corpus/contaminated.jsonl",
        "settings.json",
        "work/parts/0.jsonl",
    ):
        lines(tmp_path / name, {"not": "a record"})
    (tmp_path / "run/data/0123.index.json").write_text("{}")
    data = survey_files([tmp_path])
    assert data.files == (tmp_path / "b.jsonl", tmp_path / "deeper/a.jsonl")
    assert data.describe().startswith("2 files; left out: ")
    for part in (
        "2 hidden",
        "3 hidden folders",
        "5 written by polar",
        "2 .json (read only where named)",
        "1 folders of unfinished work",
    ):
        assert part in data.describe()
    assert len(list(read_comparisons(tmp_path))) == 2
    (tmp_path / "settings.json").unlink()  # a pattern means every file that it matches, also these
    (tmp_path / "b.jsonl.rejected").unlink()
    (tmp_path / "work/parts/0.jsonl").unlink()
    assert find_files(tmp_path / "*") == list(data.files)
    with pytest.raises(PolarError, match=r"r\*: no match of the pattern holds data \(left out: 2 written by polar"):
        find_files(tmp_path / "r*")
    named = tmp_path / "_SUCCESS.jsonl"
    assert find_files(named) == [named]  # a file that is named is always read


def test_links_to_folders_are_not_followed(tmp_path):
    """They may form a circle, or lead to the same files twice."""
    kept = lines(tmp_path / "data/a.jsonl", PAIR)
    lines(tmp_path / "other/b.jsonl", PAIR)
    (tmp_path / "data/other").symlink_to(tmp_path / "other")
    (tmp_path / "data/round").symlink_to(tmp_path / "data")
    assert survey_files([tmp_path / "data"]).describe() == "1 file; left out: 2 links to folders"
    assert find_files(tmp_path / "data") == [kept]


def test_a_second_run_with_bad_rows_reads_nothing_of_the_first(tmp_path):
    """H1: it read its own bad rows again and again."""
    lines(tmp_path / "pairs.jsonl", PAIR, {"prompt": "p"})
    for source in (tmp_path, tmp_path / "*.jsonl", tmp_path / "*"):
        for _ in range(2):
            bad = OnBadRow("skip", side_file(tmp_path / "pairs.jsonl"))
            sources = find_files(source) if source != tmp_path / "*" else [tmp_path / "pairs.jsonl"]
            assert len([row for file in sources for row in read_comparisons(file, bad)]) == 1
            assert bad.count == 1
    assert len((tmp_path / "pairs.jsonl.rejected").read_text().splitlines()) == 1
    with pytest.raises(PolarError, match="pairs.jsonl.rejected: unknown kind of file"):
        find_files(tmp_path / "pairs.jsonl.rejected")


def test_a_file_is_read_to_the_size_that_it_had(tmp_path):
    """H1: a run that appends to its own input would never end."""
    path = lines(tmp_path / "pairs.jsonl", PAIR, PAIR)
    seen = 0
    for _ in read_comparisons(path):
        seen += 1
        assert seen < 10
        with path.open("a") as file:
            file.write(json.dumps(PAIR) + "\n")
    assert seen == 2


def test_what_the_run_writes_is_refused_before_anything_is_read(tmp_path):
    """H1: files are compared by identity, not by name."""
    data = lines(tmp_path / "data/pairs.jsonl", PAIR)
    link = tmp_path / "link.jsonl"
    link.symlink_to(data)
    lines(tmp_path / "data/run/more.jsonl", PAIR)
    deep = lines(tmp_path / "elsewhere/run/a/b/deep.jsonl", PAIR)
    with pytest.raises(PolarError, match="deep.jsonl: it lies in .*run, where this run writes"):
        find_files(deep, [tmp_path / "elsewhere/run"])
    with pytest.raises(PolarError, match="this run writes this file"):
        find_files(tmp_path / "data", [link])
    with pytest.raises(PolarError, match="more.jsonl: it lies in .*run, where this run writes"):
        find_files(tmp_path / "data", [tmp_path / "data/run"])
    assert len(find_files(tmp_path / "data", [tmp_path / "data/other", tmp_path / "new.jsonl"])) == 2


def test_side_files_are_beside_the_output_and_have_different_names(tmp_path):
    """B26."""
    assert side_file(tmp_path / "scores.jsonl") == tmp_path / "scores.jsonl.rejected"
    names = {side_file(None, [folder / "pairs.jsonl"]) for folder in (tmp_path / "a", tmp_path / "b")}
    assert len(names) == 2
    assert all(
        name.name.startswith("pairs.jsonl.") and name.name.endswith(".rejected") and name.parent.name == "" for name in names
    )
    assert side_file(None, ["."]).name.startswith("rows.")


def test_a_corpus_of_several_splits_is_refused_as_data(tmp_path):
    """H15: the run would train on the held-out splits."""
    corpus = tmp_path / "data/corpus"
    for split in ("train", "unseen_prompts"):
        lines(corpus / split / "00000.jsonl", PAIR)
    (corpus / "manifest.json").write_text(json.dumps({"shards": {"train/00000.jsonl": {}, "unseen_prompts/00000.jsonl": {}}}))
    for source in (corpus, tmp_path / "data", tmp_path / "data/*"):
        with pytest.raises(PolarError, match=f"it is a corpus of several splits; name {corpus / 'train'}"):
            find_files(source)
    assert find_files(corpus / "train") == [corpus / "train/00000.jsonl"]
    (corpus / "manifest.json").write_text(json.dumps({"files": [{"file": "trajectories.parquet"}]}))  # of polar sample
    assert len(find_files(corpus)) == 2


def test_folders_that_datasets_saved(tmp_path):
    """Missing 22: their Arrow files are read without the package; of a data set with several splits one must be named."""
    datasets = pytest.importorskip("datasets")
    message = [{"role": "user", "content": "p"}]
    rows = [PAIR | {"prompt": message, "chosen": f"a{i}"} for i in range(5)]
    dataset = datasets.Dataset.from_list(rows)
    dataset.save_to_disk(str(tmp_path / "set"), num_shards=2)
    (tmp_path / "set/cache-1234.arrow").write_bytes(b"left by a map")
    assert [comparison.candidates[0] for comparison in read_comparisons(tmp_path / "set")] == [f"a{i}" for i in range(5)]
    assert next(read_comparisons(tmp_path / "set")).prompt == message
    assert [file.name for file in find_files(tmp_path)] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(tmp_path / "dict"))
    with pytest.raises(PolarError, match="dict: it is a data set of several splits; name one of train, test"):
        find_files(tmp_path / "dict")
    assert len(list(read_comparisons(tmp_path / "dict/test"))) == 5


def test_one_file_where_rows_have_numbers(tmp_path):
    """H14: a pattern may mean the file."""
    first = lines(tmp_path / "a.jsonl", PAIR)
    assert find_file(tmp_path / "*.jsonl") == first
    lines(tmp_path / "b.jsonl", PAIR)
    with pytest.raises(PolarError, match="it means 2 files; name one: "):
        find_file(tmp_path / "*.jsonl")


def test_a_row_that_is_nested_too_deeply_is_refused_and_kept(tmp_path):
    """F13: every later reader of a record must be able to parse it."""
    deep = "x"
    for _ in range(150):
        deep = {"a": [deep]}
    bad = OnBadRow("skip", tmp_path / "side.rejected")
    good = PAIR | {"x": {"a": [["y"]]}}
    assert [row for row, _ in read_numbered_comparisons([PAIR | {"x": deep}, good], bad)] == [2]
    endless = []
    endless.append(endless)
    assert list(read_comparisons([PAIR | {"x": endless}], OnBadRow("skip", tmp_path / "endless.rejected"))) == []
    assert json.loads((tmp_path / "endless.rejected").read_text())["content"] is None
    with pytest.raises(BadRow, match="row 1: field 'metadata': expected values that are nested less deeply than 100"):
        list(read_comparisons([PAIR | {"x": deep}]))
    assert next(read_comparisons([PAIR | {3: {4: "b"}}])).metadata == {3: {4: "b"}}

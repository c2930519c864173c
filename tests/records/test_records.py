import gzip
import json
import math
import pickle
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from os import fsdecode
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from polar_rm.errors import BadRow, PolarError
from polar_rm.records import (
    Comparison,
    InvalidRecord,
    OnBadRow,
    ScoreItem,
    Trajectory,
    check,
    flatten,
    read_comparisons,
    read_items,
    read_numbered_comparisons,
    read_numbered_items,
    read_trajectories,
    write_records,
)

GOOD = {"prompt": "p", "reference": "r", "candidates": ["a", "b", "c"], "ranks": [0, 1, 1]}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_pairs_are_all_ordered_pairs():
    assert Comparison("p", "r", ("a", "b", "c", "d"), (0, 1, 1, 2)).pairs() == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]


def test_official_rows_are_accepted_unchanged(tmp_path):
    pair = {"prompt": MESSAGES[:1], "reference": MESSAGES[1:], "chosen": "a", "rejected": "b", "wrapper": "pretrain"}
    [comparison] = read_comparisons(lines(tmp_path / "pairs.jsonl", pair))
    assert comparison == Comparison(MESSAGES[:1], MESSAGES[1:], ("a", "b"), (0, 1), "pretrain")
    [item] = read_items(lines(tmp_path / "items.jsonl", {"prompt": "p", "reference": "", "output": "o"}))
    assert item == ScoreItem("p", "", "o")
    assert flatten(MESSAGES) == "Hi\nHello"


def test_preference_tables_keep_extra_columns_and_parse_meta(tmp_path):
    row = {
        "prompt": json.dumps(MESSAGES[:1]),
        "chosen": "a",
        "rejected": "b",
        "subset": "chat",
        "meta": '{"language": "en"}',
    }
    pq.write_table(pa.Table.from_pylist([row | {"reference": None}]), tmp_path / "pref.parquet")
    [comparison] = read_comparisons(tmp_path / "pref.parquet")
    assert comparison.prompt == MESSAGES[:1]
    assert comparison.reference is None
    assert comparison.metadata == {"subset": "chat", "meta": {"language": "en"}}


def test_a_column_may_repeat_what_metadata_holds(tmp_path):
    path = lines(
        tmp_path / "data.jsonl",
        GOOD | {"lang": "en", "x": math.nan, "y": None, "metadata": {"lang": "en", "x": math.nan, "y": 1}},
    )
    assert next(read_comparisons(path)).metadata == {"lang": "en", "x": None, "y": 1}


def test_nan_stands_for_missing_at_any_depth(tmp_path):
    path = lines(tmp_path / "data.jsonl", GOOD | {"x": {"a": [1.5, math.nan, {"b": math.nan}], "c": math.inf}, "y": math.nan})
    assert next(read_comparisons(path)).metadata == {"x": {"a": [1.5, None, {"b": None}], "c": math.inf}, "y": None}


def test_nesting_too_deep_is_refused(tmp_path):
    endless = []
    endless.append(endless)
    with pytest.raises(BadRow, match="row 1: field 'metadata': expected values that are nested less deeply"):
        list(read_comparisons([GOOD | {"x": endless}]))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [{"role": "user"}]}, "prompt[0].content"),
        ({"candidates": ["a"], "ranks": [0]}, "candidates"),
        ({"candidates": ["a", "b", "a"]}, "candidates[2]"),
        ({"candidates": ["a", None, "b"]}, "candidates[1]"),
        ({"ranks": [0, 1]}, "ranks"),
        ({"ranks": [0, 1, -1]}, "ranks"),
        ({"ranks": [0, 1, 1.5]}, "ranks"),
        ({"ranks": [0, 1, 2**63]}, "ranks"),
        ({"ranks": [True, 1, 2]}, "ranks"),
        ({"ranks": [1, 1, 1]}, "ranks"),
        ({"wrapper": "chat"}, "wrapper"),
        ({"reference": "half \ud800"}, "reference"),
        ({"candidates": None, "ranks": None}, "candidates"),
        ({"lang": "en", "metadata": {"lang": "fr"}}, "lang"),
    ],
)
def test_bad_rows_name_file_row_and_field(tmp_path, change, field):
    path = lines(tmp_path / "data.jsonl", GOOD, GOOD | change)
    with pytest.raises(BadRow) as caught:
        list(read_comparisons(path))
    assert (caught.value.path, caught.value.row, caught.value.field) == (str(path), 2, field)
    assert str(caught.value).startswith(f"{path}: row 2: field {field!r}: expected ")


def test_broken_lines_name_the_column(tmp_path):
    with pytest.raises(BadRow, match="row 2: expected one JSON object a line, but at column"):
        list(read_comparisons(lines(tmp_path / "data.jsonl", GOOD, '{"prompt": ')))
    with pytest.raises(BadRow, match="row 1: expected an object"):
        list(read_comparisons(lines(tmp_path / "list.jsonl", "[1, 2]")))
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xe9"}\n')
    with pytest.raises(BadRow, match="row 2: expected UTF-8 text"):
        list(read_comparisons(tmp_path / "latin.jsonl"))
    with pytest.raises(BadRow, match="row 2: expected integers of at most 4,300 digits"):
        list(read_comparisons(lines(tmp_path / "digits.jsonl", GOOD, "1" * 4301)))


def test_skipped_rows_are_counted_and_kept(tmp_path):
    path = lines(tmp_path / "data.jsonl", GOOD, "", '{"prompt"', GOOD | {"ranks": [0]}, GOOD, "1" * 4301)
    bad = OnBadRow("skip", tmp_path / "rejected.jsonl")
    assert len(list(read_comparisons(path, bad))) == 2
    kept = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert bad.count == 3
    assert [row["row"] for row in kept] == [3, 4, 6]
    assert kept[0]["content"] == '{"prompt"'
    assert kept[1]["content"] == GOOD | {"ranks": [0]}
    assert kept[2]["content"] == "1" * 4301
    with pytest.raises(PolarError, match="side file"):
        OnBadRow("skip")


def test_binary_columns_are_named(tmp_path):
    pq.write_table(pa.Table.from_pylist([GOOD | {"prompt": b"ok"}]), tmp_path / "data.parquet")
    with pytest.raises(BadRow, match=r"row 1: field 'prompt': expected .* not bytes \(a binary column\)"):
        list(read_comparisons(tmp_path / "data.parquet"))


def test_row_numbers_have_gaps_where_rows_were_skipped(tmp_path):
    item = {"prompt": "p", "reference": "r", "output": "o"}
    path = lines(tmp_path / "items.jsonl", item, {"prompt": "p"}, item)
    assert [row for row, _ in read_numbered_items(path, OnBadRow("skip", tmp_path / "side.jsonl"))] == [1, 3]
    path = lines(tmp_path / "comparisons.jsonl", GOOD, GOOD | {"ranks": [0]}, GOOD)
    assert [row for row, _ in read_numbered_comparisons(path, OnBadRow("skip", tmp_path / "side.jsonl"))] == [1, 3]


def test_files_without_rows_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "data.xlsx").touch()
    (tmp_path / "folder").mkdir()
    for name, message in [
        ("empty.jsonl", "is empty"),
        ("data.xlsx", "unknown kind of file"),
        ("missing.jsonl", "no such file"),
        ("folder", "holds no"),
    ]:
        with pytest.raises(PolarError, match=message) as caught:
            list(read_comparisons(tmp_path / name))
        assert name in str(caught.value)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.gz"])
def test_truncated_files_are_refused(tmp_path, suffix):
    complete = tmp_path / f"complete{suffix}"
    write_records(complete, (Comparison(f"p{i}" * 50, "r", (f"a{i}", "b"), (0, 1)) for i in range(2000)))
    truncated = tmp_path / f"truncated{suffix}"
    truncated.write_bytes(complete.read_bytes()[:-200])
    with pytest.raises(PolarError, match="truncated"):
        list(read_comparisons(truncated))


@pytest.mark.parametrize(
    ("column", "rows"),
    [
        (pa.array([b"ok"] * 256 + [b"\xff"]).view(pa.string()), "257 to 257"),
        (pa.array([0] * 256 + [2**62], pa.timestamp("us")), "257 to 257"),
        (pa.array([0] * 255 + [2**30, 0], pa.date32()), "1 to 256"),
        (pa.StructArray.from_arrays([pa.array(range(257))] * 2, ["a", "a"]), "1 to 256"),
    ],
)
def test_cells_that_python_cant_hold(tmp_path, column, rows):
    table = pa.Table.from_pylist([GOOD] * 257).append_column("x", column)
    pq.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(PolarError, match=rf"data.parquet: a value in rows {rows} can't be read: \S+"):
        list(read_comparisons(tmp_path / "data.parquet"))


def test_columns_need_different_names(tmp_path):
    table = pa.Table.from_pylist([GOOD])
    for column, message in [
        (pa.field("prompt", pa.string()), "two columns have the name 'prompt'"),
        (pa.field(b"\xff", pa.string()), "the name of a column can't be read"),
    ]:
        pq.write_table(table.append_column(column, pa.array(["q"])), tmp_path / "data.parquet")
        with pytest.raises(PolarError, match=f"data.parquet: {message}"):
            list(read_comparisons(tmp_path / "data.parquet"))


def test_folders_patterns_lists_and_iterables(tmp_path):
    first, second = lines(tmp_path / "a.jsonl", GOOD), lines(tmp_path / "b.jsonl", GOOD, GOOD)
    for source, count in [
        (tmp_path, 3),
        (str(tmp_path / "*.jsonl"), 3),
        ([first, second, first], 4),
        ([GOOD], 1),
        (iter([GOOD]), 1),
    ]:
        assert len(list(read_comparisons(source))) == count
    with pytest.raises(PolarError, match="pass one of them"):
        list(read_comparisons({"train": [GOOD]}))


def test_datasets_objects(tmp_path):
    datasets = pytest.importorskip("datasets")
    row = {"prompt": json.dumps(MESSAGES[:1]), "reference": "r", "chosen": "a", "rejected": "b"}
    dataset = datasets.Dataset.from_list([row, row | {"chosen": "b"}])
    assert next(iter(read_comparisons(dataset))).prompt == MESSAGES[:1]
    with pytest.raises(BadRow, match="Dataset: row 2: field 'rejected'"):
        list(read_comparisons(dataset))


characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, max_size=8) | st.sampled_from(['[{"role": "user", "content": "x"}]', '[{"role', '["[{', '["a"]'])
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}), min_size=1, max_size=3
)
either = texts | messages
metadata = st.dictionaries(
    st.text(characters, min_size=1, max_size=5).filter(lambda key: key != "meta"),
    st.none() | st.integers() | texts,
    max_size=3,
)


@st.composite
def comparisons(draw):
    candidates = draw(st.lists(either, min_size=2, max_size=4, unique_by=flatten))
    ranks = draw(
        st.lists(st.integers(0, 5), min_size=len(candidates), max_size=len(candidates)).filter(lambda r: len(set(r)) > 1)
    )
    wrapper = draw(st.sampled_from(["sft", "pretrain"]))
    note = {"note": draw(texts)}
    comparison = Comparison(draw(either), draw(st.none() | either), tuple(candidates), tuple(ranks), wrapper, note)
    try:
        return check(comparison)
    except InvalidRecord:  # an answer that happens to begin with the prompt's messages
        assume(False)


trajectories = st.builds(
    Trajectory,
    texts,
    texts,
    either,
    texts,
    st.integers(0, 9),
    texts,
    st.none() | st.floats(0, 2),
    seed=st.none() | st.integers(0, 2**40),
)


@settings(max_examples=60)
@given(
    st.sampled_from([".jsonl", ".jsonl.gz", ".parquet"]),
    st.lists(comparisons(), min_size=1, max_size=4),
    st.lists(trajectories, min_size=1, max_size=3),
)
def test_what_is_written_reads_back_equal(tmp_path_factory, suffix, some_comparisons, some_trajectories):
    folder = tmp_path_factory.mktemp("round")
    for read, records in [(read_comparisons, some_comparisons), (read_trajectories, some_trajectories)]:
        path = folder / f"{read.__name__}{suffix}"
        assert write_records(path, records) == len(records)
        assert list(read(path)) == records


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("field", ["sample_id", "top_k", "seed", "n_tokens", "temperature", "top_p"])
def test_numbers_beyond_64_bits_are_refused(tmp_path, suffix, field):
    good = Trajectory("s", "1", "p", "m", -(2**63), "t", 2**70, seed=2**63 - 1)
    path = tmp_path / f"data{suffix}"
    write_records(path, [good])
    assert list(read_trajectories(path)) == [good]
    for value in (10**400, -(10**400), 10**5000):
        with pytest.raises(BadRow, match=f"row 2: field {field!r}: .*, not an integer of more than 64 bits"):
            write_records(path, [good, replace(good, **{field: value})])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, None),
        (-math.inf, "-inf"),
        (b"ok", "ok"),
        (b"\xff", "\\xff"),
        (timedelta(1), "1 day, 0:00:00"),
        (Decimal("1.50"), "1.50"),
        (Path(fsdecode(b"\xff")), "\\udcff"),
        ((1, math.inf), [1, "inf"]),
        (
            {1: "a", None: "b", math.inf: "c", (1, 2): "d", b"k": True},
            {"1": "a", "null": "b", "inf": "c", "(1, 2)": "d", "k": True},
        ),
        (10**20, 10**20),
        pytest.param(10**5000, hex(10**5000), id="digits"),
    ],
)
def test_what_json_cant_express_is_written_as_text(tmp_path, suffix, value, written):
    path = tmp_path / f"data{suffix}"
    write_records(path, [ScoreItem([MESSAGES[0] | {"x": [value]}], "r", "o", metadata={"x": value})])
    assert list(read_items(path)) == [ScoreItem([MESSAGES[0] | {"x": [written]}], "r", "o", metadata={"x": written})]


def test_any_row_that_is_skipped_can_be_kept(tmp_path):
    bad = OnBadRow("skip", tmp_path / "side.jsonl")
    assert list(read_items([{"prompt": 10**5000, (1, 2): math.nan}], bad)) == []
    assert json.loads((tmp_path / "side.jsonl").read_text())["content"] == {"prompt": hex(10**5000), "(1, 2)": None}


def test_failed_writing_leaves_nothing(tmp_path):
    good = Comparison("p", "r", ("a", "b"), (0, 1))
    path = tmp_path / "out.parquet"
    with pytest.raises(BadRow, match="row 2"):
        write_records(path, [good, Comparison("p", "r", ("a", "a"), (0, 1))])
    with pytest.raises(PolarError, match="ScoreItem"):
        write_records(path, [good, ScoreItem("p", "r", "o")])
    with pytest.raises(PolarError, match="no records"):
        write_records(path, [])
    assert list(tmp_path.iterdir()) == []


def test_gzip_files_are_reproducible(tmp_path, monkeypatch):
    for hour, name in enumerate(("a.jsonl.gz", "b.jsonl.gz"), 1):
        monkeypatch.setattr(gzip.time, "time", lambda now=3600.0 * hour: now)
        write_records(tmp_path / name, [ScoreItem("p", "r", "o")])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert json.loads(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()))["output"] == "o"


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_string_in_metadata_stays_a_string(tmp_path, suffix):
    """B27: a table's text of digits is not an object."""
    row = {"prompt": "p", "reference": "r", "output": "o", "metadata": "123", "meta": "[1"}
    path = lines(tmp_path / "data.jsonl", row, row | {"meta": '{"a": 1}'})
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row, row | {"meta": '{"a": 1}'}]), path := tmp_path / "data.parquet")
    first, second = read_items(path)
    assert first.metadata == {"metadata": "123", "meta": "[1"}
    assert second.metadata["meta"] == ({"a": 1} if suffix == ".parquet" else '{"a": 1}')


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("field", ["sample_id", "top_k", "seed", "n_tokens", "temperature", "top_p"])
def test_a_boolean_is_no_number(tmp_path, field, value):
    row = {"source": "s", "prompt_id": "p0", "prompt": "p", "policy": "a", "sample_id": 0, "text": "t"}
    with pytest.raises(BadRow, match=f"row 1: field '{field}': expected an? .*(integer|number), not a boolean"):
        list(read_trajectories(lines(tmp_path / "data.jsonl", row | {field: value})))


def test_a_bad_row_survives_its_way_between_processes():
    error = BadRow("rows.jsonl", 3, "prompt", "text")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))

"""Kinds of files (Missing 24), damaged files, and the limits of one row (F12)."""

import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_rm.errors import BadRow, PolarError
from polar_rm.records import (
    Comparison,
    OnBadRow,
    lines,
    read_comparisons,
    read_items,
    read_numbered_comparisons,
    tables,
    values,
)

ROWS = [{"prompt": f"p{i}\nü", "reference": "r", "chosen": f'a "{i}"', "rejected": "b, c"} for i in range(3)]
EXPECTED = [Comparison(row["prompt"], "r", (row["chosen"], row["rejected"]), (0, 1)) for row in ROWS]


PAIR = json.dumps(ROWS[0])


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zst(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def as_csv(rows, delimiter):
    quoted = [[f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row.values()] for row in rows]
    return "\r\n".join([delimiter.join(rows[0]), *map(delimiter.join, quoted)]).encode() + b"\r\n"


def stream_of(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


FORMS = {
    "a.ndjson": json_lines(ROWS),
    "a.JSONL": json_lines(ROWS),
    "bom.jsonl": b"\xef\xbb\xbf" + json_lines(ROWS),
    "a.jsonl.gz": gzip.compress(json_lines(ROWS)),
    "two.jsonl.gz": gzip.compress(json_lines(ROWS[:1])) + gzip.compress(json_lines(ROWS[1:])),
    "a.jsonl.zst": zst(json_lines(ROWS)),
    "two.jsonl.zst": zst(json_lines(ROWS[:1])) + zst(json_lines(ROWS[1:])),
    "a.json": json.dumps(ROWS).encode(),
    "indented.json": b"\xef\xbb\xbf " + json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "lines.json": json_lines(ROWS),
    "a.csv": as_csv(ROWS, ","),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(ROWS, ","),
    "a.TSV": as_csv(ROWS, "\t"),
    "stream.arrow": stream_of(pa.Table.from_pylist(ROWS)),
}


@pytest.mark.parametrize("name", FORMS)
def test_kinds_of_files(tmp_path, name):
    """Missing 24."""
    (tmp_path / name).write_bytes(FORMS[name])
    assert list(read_comparisons(tmp_path / name)) == EXPECTED
    assert [number for number, _ in read_numbered_comparisons(tmp_path / name)] == [1, 2, 3]


@pytest.mark.parametrize("name", ["a.arrow", "a.feather", "a.PARQUET"])
def test_kinds_of_tables(tmp_path, name):
    """Missing 24."""
    table = pa.Table.from_pylist(ROWS)
    (pq.write_table if name == "a.PARQUET" else pyarrow.feather.write_feather)(table, tmp_path / name)
    assert list(read_comparisons(tmp_path / name)) == EXPECTED


@settings(max_examples=60)
@given(
    st.lists(
        st.dictionaries(st.text(max_size=3), st.text() | st.lists(st.integers() | st.floats(allow_nan=False)), min_size=1),
        max_size=6,
    ),
    st.sampled_from([None, 0, 3]),
    st.integers(1, 40),
)
def test_arrays_are_decoded_as_a_whole_file_would_be(tmp_path_factory, rows, indent, buffer):
    """Missing 24: row by row from a small buffer."""
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=True), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BUFFER", buffer)
        assert [row for _, row in lines.json_rows(path)] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"prompt": ["p"], "chosen": ["a"]}', "it holds one JSON object; expected an array of objects"),
        ("a.json", '{\n"prompt": "p",\n"chosen": "a"}', "it holds one JSON object"),
        ("a.json", '"text"', "it is neither an array of rows nor JSON lines"),
        ("a.json", f'[{PAIR}, {{"prompt": x}}]' + " " * 200, "unreadable after row 1: Expecting value"),
        ("a.json", f'[{PAIR}, {{"prompt": "p"', "unreadable after row 1"),
        ("a.json", f"[{PAIR} {PAIR}]", "unreadable after row 1: Expecting ','"),
        ("a.json", "[]", "it is empty: there are no rows"),
        ("a.json", "", "it is empty: there are no rows"),
        ("a.json", f"[{'[' * 100000}", "row 1: it is nested too deeply"),
        (
            "a.jsonl",
            '[\n {"prompt": "p"}\n]',
            "row 1: expected .* the file begins with an array; name a file with one array of rows .json",
        ),
        ("a.jsonl", '[{"prompt": "p"}]\n', "row 1: expected an object with named fields, but this is an array"),
        ("a.jsonl", '{\n"prompt": "p"}', "row 1: expected one JSON object a line, but this one spans several lines"),
        ("a.csv", "prompt,chosen,prompt\n", "two columns have the name 'prompt'"),
        ("a.csv", "prompt,,chosen\n", "column 2 has no name"),
        ("a.csv", "prompt,chosen\np,a,b\n", "row 1: expected 2 cells, one for each column of the header, not 3"),
        ("a.csv", 'prompt,chosen\np,"a', "unreadable after row 0: unexpected end of data"),
        ("a.csv", "prompt,reference,output\np,,o\n", "row 1: field 'reference': expected text or a list of messages, not null"),
        ("a.arrow", "ARROW1 but not really", "not a complete Arrow file"),
        ("a.jsonl.zst", "no zstd", "unreadable after line 0"),
    ],
)
def test_damaged_files_are_refused_with_the_reason(tmp_path, name, content, message):
    """Missing 24."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(PolarError, match=f"{name}: {message}"):
        list(read_comparisons(path) if "output" not in content else read_items(path))


def test_lists_and_numbers_in_csv(tmp_path):
    """Missing 24, 25: a cell holds text."""
    (tmp_path / "a.csv").write_text('prompt,reference,candidates,ranks,n\np,r,"[""a"", ""b""]","[0, ""1""]",3\n')
    assert list(read_comparisons(tmp_path / "a.csv")) == [Comparison("p", "r", ("a", "b"), (0, 1), metadata={"n": "3"})]


def test_truncated_zstd_is_refused(tmp_path):
    """Missing 24."""
    data = zst(b"".join(json_lines([row | {"x": str(i) * 50}]) for i in range(2000) for row in ROWS))
    (tmp_path / "truncated.jsonl.zst").write_bytes(data[:-50])
    with pytest.raises(PolarError, match=r"truncated.jsonl.zst: unreadable after line \d+"):
        list(read_comparisons(tmp_path / "truncated.jsonl.zst"))


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_line_beyond_the_limit_is_a_bad_row(tmp_path, monkeypatch, suffix):
    """F12: the line is skipped like other bad rows, and the next line is read."""
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 5000)
    content = json_lines(ROWS[:1]) + b" " * 300_000 + b"\n" + json_lines([ROWS[1] | {"x": "y" * 9000}]) + json_lines(ROWS[2:])
    data = {"jsonl": content, "jsonl.gz": gzip.compress(content), "jsonl.zst": zst(content)}[suffix]
    (tmp_path / f"a.{suffix}").write_bytes(data)
    with pytest.raises(BadRow, match=r"row 2: expected at most [\d,]+ bytes a row"):
        list(read_comparisons(tmp_path / f"a.{suffix}"))
    bad = OnBadRow("skip", tmp_path / "side.rejected")
    assert [row for row, _ in read_numbered_comparisons(tmp_path / f"a.{suffix}", bad)] == [1, 4]
    kept = [json.loads(line)["content"] for line in (tmp_path / "side.rejected").read_text().splitlines()]
    assert [text[:20] for text in kept] == [" " * 20, '{"prompt": "p1\\nü", ']
    assert all(1000 < len(text) <= 1003 for text in kept)


def test_a_text_beyond_the_limit_is_a_bad_row(monkeypatch):
    """F12: in every kind of file."""
    text = "x" * (values.MAX_TEXT_CHARACTERS + 1)
    with pytest.raises(BadRow, match="field 'output': expected a text of at most 33,554,432 characters, not of 33,554,433"):
        list(read_items([{"prompt": "p", "reference": "r", "output": text}]))


BOMBS = {
    "gz": "gzip.open(path, 'wb', 1).write(b' ' * (1 << 30))",
    "parquet": (
        "pq.write_table(pa.table({name: pa.DictionaryArray.from_arrays(pa.array([0] * 10000, pa.int32()), [text]) "
        "for name, text in dict(prompt='x' * 30_000_000, reference='r', chosen='a', rejected='b').items()}), path)"
    ),
    "nested": (
        "pq.write_table(pa.table(dict(prompt=['p'] * 1000, candidates=pa.ListArray.from_arrays(list(range(0, 2002, 2)), "
        "pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ['x' * 100_000_000])))), path)"
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", BOMBS)
def test_small_files_that_expand_to_gigabytes_need_little_memory(tmp_path, kind):
    """F12: the oracle is the peak memory of a separate process."""
    path = tmp_path / ("a.jsonl.gz" if kind == "gz" else "a.parquet")
    code = f"import gzip, sys\nimport pyarrow as pa, pyarrow.parquet as pq\npath = sys.argv[1]\n{BOMBS[kind]}"
    subprocess.run([sys.executable, "-c", code, path], check=True)
    assert path.stat().st_size < 10 << 20
    code = """
import sys
from polar_rm.errors import PolarError
from polar_rm.records import read_comparisons
rows = 0
try:
    for comparison in read_comparisons(sys.argv[1]):
        rows += 1
except PolarError as error:
    print(error)
# Not getrusage: on Linux its maximum starts with that of the process that started this one.
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(rows, int(line.split()[1]) >> 10)
"""
    stdout = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout
    rows, mebibytes = map(int, stdout.splitlines()[-1].split())
    assert mebibytes < 600
    if kind == "parquet":
        assert rows == 10000
    elif kind == "gz":
        assert "row 1: expected at most 33,554,432 bytes a row" in stdout
    else:
        assert "the distinct values of column candidates" in stdout


def test_many_columns_are_refused(tmp_path):
    """F12: the check was quadratic; each row keeps all columns."""
    names = [f"c{i}" for i in range(100_000)]
    (tmp_path / "a.csv").write_text(",".join(names) + "\n")
    with pytest.raises(PolarError, match="it has 100,000 columns; at most 10,000 are read"):
        list(read_comparisons(tmp_path / "a.csv"))
    lines.check_names(tmp_path, names[:10_000])
    with pytest.raises(PolarError, match="two columns have the name 'c0'"):
        lines.check_names(tmp_path, [*names[:5000], "c0"])


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_nulls_of_dictionary_columns_stay_nulls(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(tables, "_USUAL_DICTIONARY", 0)  # so that Parquet's dictionaries are read as dictionaries too
    references = ["first", None, "second", "first", None]
    columns = {"prompt": list("abcde"), "reference": references, "chosen": ["x"] * 5, "rejected": ["y"] * 5}
    table = pa.table(columns | {"reference": pa.array(references).dictionary_encode()})
    path = tmp_path / f"a.{suffix}"
    if suffix == "arrow":
        path.write_bytes(stream_of(table))
    else:
        pq.write_table(pa.table(columns), path)
    assert [comparison.reference for comparison in read_comparisons(path)] == references

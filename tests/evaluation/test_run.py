import hashlib
import json

import pytest

from polar_rm.errors import PolarError
from polar_rm.evaluation import ComparisonFiles, evaluate
from polar_rm.evaluation.contenders.baselines import Length
from polar_rm.evaluation.data import First
from polar_rm.records import OnBadRow


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(i, **extra):
    good = {"prompt": f"p{i}", "reference": f"r{i}", "chosen": f"same r{i}", "rejected": "something longer " * i}
    return good | extra


def test_files_can_be_read_twice_and_are_described(tmp_path):
    first = write(tmp_path / "a.jsonl", [row(i, subset="x", meta={"language": "en"}) for i in range(1, 4)])
    second = write(tmp_path / "b.jsonl", [row(i, subset="y", meta={"language": "de"}) for i in range(4, 6)])
    files = ComparisonFiles([first, str(second)])
    result = evaluate([Length()], files, by="meta.language")
    assert result.report["n_pairs"] == 5
    assert {name: group["n_pairs"] for name, group in result.report["by"].items()} == {"en": 3, "de": 2}
    assert files.describe() == [
        {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "rows": rows}
        for path, rows in ((first, 3), (second, 2))
    ]


def test_folders_and_patterns_are_read_as_their_files(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", [row(1), row(2)]) for name in "ab"]
    for source in (tmp_path, f"{tmp_path}/*.jsonl"):
        files = ComparisonFiles([source])
        assert evaluate([Length()], files).report["n_pairs"] == 4
        assert [(file["path"], file["rows"]) for file in files.describe()] == [(str(path), 2) for path in paths]


def test_bad_rows_stop_the_run_or_are_written_once_to_a_side_file(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(1), {"prompt": "p"}, row(3), "{not json"])
    with pytest.raises(PolarError, match="row 2"):
        evaluate([Length()], ComparisonFiles([path]))
    side = tmp_path / "rejected.jsonl"
    bad = OnBadRow("skip", side)
    assert evaluate([Length()], ComparisonFiles([path], bad)).report["n_pairs"] == 2
    assert len(side.read_text().splitlines()) == 2
    assert bad.count == 2


def test_files_that_the_evaluation_writes_are_refused_as_data(tmp_path):
    """H1."""
    write(tmp_path / "a.jsonl", [row(1)])
    report = write(tmp_path / "b.jsonl", [row(2)])
    with pytest.raises(PolarError, match="b.jsonl: this run writes this file"):
        ComparisonFiles([tmp_path], outputs=[report])


def test_notes_are_counted_once_however_often_the_files_are_read(tmp_path):
    """H4."""
    path = write(tmp_path / "a.jsonl", [row(1, chosen="p1 again"), row(2)])
    bad = OnBadRow()
    files = ComparisonFiles([path], bad)
    for _ in range(3):
        assert len(list(files)) == 2
    assert [warning.partition(":")[0] for warning in bad.warnings()] == ["1 row"]


def test_files_have_warnings_about_skipped_rows_and_left_out_files(tmp_path):
    write(tmp_path / "data/a.jsonl", [row(1), {"prompt": "p"}, row(2)])
    write(tmp_path / "data/.hidden/b.jsonl", [row(3)])
    side = tmp_path / "rejected.jsonl"
    files = ComparisonFiles([tmp_path / "data"], OnBadRow("skip", side))
    assert len(list(files)) == 2
    skipped, left_out = files.warnings()
    assert skipped == f"1 bad rows were skipped, see {side}"
    assert "1 hidden folders" in left_out


def test_a_limit_below_one_is_refused():
    with pytest.raises(PolarError, match="limit must be at least 1, not 0"):
        First([], 0)
    assert list(First([1, 2, 3], 2)) == [1, 2] and list(First([1, 2], None)) == [1, 2]

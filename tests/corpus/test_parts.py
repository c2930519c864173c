"""Large JSONL files are divided at newlines into parts that all cores read."""

import json

import pytest
from support.full_disks import full_after
from support.trajectories import corpus_config as config
from support.trajectories import zoo

from polar_rm.corpus import plan as plan_module
from polar_rm.corpus.build import build
from polar_rm.corpus.job import Part
from polar_rm.corpus.parts import _as_file, _copy_lines, _lines_before, _seek_line
from polar_rm.corpus.plan import make_plan
from polar_rm.corpus.results import PartResult
from polar_rm.errors import MachineFailure, PolarError
from polar_rm.records import Trajectory, write_records


@pytest.mark.parametrize("ending", [b"\n", b"", b"\r\n"])
def test_every_line_is_in_one_part_whatever_the_size_of_parts(tmp_path, ending):
    content = b"\n\none\ntwo two two\n\nthree" + ending
    path = tmp_path / "lines"
    path.write_bytes(content)
    lines = content.splitlines(keepends=True)
    for size in range(1, len(content) + 1):
        copied, count = b"", 0
        for start in range(0, len(content), size):
            stop = start + size if start + size < len(content) else None
            with path.open("rb") as file, (tmp_path / "copy").open("wb") as copy:
                _seek_line(file, start)
                if start:
                    assert count == _lines_before(path, start)
                count += _copy_lines(file, copy, stop)
            copied += (tmp_path / "copy").read_bytes()
        assert (copied, count) == (content, len(lines))


def test_a_full_disk_names_the_copy_of_a_part(tmp_path):
    """F13."""
    (tmp_path / "rows.jsonl").write_text("a line\n" * 1000)
    part, copy = Part(tmp_path / "rows.jsonl", None, 1, 7000, 70), tmp_path / "copy.jsonl"
    with (
        full_after(100),
        pytest.raises(MachineFailure, match="copy.jsonl: could not be written: .*File too large"),
        _as_file(part, copy, PartResult("part")),
    ):
        pass
    assert not copy.exists()


def numbered(folder, rows, blank_at=20):
    """Write JSONL with a blank line, which must count in the numbers of later rows."""
    write_records(folder / "rows.jsonl", rows)
    lines = (folder / "rows.jsonl").read_text().splitlines()
    lines.insert(blank_at, "")
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return lines


def test_parts_of_a_jsonl_file_give_the_corpus_of_the_whole_file(tmp_path, monkeypatch):
    numbered(tmp_path, zoo())
    one_part = config(tmp_path, name="rows.jsonl")
    report = build(one_part)
    monkeypatch.setattr(plan_module, "_PART_BYTES", 700)
    many_parts = config(tmp_path, name="rows.jsonl", output=tmp_path / "parts")
    plan = make_plan(many_parts)
    assert len(plan.parts) > 10 and sum(part.n_bytes for part in plan.parts) == plan.n_bytes
    assert build(many_parts)["counts"] == report["counts"]
    shards = [{path.name: path.read_bytes() for path in each.output.glob("train/*")} for each in (one_part, many_parts)]
    assert shards[0] == shards[1] != {}
    assert not (many_parts.output / "work").exists()


@pytest.mark.parametrize("size", [100, 700])  # less than one line, and a few lines
def test_bad_rows_have_the_numbers_of_their_lines(tmp_path, monkeypatch, size):
    monkeypatch.setattr(plan_module, "_PART_BYTES", size)
    lines = numbered(tmp_path, zoo())
    lines[50] = '{"source": 3}'
    lines[60] = json.dumps(json.loads(lines[60]) | {"n_tokens": -1})
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    settings = config(tmp_path, name="rows.jsonl")
    with pytest.raises(PolarError, match=r"rows.jsonl: row 51: field 'source': expected a string, not 3"):
        build(settings)
    assert build(settings.model_copy(update={"on_bad_row": "skip"}))["counts"]["trajectories"]["refused"] == 2
    refused = [json.loads(line) for line in (settings.output / "refused.jsonl").read_text().splitlines()]
    path = str(tmp_path / "rows.jsonl")
    assert [(row["path"], row["row"], row["field"]) for row in refused] == [(path, 51, "source"), (path, 61, "n_tokens")]


def test_an_id_of_two_prompts_is_named_by_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "_PART_BYTES", 700)
    numbered(tmp_path, [*zoo(), Trajectory("t", "p0", "another", "a", 9, "x")])
    with pytest.raises(PolarError, match=r"rows.jsonl: row 74: prompt_id 'p0' has another prompt than in .*: row 1$"):
        build(config(tmp_path, name="rows.jsonl"))
    settings = config(tmp_path, name="rows.jsonl").model_copy(update={"on_bad_row": "skip"})
    report = build(settings)
    assert report["counts"]["trajectories"]["refused"] == 1
    assert json.loads((settings.output / "refused.jsonl").read_text())["row"] == 74


def test_rows_of_every_file_are_counted_from_its_own_first_line(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "_PART_BYTES", 700)
    lines = numbered(tmp_path, zoo())
    for name, bad in (("rows.jsonl", 30), ("second.jsonl", 50)):
        changed = [*lines[:bad], '{"source": 3}', *lines[bad + 1 :]]
        (tmp_path / name).write_text("\n".join(changed))
    settings = config(tmp_path, name="rows.jsonl").model_copy(
        update={"on_bad_row": "skip", "inputs": (str(tmp_path / "rows.jsonl"), str(tmp_path / "second.jsonl"))}
    )
    build(settings)
    refused = [json.loads(line) for line in (settings.output / "refused.jsonl").read_text().splitlines()]
    assert [(row["path"].rpartition("/")[2], row["row"]) for row in refused] == [("rows.jsonl", 31), ("second.jsonl", 51)]

"""``polar evaluate``, called as by a user: several contenders, and every form of the result."""

import csv
import json
import subprocess
import sys

import pytest
from support import tiny
from support.commands import refused

from polar_rm.evaluation.contenders.native import Native
from polar_rm.model.reward_model import RewardModel

PAIRS = [
    {"id": i, "prompt": f"p{i // 2}", "reference": f"the fox {i}", "chosen": f"the quick fox {i}", "rejected": "12 34" * i or "7"}
    for i in range(8)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    model = tiny.reward_model(folder / "lm", settings=tiny.EncoderSettings(max_length=128, max_response_length=32))
    model.save(folder / "m0")
    RewardModel.from_causal_lm(folder / "lm", settings={"max_length": 128, "max_response_length": 32}).save(folder / "new")
    return folder


@pytest.fixture(autouse=True)
def data(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    scores = [{"id": row["id"], "scores": [row["id"] % 3, 1]} for row in PAIRS]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))


@pytest.mark.plots
def test_two_contenders_with_every_form_of_the_result(polar, models, tmp_path):
    """B2, B3, B7."""
    options = ("--model", f"ours={models / 'm0'}", "--model", "theirs=scores:scores.jsonl")
    files = ("--json", "r.json", "--pairs", "p.csv", "--html", "e.html", "--plot", "a.svg", "--table", "t.tex")
    message = refused(polar("evaluate", "pairs.jsonl", *options, *files, "--by", "prompt_id", "--limit", 6))
    assert "no comparison has the metadata 'prompt_id'; there is: id" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "scores.jsonl"]
    code, shown, error = polar("evaluate", "pairs.jsonl", *options, *files, "--html-rows", 3)
    assert code == 0, error
    for word in (
        "8 pairs of 4 prompts, reference given",
        "ours",
        "theirs",
        "length",
        "tfidf",
        "ours and theirs can't be told apart",
    ):
        assert word in shown
    report = json.loads((tmp_path / "r.json").read_text())
    assert list(report["contenders"]) == ["ours", "theirs", "length", "tfidf"]
    assert report["contenders"]["theirs"]["ties"] == 3
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and float(rows[5]["theirs.margin"]) == 1.0 and rows[5]["better"] == "the quick fox 5"
    page = (tmp_path / "e.html").read_text()
    assert page.count("<article") == 3 and "3 of 8 pairs" in page
    assert (tmp_path / "t.tex").read_text().count("tabular") == 2
    assert (tmp_path / "a.svg").read_text().lstrip().startswith("<?xml")
    assert "8 pairs written to p.csv" in error and "3 of 8 pairs shown on e.html" in error


def test_a_table_goes_alone_to_standard_output(polar):
    code, shown, error = polar("evaluate", "pairs.jsonl", "--model", "scores:scores.jsonl", "--table", "md", "--limit", 8)
    assert code == 0, error
    lines = shown.splitlines()
    assert lines[0] == "**pairwise accuracy (8 pairs of 4 prompts, reference given, the first 8 comparisons only)**"
    assert lines[2] == "| contender | accuracy | 95% interval | ties | loss |"
    assert len(lines) == 4 + 3
    assert "warning: the intervals rest on 4 prompts only" in error


def test_limits_are_reported_and_counted(polar):
    code, shown, error = polar("evaluate", "pairs.jsonl", "--model", "length", "--limit", 3)
    assert code == 0, error
    assert "3 pairs of 2 prompts" in shown and "the first 3 comparisons only" in " ".join(shown.split())
    assert (
        polar("evaluate", "pairs.jsonl", "--model", "scores:scores.jsonl", "--limit", 3)[0] == 0
    )  # the file may have more scores


def test_rows_of_a_published_benchmark_are_told_with_its_suite(polar, tmp_path):
    rows = [
        {"id": str(i), "domain": "chat", "prompt": f"p{i}", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f" if i else "e"]}
        for i in range(3)
    ]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    for model, options in (("tfidf", ()), ("length", ("--reference", "empty"))):
        line = refused(polar("evaluate", "chat.json", "--model", model, *options), "equal candidates")
        assert line.endswith("; the rows have the form of RM-Bench, which --suite rm-bench reads and measures")
    rows[0]["rejected"][2] = "f"
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    refused(polar("evaluate", "chat.json", "--model", "tfidf"), "3 of 3 comparisons have no reference", "--suite rm-bench")
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "a"}) + "\n")
    assert "--suite" not in refused(polar("evaluate", "own.jsonl", "--model", "tfidf"), "equal candidates")


def test_references_from_a_file(polar, tmp_path):
    rows = [{key: row[key] for key in ("id", "prompt", "chosen", "rejected")} for row in PAIRS]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refused(polar("evaluate", "bare.jsonl", "--model", "tfidf"))
    assert "8 of 8 comparisons have no reference, the first is comparison 1" in message and "--references FILE" in message
    (tmp_path / "refs.jsonl").write_text("".join(json.dumps({"id": r["id"], "reference": r["reference"]}) + "\n" for r in PAIRS))
    options = ("--model", "tfidf", "--json")
    assert polar("evaluate", "bare.jsonl", *options, "a.json", "--references", "refs.jsonl")[0] == 0
    assert polar("evaluate", "pairs.jsonl", *options, "b.json")[0] == 0
    with_file, without = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert with_file["contenders"] == without["contenders"]
    assert with_file["reference"]["file"] == "refs.jsonl" and without["reference"]["file"] is None
    (tmp_path / "refs.jsonl").write_text('{"prompt": "p0", "reference": "x"}\n')
    message = refused(polar("evaluate", "bare.jsonl", *options, "c.json", "--references", "refs.jsonl"))
    assert "refs.jsonl: no reference for comparison 3 (joined by its prompt)" in message
    (tmp_path / "refs.jsonl").write_text('{"prompt": "p0", "reference": "x"}\n{"prompt": "p0", "reference": "y"}\n')
    assert "row 2: field 'reference'" in refused(
        polar("evaluate", "bare.jsonl", *options, "c.json", "--references", "refs.jsonl")
    )


def test_mistakes_about_contenders_and_outputs_are_one_line_and_nothing_is_scored(polar, models, monkeypatch):
    monkeypatch.delattr(Native, "load")
    m0 = models / "m0"
    for arguments, expected in (
        (("--model", m0, "--model", m0), "two contenders have the name"),
        (("--model", m0, "--model", "hf:nowhere"), "nowhere: no such folder of a model"),
        (("--model", m0, "--model", f"hf:{m0}"), "name it without hf:"),
        (("--model", m0, "--model", "http://127.0.0.1:9"), "no server answers at http://127.0.0.1:9"),
        (("--model", m0, "--pairs", "p.txt"), ".jsonl, .parquet, .csv"),
        (("--model", m0, "--table", "word"), "--table word: expected md, latex, csv, or a file *.md, *.tex, *.csv"),
        (("--model", m0, "--pairs", "pairs.jsonl"), "this run writes this file"),
        (("--model", m0, "--model", "tfidf", "--reference", "empty"), "tfidf compares with the reference"),
    ):
        assert expected in refused(polar("evaluate", "pairs.jsonl", *arguments)), arguments


def test_every_use_of_an_untrained_model_gives_a_warning(polar, models, tmp_path):
    """B4."""
    warning = "its head and its tokens <|reward|> and [UNUSED_TOKEN_130] were never trained"
    code, shown, error = polar("evaluate", "pairs.jsonl", "--model", models / "new", "--json", "r.json")
    assert code == 0, error
    assert any(warning in line for line in json.loads((tmp_path / "r.json").read_text())["warnings"])
    assert "never trained" in " ".join(shown.split())
    (tmp_path / "items.jsonl").write_text(json.dumps({"prompt": "p", "reference": "r", "output": "o"}) + "\n")
    # A process of its own: pytest takes the warnings of this one.
    options = ("--model", models / "new", "--input", "items.jsonl", "--output", "s.jsonl")
    command = (sys.executable, "-m", "polar_rm", "score", *options)
    scored = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert scored.returncode == 0, scored.stderr
    # A user sees one line without the position in the code.
    [line] = [line for line in scored.stderr.splitlines() if warning in line]
    assert line.startswith("warning: ") and "UserWarning" not in scored.stderr


def test_several_references_come_from_rows_or_a_file_and_are_all_shown(polar, models, tmp_path):
    rows = [row | {"references": ["the quick fox", "12"]} for row in PAIRS]
    own = [{name: value for name, value in row.items() if name != "reference"} for row in rows]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    (tmp_path / "refs.jsonl").write_text("".join(json.dumps({"id": r["id"], "references": r["references"]}) + "\n" for r in rows))
    reports = []
    for files in (("own.jsonl",), ("pairs.jsonl", "--references", "refs.jsonl")):
        options = (
            "--model",
            f"m={models / 'm0'}",
            "--combine",
            "best",
            "--json",
            "r.json",
            "--pairs",
            "p.jsonl",
            "--html",
            "e.html",
        )
        code, shown, error = polar("evaluate", *files, *options)
        assert code == 0, error
        assert "reference given (best of several)" in " ".join(shown.split())
        reports.append(json.loads((tmp_path / "r.json").read_text())["contenders"])
        assert json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])["reference"] == ["the quick fox", "12"]
        assert "<h3>reference 2</h3>" in (tmp_path / "e.html").read_text()
    assert reports[0] == reports[1]
    single = json.loads((tmp_path / "r.json").read_text())["reference"]
    assert (single["several"], single["combine"]) == (8, "best")
    refused(polar("audit", models / "m0", "own.jsonl"), "own.jsonl", "row 1", "one reference a row, but the row has 'references'")


@pytest.mark.plots
def test_published_benchmarks(polar, models, tmp_path):
    """B5."""
    rows = [
        {"id": f"{i}", "prompt": f"q{i}", "domain": "chat", "chosen": ["the fox"] * 3, "rejected": ["12 34", "7", "8 9"]}
        for i in range(4)
    ]
    (tmp_path / "total_dataset.json").write_text(json.dumps(rows))
    code, shown, _ = polar("evaluate", "--suite", "list")
    assert code == 0 and "rewardbench-2: RewardBench 2; references: none; licence: ODC-BY; https" in shown
    options = ("evaluate", "total_dataset.json", "--suite", "RM-Bench", "--model", f"m={models / 'm0'}")
    assert "RM-Bench ships no references" in refused(polar(*options))
    files = ("--reference", "empty", "--json", "r.json", "--pairs", "p.jsonl", "--html", "e.html", "--plot", "a.png")
    code, shown, error = polar(*options, *files)
    assert code == 0, error
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["schema"], report["suite"], list(report["contenders"])) == ("polar-rm/suite/1", "rm-bench", ["m", "length"])
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 4 * 9
    assert "rule: Each of 3 x 3 pairs" in (tmp_path / "e.html").read_text()
    assert (tmp_path / "a.png").stat().st_size > 1000
    for arguments, expected in (
        (("evaluate", "--suite", "rm-bench", "--model", "length"), "--suite rm-bench reads one file or folder"),
        (("evaluate", "--model", "length"), "name files of comparisons"),
        (("evaluate", "pairs.jsonl"), "name at least one contender with --model"),
        ((*options, "--by", "x"), "--by x: a published benchmark has its own groups"),
        (("evaluate", "total_dataset.json", "--model", "length", "--suite", "nosuch"), "unknown suite 'nosuch'"),
    ):
        assert expected in refused(polar(*arguments)), arguments

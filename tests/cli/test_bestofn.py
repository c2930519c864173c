"""``polar bestofn``, called as by a user."""

import csv
import json

import pytest
from support.commands import refused

ROWS = [
    {"prompt": f"p{i}", "reference": f"the fox {i}", "output": f"the fox {i} " + "so " * k, "correct": (i * k) % 3 == 1}
    for i in range(9)
    for k in range(4)
]


@pytest.fixture(autouse=True)
def samples(tmp_path):
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps({"score": row["correct"] + 0}) + "\n" for row in ROWS))


@pytest.mark.plots
def test_curves_in_every_form(polar, tmp_path):
    files = ("--json", "r.json", "--plot", "c.svg", "--table", "t.csv")
    code, shown, error = polar("bestofn", "samples.jsonl", "--gold", "correct", "--model", "best=scores:scores.jsonl", *files)
    assert code == 0, error
    words = (
        "gold of the top-scored of n (36 samples for 9 prompts, reference given)",
        "best: gold rises up to n = 4",
        "by gold at n = 4: best is better than length",
        "warning: the intervals rest on 9 prompts only and are too narrow",
    )
    for word in words:
        assert word in shown
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == "polar-rm/bestofn/1"
    assert list(report["contenders"]) == ["best", "length", "tfidf"]
    assert report["gold"] == "correct"
    assert [point["n"] for point in report["points"]] == [1, 2, 4]
    assert report["contenders"]["best"]["regret"]["value"] == pytest.approx(0)
    assert report["contenders"]["best"]["area"]["value"] == pytest.approx(0)
    with (tmp_path / "t.csv").open() as file:
        header, first, *_ = csv.reader(file)
    assert header == ["n", "KL", "prompts", "random", "best", "length", "tfidf", "oracle"]
    assert first[:3] == ["1", "0.00", "9"]
    drawn = (tmp_path / "c.svg").read_text()
    for word in ("oracle", "random", "best", "KL from the policy", "n = 4"):
        assert word in drawn


def test_a_table_and_a_trial(polar):
    options = ("--gold", "correct", "--model", "length", "--limit", 3, "--max-n", 2, "--table", "md")
    code, shown, error = polar("bestofn", "samples.jsonl", *options)
    assert code == 0, error
    assert "| 2 | 0.19 | 3 |" in shown
    assert "the first 3 prompts only" in shown
    assert "length" in error  # what the table means


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("samples.jsonl", "--model", "length"), "samples.jsonl: row 1: field 'gold': expected a number, but it is missing"),
        (("samples.jsonl", "--model", "lenght", "--gold", "correct"), "lenght"),
        (
            ("samples.jsonl", "--model", "length", "--gold", "correct", "--max-n", 5),
            "no prompt has so many samples; the most is 4",
        ),
        (("samples.jsonl", "--model", "length", "--json", "samples.jsonl"), "samples.jsonl: this run writes this file"),
        (("samples.jsonl", "--model", "length", "--plot", "a.pdf"), "a.pdf: unknown kind of file to write; known: .png, .svg"),
    ],
)
def test_mistakes_are_told_in_one_line(polar, arguments, message):
    refused(polar("bestofn", *arguments), message)

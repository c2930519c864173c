"""What is needed to draw a plot at the end is asked for before the work."""

import sys

import pytest
from support import tiny
from support.commands import in_process, refused


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which every input is refused as soon as it is read."""
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "rm")
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "bad.parquet").write_text("{\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", "length", "bad.jsonl", "--html", "page.html"],
        ["audit", "length", "bad.jsonl", "--plot", "plot.png"],
        ["evaluate", "bad.jsonl", "--model", "length", "--plot", "plot.svg"],
        ["bestofn", "bad.jsonl", "--model", "length", "--plot", "plot.svg"],
        ["calibrate", "rm", "bad.jsonl", "--plot", "plot.svg"],
        ["scaling", "fit", "rm", "--plot", "plot.svg"],
        ["corpus", "inputs=[bad.parquet]", "output=out"],
        ["select", "inputs=[bad.jsonl]", "output=out", "best_of_n=1"],
        ["select", "inputs=[bad.jsonl]", "output=out", "best_of_n=1", "--dry-run"],
        ["quickstart", "--base", "lm", "--output", "out"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_without_matplotlib_nothing_is_read(folder, monkeypatch, arguments):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(in_process(*arguments), "needs the package matplotlib: pip install")
    assert sorted(path.name for path in folder.iterdir()) == ["bad.jsonl", "bad.parquet", "lm", "rm"]


def test_the_quickstart_lists_all_that_is_missing_at_once(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, error = in_process("quickstart", "--base", "package:no_such_model", "--output", "out")
    assert code == 2
    assert "package:no_such_model: the package" in error and "needs the package matplotlib: pip install matplotlib" in error


def test_a_page_of_mistakes_needs_no_matplotlib(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(in_process("evaluate", "bad.jsonl", "--model", "length", "--html", "page.html"), "bad.jsonl")

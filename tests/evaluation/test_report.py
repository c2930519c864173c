import io
import json
import math
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from polar_rm.errors import PolarError
from polar_rm.evaluation.report import accuracy_rows, render, write_plot, write_report
from polar_rm.reporting.plots import plot_accuracy, plot_loss_curves, plot_score_distributions


def make_report(groups=("code", "a $x_1$ [bold]group[/bold] <&>")):
    def measure(accuracy):
        baselines = {
            name: {"accuracy": 0.6, "ci95": [0.55, 0.65], "difference": accuracy - 0.6, "difference_ci95": [0.01, 0.2]}
            for name in ("length", "tfidf")
        }
        numbers = {"n_pairs": 1234, "n_prompts": 100, "accuracy": accuracy, "ci95": [accuracy - 0.05, accuracy + 0.04]}
        return {**numbers, "loss": 0.5, "baselines": baselines}

    return {
        "schema": "polar-rm/evaluation/1",
        **measure(0.75),
        "by": {name: measure(0.7) for name in groups},
        "encoder_hash": "e",
        "model": "runs/$m",
        "data": [{"path": "f", "sha256": "0", "rows": 3}],
        "reference": {"mode": "given", "reference_equals_candidate": 2},
        "warnings": ["2 comparisons [x]"],
    }


def texts(svg):
    return [text for element in ET.fromstring(svg).iter() if (text := (element.text or "").strip())]


def test_table_shows_groups_total_differences_and_warnings():
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(make_report()))
    shown = console.export_text()
    for part in (
        "code",
        "a $x_1$ [bold]group[/bold] <&>",
        "1,234",
        "0.750",
        "[0.700, 0.790]",
        "model - tfidf: +0.150 [+0.010, +0.200]",
    ):
        assert part in shown
    assert "warning: 2 comparisons [x]" in shown
    report = make_report()
    report["ci95"] = None
    console.print(render(report))
    assert " - " in console.export_text()


def test_json_round_trip(tmp_path):
    write_report(tmp_path / "deep" / "out.json", make_report())
    assert json.loads((tmp_path / "deep" / "out.json").read_text()) == make_report()


def test_plot_files_by_suffix(tmp_path):
    write_plot(tmp_path / "a.png", make_report())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    write_plot(tmp_path / "a.svg", make_report())
    first = (tmp_path / "a.svg").read_bytes()
    write_plot(tmp_path / "a.svg", make_report())
    assert (tmp_path / "a.svg").read_bytes() == first  # equal results give equal files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]
    with pytest.raises(PolarError, match=r"known: .png, .svg"):
        write_plot(tmp_path / "a.pdf", make_report())
    with pytest.raises(PolarError, match="could not be written"):
        write_plot(tmp_path / "a.svg" / "b.svg", make_report())


def test_accuracy_plot_labels_every_group_and_series():
    rows = accuracy_rows(make_report())
    assert list(rows) == ["code", "a $x_1$ [bold]group[/bold] <&>", "all"]
    shown = texts(plot_accuracy(rows, title="t $y"))
    for label in ("code", "a $x_1$ [bold]group[/bold] <&>", "all", "model", "length", "tfidf", "t $y"):
        assert label in shown
    assert list(accuracy_rows(make_report(["all"]))) == ["all", "all pairs"]


def test_accuracy_plot_takes_missing_intervals_and_many_rows():
    rows = {f"g{i}": {"model": {"accuracy": 0.5, "ci95": None}} for i in range(60)}
    rows["last"] = {"length": {"accuracy": 0.2, "ci95": [0.3, 0.4]}}
    shown = texts(plot_accuracy(rows))
    assert "last" in shown and "g0" not in shown
    assert "(the last 40 of 61 groups)" in shown


def test_loss_curves_mark_chance():
    histories = {"with": [(i, 0.7 / (1 + i / 100)) for i in range(200)], "one step": [(1, math.log(2))], "none": []}
    svg = plot_loss_curves(histories, title="loss")
    assert svg.startswith("<svg")
    assert {"with", "one step", "none", "ln 2 (chance)", "loss"} <= set(texts(svg))


def test_score_distributions_name_size_and_median():
    shown = texts(plot_score_distributions({"same policy": [1.0, 2.0, 3.0], "other policy": [0.0] * 50, "empty": []}))
    assert "same policy (n = 3, median 2.00)" in shown
    assert "other policy (n = 50, median 0.00)" in shown
    assert not any("empty" in text for text in shown)
    assert plot_score_distributions({}).startswith("<svg")
    assert plot_score_distributions({"a": [2.0, 2.0]}).startswith("<svg")

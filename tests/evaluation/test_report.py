import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest
from rich.console import Console

from polar_rm.errors import PolarError
from polar_rm.evaluation.report import accuracy_rows, write_plot, write_report
from polar_rm.evaluation.tables import sentences, summarise, tables
from polar_rm.reporting.plots import plot_accuracy, plot_loss_curves, plot_score_distributions
from polar_rm.reporting.tables import Table

pytestmark = pytest.mark.plots
NAMES = ("runs/$m", "other", "length")


def make_report(groups=("code", "a $x_1$ [bold]group[/bold] <&>")):
    def measures(accuracy):
        interval = [accuracy - 0.05, accuracy + 0.04]
        contenders = {
            name: {"accuracy": accuracy, "ci95": interval, "ties": 17, "loss": None if name == "length" else 0.512}
            for name in NAMES
        }
        differences = [
            {"first": NAMES[0], "second": NAMES[1], "difference": 0.15, "ci95": [0.01, 0.2], "verdict": "first"},
            {"first": NAMES[0], "second": NAMES[2], "difference": -0.1, "ci95": [-0.3, -0.05], "verdict": "second"},
            {"first": NAMES[1], "second": NAMES[2], "difference": 0.0, "ci95": None, "verdict": "undecided"},
        ]
        return {"n_pairs": 1234, "n_prompts": 100, "contenders": contenders, "differences": differences}

    facts = {"source": None, "reads_references": True, "noted": {}, "unread": {}, "facts": {}}
    return {
        "schema": "polar-rm/evaluation/2",
        **measures(0.75),
        "by": {name: measures(0.7) for name in groups},
        "facts": {name: {"kind": "baseline" if name == "length" else "native", **facts} for name in NAMES},
        "data": [{"path": "f", "sha256": "0", "rows": 3}],
        "limit": 50,
        "reference": {
            "mode": "given",
            "protocols": {"given": 3},
            "several": 0,
            "combine": "mean",
            "use": None,
            "file": None,
            "reference_equals_candidate": 2,
        },
        "fingerprint": "f",
        "warnings": ["2 comparisons [x]"],
    }


def texts(svg):
    return [text for element in ET.fromstring(svg).iter() if (text := (element.text or "").strip())]


def shown(report):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(summarise(report).rich())
    return console.export_text()


def test_table_shows_contenders_groups_differences_and_warnings():
    text = shown(make_report())
    for part in (
        "1,234 pairs of 100 prompts, reference given, the first 50 comparisons only",
        "runs/$m",
        "0.750",
        "[0.700, 0.790]",
        "17",
        "0.512",
        "a $x_1$ [bold]group[/bold] <&>",
        "0.700 [0.650, 0.740]",
        "runs/$m is better than other: +0.150 [+0.010, +0.200]",
        "runs/$m is worse than length: -0.100 [-0.300, -0.050]",
        "other and length can't be told apart: +0.000 (no interval)",
        "warning: 2 comparisons [x]",
    ):
        assert part in text
    report = make_report([])
    report["contenders"]["other"]["ci95"] = None
    assert " - " in shown(report)
    assert "by group" not in shown(report)


def test_two_baselines_are_not_compared_and_many_contenders_only_with_the_first():
    report = make_report()
    facts = {key: {"kind": "baseline"} for key in NAMES}
    assert sentences(report["differences"], facts) == []
    names = [f"m{i}" for i in range(6)]
    all_of_two = [
        {"first": a, "second": b, "difference": 0.0, "ci95": None, "verdict": "undecided"} for a, b in combinations(names, 2)
    ]
    lines = sentences(all_of_two, {key: {"kind": "native"} for key in names})
    assert len(lines) == 5 + 1
    assert lines[-1] == "(only comparisons with m0 are shown; all 15 are in the JSON)"


def test_tables_in_other_formats():
    accuracy, groups = tables(make_report())
    rows = list(csv.reader(io.StringIO(accuracy.csv())))
    assert rows == [
        ["contender", "accuracy", "95% interval", "ties", "loss"],
        ["runs/$m", "0.750", "[0.700, 0.790]", "17", "0.512"],
        ["other", "0.750", "[0.700, 0.790]", "17", "0.512"],
        ["length", "0.750", "[0.700, 0.790]", "17", "-"],
    ]
    assert "| other | 0.750 | [0.700, 0.790] | 17 | 0.512 |" in accuracy.markdown().splitlines()
    latex = groups.latex()
    assert r"a \$x\_1\$ [bold]group[/bold] \textless{}\&\textgreater{} & 1,234 & 100 &" in latex
    assert latex.count(r"\midrule") == 2 and r"runs/\$m" in latex
    odd = Table("t\nu", ["a|b", "c"], [["x\ny", "1"]])
    assert odd.markdown().splitlines() == ["**t u**", "", "| a\\|b | c |", "| --- | ---: |", "| x y | 1 |"]
    assert [*csv.reader(io.StringIO(odd.csv()))] == [["a|b", "c"], ["x\ny", "1"]]


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


def test_accuracy_plot_labels_every_group_and_contender():
    rows = accuracy_rows(make_report())
    labels = ["code (1,234)", "a $x_1$ [bold]group[/bold] <&> (1,234)", "all (1,234)"]
    assert list(rows) == labels
    shown = texts(plot_accuracy(rows, title="t $y"))
    for label in (*labels, *NAMES, "t $y"):
        assert label in shown
    assert list(accuracy_rows(make_report(["all"]))) == ["all (1,234)", "all pairs (1,234)"]


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


@pytest.mark.parametrize(("n_steps", "n_faint"), [(10, 0), (11, 1), (60, 1), (900, 1)])
def test_the_raw_losses_are_faint_behind_their_mean(n_steps, n_faint):
    svg = plot_loss_curves({"run": [(i, 0.7 if i % 2 else 0.1) for i in range(n_steps)]})
    assert svg.count("opacity: 0.25") == n_faint
    # The lines in the order in which they are drawn, without the legend's.
    paths = [path for path, _ in re.findall(r'd="(M [^"]+)"([^>]*#0072b2)', svg)]
    heights = [[float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)] for path in paths]
    spans = [max(path) - min(path) for path in heights if max(path) > min(path)]
    assert len(spans) == 1 + n_faint
    assert not n_faint or spans[1] < spans[0] / 2  # the second one, which is above, is the smooth one


def test_score_distributions_name_size_and_median():
    shown = texts(plot_score_distributions({"same policy": [1.0, 2.0, 3.0], "other policy": [0.0] * 50, "empty": []}))
    assert "same policy (n = 3, median 2.00)" in shown
    assert "other policy (n = 50, median 0.00)" in shown
    assert not any("empty" in text for text in shown)
    assert plot_score_distributions({}).startswith("<svg")
    assert plot_score_distributions({"a": [2.0, 2.0]}).startswith("<svg")

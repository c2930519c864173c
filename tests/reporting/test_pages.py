"""Formatting and pages that all reports share."""

import pytest
from jinja2 import UndefinedError

from polar_rm.reporting.html import render_page
from polar_rm.reporting.plots import calibration_figure
from polar_rm.reporting.words import interval, measure


def test_format_of_intervals_and_measures():
    assert interval([0.12345, 0.6]) == "[0.123, 0.600]"
    assert interval((-0.1, 0.2), "+.2f") == "[-0.10, +0.20]"
    assert interval(None) == "" and interval(None, missing="-") == "-"
    assert measure({"accuracy": 0.5, "ci95": [0.4, 0.6]}) == "0.500 [0.400, 0.600]"
    assert measure({"accuracy": 0.5, "ci95": None}) == "0.500"


def test_a_page_escapes_texts_and_shows_plots(monkeypatch, tmp_path):
    monkeypatch.setattr("polar_rm.reporting.html.files", lambda package: tmp_path / package)
    (tmp_path / "some").mkdir()
    (tmp_path / "some/page.j2").write_text("{{ report.text }} {{ plots.one }} {{ report.n|number }} {{ report.m|measure }}")
    report = {"text": "<b>", "n": 12345, "m": {"accuracy": 1, "ci95": None}}
    assert render_page("some", "page.j2", report, {"one": "<svg></svg>"}) == "&lt;b&gt; <svg></svg> 12,345 1.000"
    with pytest.raises(UndefinedError):
        render_page("some", "page.j2", {}, {"one": ""})


def test_the_calibration_plot_has_pairs_in_percent_and_probabilities_as_they_are():
    bins = [{"confidence": [0.6, 0.9], "accuracy": accuracy, "error": 0.1} for accuracy in ([0.5, 0.7], [0.6, 0.8])]
    curve = [{"coverage": share, "accuracy": 1 - share / 4, "ci95": [0.5, 1 - share / 8]} for share in (1.0, 0.5)]
    left, right = calibration_figure(*bins, curve).axes
    drawn = {line.get_label(): [axis.tolist() for axis in line.get_data()] for line in left.lines}
    assert drawn["before (error 0.100)"] == [[0.6, 0.9], [0.5, 0.7]] and drawn["after (error 0.100)"] == [[0.6, 0.9], [0.6, 0.8]]
    [accuracy], [band] = right.lines, right.collections
    assert [axis.tolist() for axis in accuracy.get_data()] == [[100, 50], [0.75, 0.875]]
    corners = set(map(tuple, band.get_paths()[0].vertices.tolist()))
    assert corners == {(100, 0.5), (100, 0.875), (50, 0.5), (50, 0.9375)}
    assert "%" in right.get_xlabel() and right.xaxis_inverted()

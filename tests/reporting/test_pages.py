"""Formatting and pages that all reports share."""

import pytest
from jinja2 import UndefinedError

from polar_rm.reporting.html import render_page
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

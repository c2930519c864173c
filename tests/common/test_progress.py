"""What a terminal shows of a long job, and what a log does."""

from __future__ import annotations

import io
import re
import time

import pytest

from polar_rm.common import progress as module
from polar_rm.common.progress import plain_console, show_progress, status_line


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def console(*, terminal):
    made = plain_console()
    made.file, made.width = io.StringIO(), 200
    made._force_terminal = terminal
    return made


def shown(made):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", made.file.getvalue())


def run(made, clock, **options):
    with show_progress(made, **options) as progress:
        for done, total, status in ((1000, 4000, ""), (1500, 4000, "loss 0.5"), (1600, 4000, ""), (4000, 4000, "loss 0.4")):
            progress("scoring", done, total, status)
            clock[0] += 4.0


def test_a_log_gets_a_line_now_and_then_with_the_speed_since_this_run_began(clock):
    made = console(terminal=False)
    run(made, clock, unit="items")
    # After 0, 4, 8 and 12 s; a line at most every 5 s. 600 items in 8 s, where 1,000 of them were there.
    assert shown(made) == "scoring: 1000/4000\nscoring: 1600/4000, 75 items/s\n"


def test_a_terminal_gets_a_bar_with_speed_and_time_left(clock):
    made = console(terminal=True)
    run(made, clock, unit="items")
    last = shown(made).rstrip().splitlines()[-1]
    assert "4000/4000" in last and "eta" in last and last.endswith("250 items/s, loss 0.4")
    assert "scoring: " not in shown(made)


def test_an_unknown_total_is_a_count(clock):
    made = console(terminal=False)
    with show_progress(made) as progress:
        progress("encoding", 12345, None)
    assert shown(made) == "encoding: 12,345\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_other_ranks_show_nothing(clock, terminal):
    made = console(terminal=terminal)
    run(made, clock, unit="items", enabled=False)
    assert made.file.getvalue() == ""


def test_the_lines_of_a_long_run_become_rarer(clock):
    made = console(terminal=False)
    with show_progress(made) as progress:
        for done in range(100):
            progress("scoring", done, 100)
            clock[0] += 1.0
    assert re.findall(r"scoring: (\d+)/100", shown(made)) == ["0", "5", "15", "35", "65", "95"]


def test_a_log_gets_the_text_of_a_status_line_and_then_how_long_it_takes(monkeypatch):
    monkeypatch.setattr(module, "_LINE_S", 0.01)
    made = console(terminal=False)
    with status_line(made, "converting") as show:
        assert shown(made) == "converting\n"
        show("writing")
        for _ in range(500):
            if "writing: 0 s" in shown(made):
                break
            time.sleep(0.01)
    assert "writing: 0 s" in shown(made)
    ended = shown(made)
    time.sleep(0.05)
    assert shown(made) == ended
    with status_line(console(terminal=True), "converting") as show:
        show("writing")


def test_a_log_repeats_the_last_state_while_nothing_changes(monkeypatch):
    """A pass over a long sequence, or a model that loads: the log was silent until it ended."""
    monkeypatch.setattr(module, "_LINE_S", 0.01)
    made = console(terminal=False)
    with show_progress(made) as progress:
        progress("transformers", 0, 15, "loading")
        progress("transformers", 0, 15, "now 9 tokens")  # too early for a line of its own
        for _ in range(500):
            if "now 9 tokens: 0 s" in shown(made):
                break
            time.sleep(0.01)
    assert shown(made).startswith("transformers: 0/15, loading\ntransformers: 0/15, now 9 tokens: 0 s\n")
    ended = shown(made)
    time.sleep(0.05)
    assert shown(made) == ended


def test_a_log_repeats_nothing_where_states_change(monkeypatch):
    monkeypatch.setattr(module, "_LINE_S", 0.5)
    made = console(terminal=False)
    with show_progress(made) as progress:
        for done in range(20):
            progress("scoring", done, 20)
            time.sleep(0.05)
    assert ": 0 s" not in shown(made) and ": 1 s" not in shown(made)

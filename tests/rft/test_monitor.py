"""Limits on a run: which rows give which events."""

import json

import pytest
from support import tiny

from polar_rm.common.config import load_config
from polar_rm.common.files import claim_folder
from polar_rm.errors import ConfigError, PolarError
from polar_rm.rft.config import RftConfig
from polar_rm.rft.monitor import Limit, Monitor, MonitorConfig
from polar_rm.rft.run import identity


def rows(**columns):
    names = {"length": "completions/mean_length", "repetition": "polar/repetition", "likeness": "polar/likeness"}
    count = len(next(iter(columns.values())))
    plain = {"reward": [0.0] * count, "repetition": [0.0] * count} | columns
    return [
        {"step": step + 1, **{names.get(name, name): values[step] for name, values in plain.items()}} for step in range(count)
    ]


def events(config, table):
    return [(event["step"], event["quantity"], event["action"]) for event in Monitor(config).read(table)]


def test_the_mean_of_the_last_rows_is_compared():
    config = MonitorConfig(window=3, length=Limit(max=10))
    assert events(config, rows(length=[30, 0, 0, 9, 9, 9, 12.1])) == [(7, "length", "warn")]  # 10.03
    assert events(config, rows(length=[40, 40])) == []  # too few rows
    assert events(config, rows(length=[9, 9, 9, 12])) == []  # exactly 10


def test_an_excursion_is_told_once_and_the_next_one_again():
    config = MonitorConfig(window=1, likeness=Limit(min=0.2, max=0.8, action="warn"))
    assert events(config, rows(likeness=[0.5, 0.1, 0.1, 0.5, 0.9, 0.9, 0.5, 0.19])) == [
        (2, "likeness", "warn"),
        (5, "likeness", "warn"),
        (8, "likeness", "warn"),
    ]


def test_a_relative_limit_is_a_multiple_of_the_first_mean():
    config = MonitorConfig(window=2, length=Limit(max=2, min=0.5, relative=True, action="stop"))
    monitor = Monitor(config)
    [event] = monitor.read(rows(length=[10, 20, 30, 30, 31], reward=[1, 2, 3, 4, 5]))
    assert event == monitor.stopped
    assert (event["step"], event["value"], event["limit"]) == (5, 30.5, 30)
    assert event["reason"] == (
        "step 5: length 30.5, the mean of 2 rows, is above its limit 30, 2 times its first mean; "
        "the reward went from 1.5 to 4.5 meanwhile"
    )
    assert events(config, rows(length=[10, 20, 7, 7.9])) == [(4, "length", "stop")]


def test_rows_in_parts_give_the_same_events():
    config = MonitorConfig(window=2, length=Limit(max=2, relative=True))
    table = rows(length=[10, 10, 25, 25, 5, 5, 30, 30])
    parts = Monitor(config)
    told = [event for number in range(0, 8, 3) for event in parts.read(table[number : number + 3])]
    assert told == Monitor(config).read(table) == parts.events and len(told) == 2


def test_by_default_repetition_is_told():
    assert events(MonitorConfig(), rows(repetition=[0.6] * 8)) == [(8, "repetition", "warn")]
    assert Monitor(MonitorConfig()).stopped is None


def test_what_is_not_logged_can_not_be_limited():
    with pytest.raises(PolarError, match=r"monitor.likeness: TRL logs no 'polar/likeness'"):
        Monitor(MonitorConfig(likeness=Limit(min=0))).read(rows(length=[1]))
    assert Monitor(MonitorConfig(likeness=Limit(min=0))).read([{"step": 3, "train_runtime": 1.0}]) == []


@pytest.fixture
def config(tmp_path):
    tiny.causal_lm(tmp_path / "lm")
    (tmp_path / "rm").mkdir()
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "p", "reference": "r"}) + "\n")
    base = [
        f"policy.model={tmp_path}/lm",
        f"reward.source={tmp_path}/rm",
        f"output={tmp_path}/o",
        f"data=[{tmp_path}/rows.jsonl]",
    ]
    return lambda *overrides: load_config(RftConfig, [], [*base, *overrides])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("monitor.length={}", "monitor.length: set min, max or both"),
        ("monitor.length={min: 3, max: 2}", "min 3 is more than max 2"),
        ("monitor.reward={max: 2, relative: true}", "rewards have no zero"),
        ("monitor.length={maxi: 2}", "unknown key 'monitor.length.maxi'; did you mean 'max'"),
        ("monitor.kl={max: 1, action: halt}", "monitor.kl.action"),
    ],
)
def test_mistakes_in_the_limits(config, override, message):
    with pytest.raises(ConfigError, match=message):
        config(override)


def test_limits_may_change_between_two_runs_into_one_folder(config):
    first = config("monitor.length={max: 5, action: stop}")
    claim_folder(first.output, identity(first), "a fine-tuned policy")
    claim_folder(first.output, identity(config("monitor.length={max: 50}")), "a fine-tuned policy")
    with pytest.raises(PolarError, match="other settings"):
        claim_folder(first.output, identity(config("seed=1")), "a fine-tuned policy")

"""The report of a run: what it concludes, and what its page shows."""

import json

import pytest

from polar_rm.common.config import load_config
from polar_rm.rft.baseline import SftRun
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import RftData
from polar_rm.rft.judges import Task
from polar_rm.rft.monitor import Monitor
from polar_rm.rft.page import write_page
from polar_rm.rft.report import Finished, build_report

COUNT = 60


def evaluation(values, rewards, text="A text of the policy.", n_tokens=5):
    return [
        {
            "number": number,
            "sample": 0,
            "prompt": f"prompt {number} <b>",
            "reference": f"reference {number}",
            "completion": f"{text} {number}",
            "n_tokens": n_tokens,
            "scores": {"answer": float(value), "rules": 1.0},
            "notes": {} if value else {"answer": "expected '7'"},
            "reward": float(reward),
            "repetition": 0.25,
            "likeness": 0.5,
        }
        for number, (value, reward) in enumerate(zip(values, rewards, strict=True))
    ]


def spread(mean):
    return [mean + number % 7 / 10 for number in range(COUNT)]


@pytest.fixture
def build(tmp_path):
    config = load_config(
        RftConfig,
        [],
        [
            "policy.model=lm",
            "reward.source=rm",
            f"output={tmp_path}",
            "data=[rows.jsonl]",
            "monitor={window: 1, length: {max: 9}}",
        ],
    )
    rows = [
        {
            "step": step,
            "reward": step / 10,
            "completions/mean_length": 5.0 + 2 * step,
            "polar/repetition": 0.1,
            "num_tokens": 30 * step,
        }
        for step in range(1, 5)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 4, "train_runtime": 1.0}]))
    monitor = Monitor(config.monitor)
    monitor.read(rows)
    data = RftData([{}] * 7, [Task("p", "r", "sft")] * COUNT, ["a note"])

    def make(before, after, sft=None, events=monitor.events):
        finished = Finished(4, {0: before, 4: after}, events, data, sft)
        report = build_report(config, finished)
        write_page(tmp_path / "report.html", report, config.monitor.absolute())
        json.dumps(report, allow_nan=False)
        return report, (tmp_path / "report.html").read_text()

    return make


def test_a_reward_that_rises_alone_is_told(build):
    same = [number % 2 for number in range(COUNT)]
    report, page = build(evaluation(same, spread(0)), evaluation(same, spread(1)))
    verdicts = {name: found["verdict"] for name, found in report["held_out"].items()}
    assert verdicts == {"answer": "undecided", "rules": "undecided", "reward": "better"}
    told = "The reward rose on held-out prompts while no judge (answer, rules) sees an improvement: the policy may be exploiting"
    assert any(line.startswith(told) for line in report["sentences"]) and told in page
    worse = [value and number % 3 == 0 for number, value in enumerate(same)]
    report, _ = build(evaluation(same, spread(0)), evaluation(worse, spread(1)))
    assert any("while answer fell" in line for line in report["sentences"])
    report, _ = build(evaluation(worse, spread(0)), evaluation(same, spread(1)))
    assert not any("exploiting" in line for line in report["sentences"])
    assert report["sentences"][0].endswith("after is better on held-out prompts.")


def test_worst_regressions_come_first_and_texts_are_escaped(build):
    before, after = [1] * COUNT, [1] * COUNT
    after[17] = after[40] = 0
    rewards = spread(1)
    rewards[40] = -5
    report, page = build(evaluation(before, spread(1)), evaluation(after, rewards))
    shown = report["examples"]
    assert [example["number"] for example in shown[:2]] == [40, 17] and len(shown) == 50
    assert shown[0]["sides"]["after"]["notes"] == {"answer": "expected '7'"}
    assert "prompt 40 &lt;b&gt;" in page and "<b>" not in page.replace("</b>", "")
    assert page.index("prompt 40 ") < page.index("prompt 17 ") and "reference 40" in page
    assert "of 60 held-out prompts" in page


def test_limits_that_were_left_and_a_stop(build):
    report, page = build(evaluation([1] * COUNT, spread(0)), evaluation([1] * COUNT, spread(0)))
    assert report["events"][0]["reason"].startswith("step 3: length 11 is above its limit 9")
    assert (
        report["sentences"][-1].startswith("A limit was left at step 3: length 11 is above its limit 9") and "stopped" not in page
    )
    stop = {**report["events"][0], "action": "stop"}
    report, page = build(evaluation([1] * COUNT, spread(0)), evaluation([1] * COUNT, spread(0)), events=[stop])
    assert report["sentences"][0].startswith("The run was stopped: step 3: length 11")
    assert report["stopped"]["step"] == 3 and ">stopped<" in page


def test_the_baseline_is_compared_prompt_by_prompt(build, tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/metrics.jsonl").write_text('{"step": 4, "loss": 1.0, "num_tokens": 77}\n')
    half, fifth = ([number % each == 0 for number in range(COUNT)] for each in (2, 5))
    sft = SftRun({"steps": 4, "sequences": 64, "passes": 64 / 7}, {4: evaluation(half, spread(0), "By sft.")})
    report, page = build(evaluation([0] * COUNT, spread(0)), evaluation(fifth, spread(0)), sft)
    found = report["baseline"]["difference"]["answer"]
    assert (found["first"], found["second"], found["verdict"]) == (0.5, 0.2, "worse")
    assert report["baseline"]["budget"] == (
        "The same budget: sft had as many updates as rft (4) with as many sequences in each, 64 in all. "
        "These are 9.1 passes over the references; rft read 120 tokens and sft 77, prompts included."
    )
    assert "By sft. 3" in page and "rft against sft" in page
    assert [row["step"] for row in report["evaluations"]["sft"]] == [4]
    assert report["held_out"]["answer"]["verdict"] == "better"

"""``polar rft`` with held-out prompts: ``make test-trl``."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support import fakes, notebooks, tiny
from transformers import AutoModelForCausalLM

from polar_rm.common.config import load_config, to_yaml
from polar_rm.errors import ConfigError, ScoreError
from polar_rm.rft.config import RftConfig
from polar_rm.rft.judges import MathConfig, Task
from polar_rm.rft.run import run

ENCODER = fakes.encoder(max_length=200, max_response_length=60)
SHORT = {
    "max_steps": 4,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 6,
    "gradient_checkpointing": False,
    "learning_rate": 1e-2,
}
WORDS = fakes.WORDS[:6]
EVALUATE = {
    "judges": [{"kind": "rules", "rules": {"excludes": ["e"]}}, {"kind": "gold", "model": "length"}],
    "every": 2,
    "samples": 2,
}


@pytest.fixture(scope="module")
def url():
    with fakes.running(fakes.make(encode=ENCODER)) as address:
        yield address


def write(path, prompts):
    path.write_text("".join(json.dumps({"prompt": prompt, "reference": f"{prompt} jumps over"}) + "\n" for prompt in prompts))


def config(policy, url, output, *overrides, evaluate=EVALUATE, **trainer):
    write(output.parent / "rows.jsonl", [f"the {word}" for word in WORDS])
    write(output.parent / "held.jsonl", [f"a {word}" for word in fakes.WORDS[:5]])
    base = [f"policy.model={policy}", "policy.kind=base", f"reward.source={url}", f"output={output}"]
    base += [f"data=[{output.parent}/rows.jsonl]", f"trainer={json.dumps({**SHORT, **trainer})}"]
    held_out = {"data": [f"{output.parent}/held.jsonl"], **evaluate} if evaluate else None
    return load_config(RftConfig, [], [*base, f"evaluate={json.dumps(held_out)}", *overrides])


def evaluations(output):
    return {path.name: path.read_text() for path in sorted((output / "evaluation").iterdir())}


def metrics(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(output):
    return AutoModelForCausalLM.from_pretrained(output / "policy").state_dict()


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_held_out_prompts_are_judged_before_during_and_after(algorithm, policy, url, tmp_path):
    seen = []
    # In float32: in bfloat16, which some processors choose, an adapter and its merged weights draw other tokens.
    results = run(config(policy, url, tmp_path / "run", f"algorithm={algorithm}", "lora={rank: 4}", bf16=False), seen.append)
    files = evaluations(tmp_path / "run")
    assert list(files) == ["step-000000.jsonl", "step-000002.jsonl", "step-000004.jsonl"]
    rows = [[json.loads(line) for line in text.splitlines()] for text in files.values()]
    assert [len(each) for each in rows] == [10, 10, 10] and {row["prompt"] for row in rows[0]} == {f"a {w}" for w in WORDS[:5]}
    assert rows[0] != rows[2]
    for row in rows[2]:
        assert row["scores"]["rules"] == float("e" not in row["completion"])
        item = fakes.ScoreItem(row["prompt"], row["reference"], row["completion"])
        assert row["reward"] == fakes.fake_score(fakes.ids_of(item, ENCODER))
    means = [row["held_out/rules"] for row in seen if "held_out/rules" in row]
    assert means == pytest.approx([sum(row["scores"]["rules"] for row in each) / 10 for each in rows])
    found = results["held_out"]["rules"]
    assert (found["first"], found["second"]) == pytest.approx((means[0], means[2]))
    assert list(results["held_out"]) == ["rules", "gold", "reward"] and found["n_prompts"] == 5
    assert json.loads((tmp_path / "run/run.json").read_text())["results"]["held_out"] == results["held_out"]
    # The last completions are those of the saved policy.
    again = run(config(tmp_path / "run/policy", url, tmp_path / "again", f"algorithm={algorithm}", max_steps=1, bf16=False))
    assert again["held_out"]["rules"]["first"] == pytest.approx(means[2])


def test_mathematics_by_math_verify():
    judge = MathConfig().open()
    tasks = [Task("p", "r", "sft", {"reference": reference}) for reference in ("\\frac{1}{2}", "$x^2+1$", "12")]
    verdicts = [
        [v.value for v in judge.judge(tasks, texts)] for texts in (["It is $0.5$.", "\\boxed{1+x^2}", "12"], ["2", "x", "So 13."])
    ]
    assert verdicts == [[1, 1, 1], [0, 0, 0]]
    with pytest.raises(ScoreError, match="judge math: no mathematical answer can be read"):
        judge.judge([Task("p", "r", "sft", {"reference": ""})], ["1"])


def test_evaluations_in_mixed_precision(policy, url, tmp_path):
    results = run(config(policy, url, tmp_path / "run", bf16=True, use_cpu=True, max_steps=2))
    assert [len(text.splitlines()) for text in evaluations(tmp_path / "run").values()] == [10, 10]
    assert results["held_out"]["rules"]["n_prompts"] == 5


def test_evaluations_change_nothing_in_the_training(policy, url, tmp_path):
    run(config(policy, url, tmp_path / "with"))
    run(config(policy, url, tmp_path / "without", evaluate=None))
    rows = [[row["reward"] for row in metrics(tmp_path / name) if "reward" in row] for name in ("with", "without")]
    one, two = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert rows[0] == rows[1] and all(torch.equal(one[name], two[name]) for name in one)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", ["step 3", "evaluation 2", "evaluation 4"])
def test_an_interrupted_run_continues_and_evaluates_nothing_twice(at, policy, url, tmp_path, monkeypatch):
    settings = {"save_steps": 2}
    run(config(policy, url, tmp_path / "whole", **settings))
    kind, number = at.split()

    def interrupt(row):
        if row["step"] == int(number) and (kind == "evaluation") == any(name.startswith("held_out/") for name in row):
            raise Killed

    with pytest.raises(Killed):
        run(config(policy, url, tmp_path / "parts", **settings), interrupt)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts/evaluation").iterdir()}
    seen = []
    run(config(policy, url, tmp_path / "parts", **settings), seen.append)
    assert evaluations(tmp_path / "parts") == evaluations(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    again = [row["step"] for row in seen if any(name.startswith("held_out/") for name in row)]
    assert again == {"step 3": [4], "evaluation 2": [4], "evaluation 4": []}[at]
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)


def limits(**quantities):
    return f"monitor={json.dumps({'window': 1, **quantities})}"


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_limit_stops_the_run_with_a_checkpoint_and_another_limit_lets_it_go_on(algorithm, policy, url, tmp_path, caplog):
    settings = config(policy, url, tmp_path / "whole", f"algorithm={algorithm}", beta=0.05)
    run(settings)
    wide = {name: {"min": -1e9, "max": 1e9, "action": "stop"} for name in ("reward", "kl", "length", "likeness", "group_std")}
    likeness = [row["polar/likeness"] for row in metrics(tmp_path / "whole") if "reward" in row]
    length = [row["completions/mean_length"] for row in metrics(tmp_path / "whole") if "reward" in row]
    assert len(likeness) == 4
    caplog.clear()

    def stopping(limit):
        monitor = limits(**{**wide, "length": limit})
        return config(policy, url, tmp_path / "parts", f"algorithm={algorithm}", monitor, beta=0.05)

    at = 2  # a limit that the second step passes first, from whichever side
    low, high = min(length[: at - 1]), max(length[: at - 1])
    limit = {"min": low, "max": high} if not low <= length[at - 1] <= high else {"max": length[at - 1] - 1e-6}
    stop_at = next(n for n, value in enumerate(length, 1) if not limit.get("min", -1) <= value <= limit["max"])
    results = run(stopping({**limit, "action": "stop"}))
    assert results["stopped"]["step"] == stop_at and results["stopped"]["quantity"] == "length"
    assert f"monitor: step {stop_at}: length" in caplog.text
    checkpoint = tmp_path / f"parts/checkpoint-{stop_at}"
    assert checkpoint.is_dir() and not (tmp_path / "parts/policy").exists()
    assert (tmp_path / f"parts/evaluation/step-{stop_at:06d}.jsonl").exists()
    # The same command stops at once, without a step more.
    again = run(stopping({**limit, "action": "stop"}))
    assert again["stopped"] == results["stopped"] and again["held_out"] == results["held_out"]
    assert len([row for row in metrics(tmp_path / "parts") if "reward" in row]) == stop_at
    assert "stopped" not in run(stopping({**limit, "action": "warn"}))
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_limit_of_what_is_not_measured_is_refused_before_the_training(policy, url, tmp_path):
    with pytest.raises(ConfigError, match=r"monitor.kl: TRL measures no KL divergence with trainer.beta 0"):
        run(config(policy, url, tmp_path / "run", limits(kl={"max": 1}), beta=0.0))


@pytest.mark.parametrize(("kind", "lora"), [("base", "lora={rank: 4}"), ("chat", "lora=null")])
def test_the_same_references_train_a_baseline_with_the_same_budget(kind, lora, policy, url, tmp_path, monkeypatch):
    seen = []
    options = [f"policy.kind={kind}", lora, "baseline={kind: sft, trainer: {learning_rate: 0.01}}"]
    results = run(config(policy, url, tmp_path / "run", *options), seen.append)
    sft = json.loads((tmp_path / "run/sft/run.json").read_text())
    assert (sft["steps"], sft["sequences"]) == (4, 4 * 8) and sft["passes"] == pytest.approx(32 / 6)
    assert sorted(path.name for path in (tmp_path / "run/sft/evaluation").iterdir()) == ["step-000002.jsonl", "step-000004.jsonl"]
    report = json.loads((tmp_path / "run/report.json").read_text())
    after, of_sft = (report["evaluations"][name][-1]["judges"]["rules"]["mean"] for name in ("rft", "sft"))
    found = results["baseline"]["difference"]["rules"]
    assert (found["first"], found["second"]) == (of_sft, after)
    assert found["sentence"].startswith(f"rules: {of_sft:.3f} sft, {after:.3f} rft")
    assert "sft had as many updates as rft (4) with as many sequences in each, 32 in all" in results["baseline"]["budget"]
    assert {row["step"] for row in seen if row.get("policy") == "sft" and "loss" in row} == {1, 2, 3, 4}
    base, one, two = (
        AutoModelForCausalLM.from_pretrained(f).state_dict()
        for f in (policy, tmp_path / "run/policy", tmp_path / "run/sft/policy")
    )
    for first, second in ((base, one), (base, two), (one, two)):
        assert not all(torch.equal(first[name], second[name]) for name in first)
    losses = [row["loss"] for row in seen if row.get("policy") == "sft" and "loss" in row]
    assert losses[-1] < losses[0]
    # Nothing is trained again by the same command, nor by one without the baseline.
    monkeypatch.setattr("trl.SFTTrainer.train", None)
    monkeypatch.setattr("trl.GRPOTrainer.train", None)
    assert run(config(policy, url, tmp_path / "run", *options))["baseline"] == results["baseline"]
    assert "baseline" not in run(config(policy, url, tmp_path / "run", *options[:2]))


def test_an_interrupted_baseline_continues(policy, url, tmp_path):
    settings = {"save_steps": 2}
    run(config(policy, url, tmp_path / "whole", "baseline=sft", **settings))

    def interrupt(row):
        if row.get("policy") == "sft" and row["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        run(config(policy, url, tmp_path / "parts", "baseline=sft", **settings), interrupt)
    run(config(policy, url, tmp_path / "parts", "baseline=sft", **settings))
    assert evaluations(tmp_path / "parts/sft") == evaluations(tmp_path / "whole/sft")
    one, two = weights(tmp_path / "whole/sft"), weights(tmp_path / "parts/sft")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{learning_rat: 1}", "baseline.trainer.learning_rat: not a key of SFTConfig .*did you mean 'learning_rate'"),
        ("{max_steps: 1}", "baseline.trainer.max_steps: the budget is that of the run"),
    ],
)
def test_mistakes_in_the_baseline_are_told_before_the_training(keys, message, policy, url, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(config(policy, url, tmp_path / "run", f"baseline={{kind: sft, trainer: {keys}}}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("evaluate", [EVALUATE, None])
def test_the_report_shows_the_run(evaluate, policy, url, tmp_path):
    monitor = limits(length={"max": 0.5}, likeness={"max": 1e-9})
    run(config(policy, url, tmp_path / "run", monitor, evaluate=evaluate, beta=0.05))
    report, page = json.loads((tmp_path / "run/report.json").read_text()), (tmp_path / "run/report.html").read_text()
    rows = [row for row in metrics(tmp_path / "run") if "reward" in row]
    assert [row["reward"] for row in report["curves"]] == [row["reward"] for row in rows]
    assert set(report["curves"][0]) == {"step", "reward", "kl", "length", "repetition", "likeness", "group_std"}
    assert report["events"][0]["quantity"] == "length" and report["sentences"] and "<svg" in page
    if evaluate:
        assert [row["step"] for row in report["evaluations"]["rft"]] == [0, 2, 4]
        order = [example["difference"] for example in report["examples"]]
        assert order == sorted(order) and len(order) == 5
        assert "Texts before and after" in page and report["examples"][0]["reference"] in page
    else:
        assert "Nothing but the reward model judged the policy" in page


def launched(settings, *overrides):
    """The command in two processes on this machine's CPU."""
    file = settings.output.parent / "config.yaml"
    file.write_text(to_yaml(settings))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "polar_rm"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, "rft", str(file), *overrides], capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_two_processes_train_one_policy_and_stop_together(policy, url, tmp_path):
    settings = config(
        policy, url, tmp_path / "run", "baseline=sft", use_cpu=True, ddp_backend="gloo", per_device_train_batch_size=4
    )
    code, shown = launched(settings)
    assert code == 0, shown
    sft = json.loads((tmp_path / "run/sft/run.json").read_text())
    assert (sft["steps"], sft["sequences"]) == (4, 4 * 8)
    assert [row["step"] for row in metrics(tmp_path / "run") if "reward" in row] == [1, 2, 3, 4]
    assert list(evaluations(tmp_path / "run")) == ["step-000000.jsonl", "step-000002.jsonl", "step-000004.jsonl"]
    code, shown = launched(settings, f"output={tmp_path}/stopped", "monitor={window: 2, length: {max: 0.1, action: stop}}")
    assert code == 1 and "stopped: step 2: length" in shown and (tmp_path / "stopped/checkpoint-2").is_dir(), shown
    assert not (tmp_path / "stopped/policy").exists() and not (tmp_path / "stopped/sft").exists()


def test_the_notebook_runs_to_its_end(tmp_path):
    """All cells of docs/notebooks/3_tune_a_policy.ipynb, with tiny models; `make test` runs those before the training."""
    tiny.reward_model(tmp_path / "lm", settings=tiny.EncoderSettings(max_length=300, max_response_length=80)).save(
        tmp_path / "model"
    )
    write(tmp_path / "rows.jsonl", [f"{first} {second}" for first in WORDS for second in WORDS])
    values = {"MODEL": "model", "POLICY": "lm", "DATA": "rows.jsonl", "OUTPUT": "run", "TRAINER": SHORT}
    printed = notebooks.run(next(path for path in notebooks.NOTEBOOKS if "policy" in path.name), tmp_path, values)
    assert "report.html" in printed and "* " in printed
    assert (tmp_path / "run/report.html").is_file()

"""`polar scaling run`: tiny grids that are trained, killed, resumed, shared and refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
from support import runs, scaling, tiny
from support.owners import owned_elsewhere

from polar_rm.common.config import to_yaml
from polar_rm.common.progress import plain_console
from polar_rm.errors import NonFinite, PolarError
from polar_rm.records import read_comparisons
from polar_rm.scaling import evaluate, runner
from polar_rm.scaling.config import ScalingConfig
from polar_rm.scaling.plan import plan_grid
from polar_rm.scaling.results import read_losses, read_result
from polar_rm.scaling.runner import is_in, run_grid, why_diverged
from polar_rm.scaling.state import open_grid, stored_grid
from polar_rm.training.trainer import train

TUNED = {"base": 0.01, "exponent": 0.0, "tune": "smallest"}
OFF = {"base": 0.01, "exponent": 0.0, "tune": "off"}


def config(folder, **changes):
    """Two sizes and two budgets of three and six steps."""
    if not (folder / "lm").exists():
        tiny.causal_lm(folder / "lm")
        (folder / "corpus").mkdir()
        for seed, (split, count) in enumerate({"train": 60, "seen": 8, "other": 8}.items()):
            runs.comparisons(folder / f"corpus/{split}.jsonl", count, seed=seed)
    training = {
        "model": {"tokenizer": str(folder / "lm"), "encoder": {"max_length": 256, "max_response_length": 64}},
        "batch_size": 8,
        "row_tokens": 400,
        "checkpoint_every": 1,
        "precision": "fp32",
        "log": {"tensorboard": False},
    }
    values = {"sizes": ["1x32", "2x32"], "budgets": {"tokens": [2300, 4600]}, "learning_rates": OFF, "training": training}
    base = scaling.config(folder).model_dump(mode="json")
    return ScalingConfig.model_validate(base | values | changes)


def outcome(output):
    """What results say but for the time and the machine."""
    found = {}
    for folder in sorted((output / "runs").glob("[!.]*")):
        values = asdict(read_result(folder))
        losses = {split: read_losses(folder, split).losses.tolist() for split in values["evaluation"]}
        found[folder.name] = {key: value for key, value in values.items() if key not in ("seconds", "origin")} | losses
    return found


@pytest.mark.slow
def test_a_killed_grid_ends_with_the_results_of_an_uninterrupted_one(tmp_path):
    settings = config(tmp_path)
    state = run_grid(settings)
    assert state.statuses == ["finished"] * 4 and state.describe() == "4 runs: 4 finished"
    assert run_grid(settings).now == []  # everything is there

    killed = settings.model_copy(update={"output": tmp_path / "killed"})
    file = tmp_path / "killed.yaml"
    file.write_text(to_yaml(killed))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(runs.polar("scaling", "run", file), env=environment, stderr=subprocess.PIPE, text=True)
    while not list(killed.output.glob("runs/*-4600-*/checkpoints/step-0000000[2-5]")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = [path.parent.name for path in killed.output.glob("runs/*/result.json")]
    assert 2 <= len(finished) < 4
    run_grid(killed, part=(2, 2))  # in any order
    assert run_grid(killed).statuses == ["finished"] * 4
    assert outcome(killed.output) == outcome(settings.output)


@pytest.mark.slow
def test_a_result_holds_what_the_trainer_says(tmp_path):
    settings = config(tmp_path, keep="all", sizes=["2x32"], budgets={"tokens": [4600]})
    [name] = run_grid(settings).now
    folder = settings.output / "runs" / name
    found = read_result(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert (found.steps, found.epochs) == (len(lines), pytest.approx(8 * len(lines) / 60))
    assert found.tokens == sum(line["tokens"] for line in lines)
    assert found.flops == pytest.approx(sum(line["flops"] for line in lines))
    assert found.train_loss == lines[-1]["loss"] and found.diverged is None
    grid = stored_grid(settings)
    [planned] = grid.runs(grid.results())
    assert planned.flops == pytest.approx(found.flops, rel=0.1) and planned.tokens == pytest.approx(found.tokens, rel=0.1)
    assert not (folder / "data").exists() and list((settings.output / "data").glob("*/shards/*.arrow"))
    # The trainer's own evaluation of the same steps.
    results = train(
        runner._training(grid, planned).model_copy(
            update={"output": tmp_path / "again", "data": _with_eval(runner._training(grid, planned).data, tmp_path)}
        )
    )
    losses = read_losses(folder, "seen")
    assert losses.mean == pytest.approx(results["eval"]["loss"], rel=1e-4)
    assert losses.accuracy == pytest.approx(results["eval"]["accuracy"])
    assert losses.pairs.tolist() == [len(each.pairs()) for each in read_comparisons(tmp_path / "corpus/seen.jsonl")]
    assert found.evaluation["seen"]["loss"] == losses.mean and found.evaluation["seen"]["prompts"] == 8
    # The plan knows the speed now.
    [plan] = plan_grid(settings)
    assert plan.status == "finished" and plan.seconds == pytest.approx(planned.flops / (found.flops / found.seconds))


def _with_eval(data, folder):
    return data.model_copy(update={"eval": [folder / "corpus/seen.jsonl"], "cache": None})


@pytest.mark.parametrize(("keep", "left"), [("all", {"checkpoints", "model"}), ("model", {"model"}), ("result", set())])
def test_what_stays_of_a_run_is_as_asked(tmp_path, monkeypatch, keep, left):
    settings = config(tmp_path, keep=keep, sizes=["1x32"], budgets={"tokens": [800]})

    def fails(config, **_):
        for name in ("checkpoints", "model"):
            (config.output / name).mkdir(parents=True)
        raise NonFinite("step 2")

    monkeypatch.setattr(runner, "train", fails)
    [name] = run_grid(settings).now
    assert {each.name for each in (settings.output / "runs" / name).iterdir() if each.is_dir()} == left


def _open(settings):
    return open_grid(settings, plain_console(stderr=True))


def invented(settings, lowest, busy=()):
    """``perform`` that writes a result in place of training. lowest: size -> learning rate of the lowest loss. busy: runs that it
    performs as always."""
    perform = runner.perform

    def invent(grid, run, console):
        if run.name in busy:
            return perform(grid, run, console)
        points = scaling.points([scaling.result("1m", 5)], [0.4 + 0.1 * math.log(run.lr / lowest[run.size.name]) ** 2], prompts=3)
        made = replace(scaling.result("1m", 5), name=run.name, size=run.size.name, budget=run.budget, lr=run.lr)
        scaling.write_run(settings, made, {split: scaling.losses_of(points, 0) for split in settings.eval_splits})
        return read_result(grid.folder(run))

    return invent


def test_a_run_that_another_process_works_on_is_skipped_and_told(tmp_path, monkeypatch, capsys):
    settings = config(tmp_path)
    monkeypatch.setattr(runner, "train", lambda config, **_: pytest.fail("trained"))
    names = [run.name for run in _open(settings).runs({})]
    monkeypatch.setattr(runner, "perform", invented(settings, {"1x32": 0.01, "2x32": 0.01}, busy=names[:1]))
    with owned_elsewhere(settings.output / "runs" / names[0], "scaling run"):
        state = run_grid(settings)
    assert state.now == names[1:]
    assert f"skipped: {settings.output}/runs/{names[0]}: in use by polar scaling run on" in capsys.readouterr().err
    assert state.statuses == ["in use", *["finished"] * 3]


def test_the_grid_waits_for_learning_rates_and_takes_the_picked_ones(tmp_path, monkeypatch):
    """The losses of every size are a parabola; the second one's lowest point is a rate that was tried, whose run is a point."""
    settings = config(tmp_path, learning_rates=TUNED)
    monkeypatch.setattr(runner, "perform", invented(settings, {"1x32": 0.013, "2x32": 0.01}))
    first = run_grid(settings, part=(1, 2))
    assert first.now == [f"{name}-seed0" for name in ("1x32-2300-lr0.005", "1x32-2300-lr0.02", "2x32-2300-lr0.01")]
    assert first.statuses == ["finished", "to do", "finished", "to do", "finished", "to do", *["waiting"] * 4]
    assert run_grid(settings, max_runs=1).now == ["1x32-2300-lr0.01-seed0"]
    second = run_grid(settings)
    assert second.statuses == ["finished"] * 10
    rates = {run.name for run in second.runs if run.purpose == "grid"}
    assert rates == {
        f"{name}-seed0" for name in ("1x32-2300-lr0.013", "1x32-4600-lr0.013", "2x32-2300-lr0.01", "2x32-4600-lr0.01")
    }
    assert second.now == [
        f"{name}-seed0"
        for name in ("2x32-2300-lr0.005", "2x32-2300-lr0.02", "1x32-2300-lr0.013", "1x32-4600-lr0.013", "2x32-4600-lr0.01")
    ]
    assert second.to_json()["runs"][-1] == {"name": "2x32-4600-lr0.01-seed0", "purpose": "grid", "status": "finished"}


def test_a_loss_that_is_not_finite_is_kept_and_told(tmp_path, monkeypatch, capsys):
    settings = config(tmp_path, sizes=["1x32"], learning_rates=TUNED)

    def fails(config, **_):
        raise NonFinite("step 2: the loss is nan on corpus: comparison 7")

    monkeypatch.setattr(runner, "train", fails)
    state = run_grid(settings)
    assert state.statuses == ["diverged"] * 3 + ["no learning rate"] * 2
    assert "diverged: step 2: the loss is nan on corpus: comparison 7" in capsys.readouterr().err
    found = read_result(settings.output / "runs" / state.now[0])
    assert found.diverged.startswith("step 2") and found.evaluation == {} and found.train_loss is None


def test_a_loss_above_chance_by_a_margin_counts_as_diverged():
    chance = math.log(2)
    assert why_diverged(chance, {"seen": {"loss": chance + 0.049}}, 0.05) is None
    assert "the loss of seen at the end is 0.7441, above ln 2" in why_diverged(0.5, {"seen": {"loss": chance + 0.051}}, 0.05)
    assert "the loss of training at the end" in why_diverged(chance + 0.06, {"seen": {"loss": 0.5}}, 0.05)
    assert why_diverged(None, {}, 0.05) and why_diverged(math.nan, {}, 0.05)


def test_shares_are_a_partition(tmp_path):
    grid_runs = _open(config(tmp_path, seeds=[0, 1, 2])).runs({})
    shares = [[run.number for run in grid_runs if is_in((index, 5), run)] for index in range(1, 6)]
    assert sorted(sum(shares, [])) == list(range(12)) and max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_output_belongs_to_its_settings_and_data(tmp_path, monkeypatch):
    settings = config(tmp_path)
    _open(settings)
    more = settings.model_copy(update={"sizes": ["1x32", "2x32", "3x32"], "seeds": [0, 1]})
    assert len(_open(more).sizes) == 3  # a grid may grow
    assert [size.name for size in stored_grid(settings).sizes] == ["1x32", "2x32"]
    other = settings.model_copy(update={"training": settings.training | {"batch_size": 16}})
    with pytest.raises(PolarError, match=r"other settings \(training.batch_size: 8 there, 16 now\)"):
        _open(other)
    elsewhere = settings.training | {"row_tokens": 999, "device": "cpu", "checkpoint_every": 7}
    _open(settings.model_copy(update={"training": elsewhere}))  # changes no result
    runs.comparisons(tmp_path / "corpus/other.jsonl", 9, seed=5)
    with pytest.raises(PolarError, match=r"splits.other: "):
        _open(settings)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PolarError, match="instead of torchrun"):
        run_grid(settings)


def test_losses_are_means_over_pairs_of_the_first_comparisons(tmp_path, monkeypatch):
    settings = config(tmp_path, eval_limit=5, eval_splits=["seen"])
    path = tmp_path / "corpus/seen.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    class Scores:
        def score_comparisons(self, comparisons):
            return ([float(index) for index in range(len(each.candidates))] for each in comparisons)

    training = runner._training(_open(settings), _open(settings).runs({})[0])
    losses = evaluate._evaluate(settings, training, Scores(), "seen", lambda *_: None)
    assert losses.comparisons.tolist() == list(range(5))
    expected = [np.mean([math.log1p(math.exp(worse)) for worse in range(1, len(rows[i]["ranks"]))]) for i in range(5)]
    assert losses.losses == pytest.approx(expected)
    assert losses.accuracy == 0

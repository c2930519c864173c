"""A run that is interrupted and resumed equals the uninterrupted run (OpenRLHF 1067, prime-rl 745)."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time

import pytest
import torch
from support import runs

from polar_rm.common.config import load_config
from polar_rm.errors import ConfigError
from polar_rm.training import resume
from polar_rm.training.config import TrainConfig
from polar_rm.training.signals import StopRequested
from polar_rm.training.trainer import Trainer, train


@pytest.fixture
def uninterrupted(tmp_path):
    result = runs.run("pretrain", runs.config(tmp_path), f"output={tmp_path / 'uninterrupted'}")
    assert result.returncode == 0, result.stderr
    return tmp_path / "uninterrupted"


def losses(output):
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_run_ends_with_the_same_weights(tmp_path, uninterrupted, signal_number):
    config = runs.config(tmp_path)
    process = subprocess.Popen(runs.polar("pretrain", config, "checkpoint_every=1"), stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "run/checkpoints").glob("step-0000000[3-9]")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal_number)
    error = process.communicate()[1]
    assert process.returncode != 0
    assert not (tmp_path / "run/model").exists()
    if signal_number == signal.SIGTERM:
        assert "the same command continues" in error
    resumed = runs.run("pretrain", config, "checkpoint_every=1")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming" in resumed.stderr
    assert losses(tmp_path / "run") == losses(uninterrupted)
    expected = runs.final_weights(uninterrupted)
    for name, tensor in runs.final_weights(tmp_path / "run").items():
        assert torch.equal(tensor, expected[name]), name


def test_a_stop_in_the_last_step_finishes_the_run_and_reaches_the_caller(tmp_path, monkeypatch):
    optimize = Trainer.optimize

    def interrupted(trainer, indices):
        signal.raise_signal(signal.SIGTERM)
        return optimize(trainer, indices)

    monkeypatch.setattr(Trainer, "optimize", interrupted)
    config = load_config(TrainConfig, [runs.config(tmp_path, max_steps=1)])
    with pytest.raises(StopRequested, match="is finished"):
        train(config)
    assert runs.final_weights(tmp_path / "run")


@pytest.mark.slow
def test_other_settings_are_refused_and_partial_checkpoints_ignored(tmp_path):
    config = runs.config(tmp_path, max_steps=4)
    assert runs.run("pretrain", config, "checkpoint_every=2").returncode == 0
    checkpoints = tmp_path / "run/checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-00000002", "step-00000004"]
    changed = runs.run("pretrain", config, "optim.lr=1e-5")
    assert changed.returncode == 2
    assert "started with other settings (optim.lr: 0.003 there, 1e-05 now); use the old ones" in changed.stderr
    assert "Traceback" not in changed.stderr
    # A kill in the middle of a save leaves a folder with the temporary name, or one without its last file.
    shutil.copytree(checkpoints / "step-00000002", checkpoints / ".step-00000006.partial")
    shutil.copytree(checkpoints / "step-00000002", checkpoints / "step-00000008")
    (checkpoints / "step-00000008/meta.json").unlink()
    (tmp_path / "run/model/model.safetensors").unlink()
    again = runs.run("pretrain", config)
    assert again.returncode == 0, again.stderr
    assert "after step 4" in again.stderr
    assert runs.final_weights(tmp_path / "run")


def test_of_a_finished_run_the_same_command_changes_nothing(tmp_path, capsys):
    """The model may have got a calibration, and files of the user."""
    config = load_config(TrainConfig, [runs.config(tmp_path, max_steps=1)])
    train(config)
    model = tmp_path / "run/model"
    (model / "calibration.json").write_text("{}")
    (model / "README.md").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if "data" not in path.parts}
    results = train(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if "data" not in path.parts} == before
    assert results == json.loads((tmp_path / "run/run.json").read_text())["results"]
    assert "all 1 steps are done and the model is saved; nothing is changed" in capsys.readouterr().err
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1])
    train(config)
    assert (model / "model.safetensors").read_bytes() == weights


def test_a_run_with_the_order_of_an_earlier_version_is_refused(tmp_path, monkeypatch):
    """It would see some comparisons twice in an epoch and others never."""
    config = load_config(TrainConfig, [runs.config(tmp_path, max_steps=1)])
    train(config)
    shutil.rmtree(tmp_path / "run/model")
    monkeypatch.setattr(resume, "ORDER", "another")
    with pytest.raises(
        ConfigError,
        match=r"step-00000001: this run was started with other settings \(data_order: .* there, \"another\" now\); use",
    ):
        train(config)

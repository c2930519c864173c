"""Damage by a crash of the machine is reported, and the run continues from undamaged files (F6, H11)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from support import runs
from support.full_disks import InterruptedFile, full_after

from polar_rm.common import files
from polar_rm.common.config import load_config
from polar_rm.errors import MachineFailure, PolarError
from polar_rm.training import metrics, state
from polar_rm.training.config import TrainConfig
from polar_rm.training.parallel import World
from polar_rm.training.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three steps with a checkpoint after each of the last two."""
    folder = tmp_path_factory.mktemp("run")
    built = trainer(folder)
    for step in (1, 2, 3):
        built.optimize(list(range(8 * step, 8 * step + 8)))
        built.step, built.results, built.last_line = step, {"steps": step}, {"step": step, "loss": step / 10}
        if step > 1:
            built.save()
    return folder, built


def trainer(folder):
    config = load_config(TrainConfig, [runs.config(folder, keep_checkpoints=10)])
    built = Trainer(config, World(0, 1, torch.device("cpu")))
    built.model.train()
    return built


def damage(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    return {
        "emptied": b"",
        "truncated": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :],
    }[how]


@pytest.mark.parametrize("how", ["removed", "emptied", "truncated", "flipped"])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "meta.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run, tmp_path, name, how):
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(run[0] / "run/checkpoints", checkpoints)
    damaged = checkpoints / "step-00000003" / name
    if how == "removed":
        damaged.unlink()
    else:
        damaged.write_bytes(damage(damaged.read_bytes(), how))
    reported = []
    path, meta = state.find_newest(checkpoints, reported.append)
    assert (path.name, meta["step"]) == ("step-00000002", 2)
    [message] = reported
    assert message.startswith(str(damaged)) and "renamed to damaged-step-00000003" in message
    assert sorted(each.name for each in checkpoints.iterdir()) == ["damaged-step-00000003", "step-00000002"]
    assert state.find_newest(checkpoints, reported.append)[0] == path and len(reported) == 1
    shutil.rmtree(path)
    assert state.find_newest(checkpoints, reported.append) is None


def test_a_checkpoint_of_a_step_that_was_damaged_before_is_renamed_too(run, tmp_path):
    for _ in range(2):
        shutil.copytree(run[0] / "run/checkpoints", tmp_path / "checkpoints", dirs_exist_ok=True)
        (tmp_path / "checkpoints/step-00000003/meta.json").unlink()
        assert state.find_newest(tmp_path / "checkpoints", lambda message: None)[0].name == "step-00000002"


def test_resumed_weights_moments_and_results_equal_the_saved_ones(run):
    folder, built = run
    again = trainer(folder)
    again._resume()
    assert (again.step, again.results, again.last_line) == (3, {"steps": 3}, {"step": 3, "loss": 0.3})
    for name, tensor in built.weights.named.items():
        assert torch.equal(again.weights.named[name], tensor)
        for key, value in built.optimizer.state[tensor].items():
            assert torch.equal(torch.as_tensor(again.optimizer.state[again.weights.named[name]][key]), torch.as_tensor(value))


def test_a_checkpoint_that_torch_cannot_read_is_reported_in_one_line(run, monkeypatch):
    folder, built = run

    def broken(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(state.dcp, "load", broken)
    with pytest.raises(PolarError, match="step-00000003: torch can't read this checkpoint .AssertionError.; move it away"):
        state.load(folder / "run/checkpoints/step-00000003", 3, built.weights, built.optimizer, built.world)


def test_files_and_folders_are_synced_before_and_after_the_rename(run, tmp_path, monkeypatch):
    """After a power cut a checkpoint with its final name must have its content."""
    _, built = run
    events = []
    rename = Path.rename

    def renamed(self, target):
        events.append(f"{self.name} -> {Path(target).name}")
        return rename(self, target)

    monkeypatch.setattr(files.os, "fsync", lambda fd: events.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name))
    monkeypatch.setattr(Path, "rename", renamed)
    state.save(tmp_path, 7, built.weights, built.optimizer, {}, built.world, 2)
    at = events.index(".step-00000007.partial -> step-00000007")
    synced = {name.rsplit(".", 2)[0].lstrip(".") if name.startswith(".meta.json") else name for name in events[:at]}
    assert synced >= {"__0_0.distcp", ".metadata", "meta.json", ".step-00000007.partial"}
    assert events[at + 1] == tmp_path.name


def test_a_full_disk_leaves_no_partial_checkpoint(run, tmp_path, monkeypatch):
    """sta-3: files written before the disk was full are removed."""
    _, built = run

    def full(state, checkpoint_id, **options):
        checkpoint_id.mkdir(parents=True)
        (checkpoint_id / "__0_0.distcp").write_bytes(b"1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.dcp, "save", full)
    with pytest.raises(PolarError, match=r"step-00000009: checkpoint could not be saved: .*No space left on device"):
        state.save(tmp_path, 9, built.weights, built.optimizer, {}, built.world, 2)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_is_not_taken_for_a_full_disk(run, tmp_path, monkeypatch):
    """F13. torch raises an error of its own in place of the interrupt."""
    _, built = run
    monkeypatch.setattr(Path, "open", lambda path, mode: InterruptedFile(path, mode))
    with pytest.raises(KeyboardInterrupt):
        state.save(tmp_path, 9, built.weights, built.optimizer, {}, built.world, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_torchs_writer_is_one_clear_error(run, tmp_path):
    """F13: not taken for an interrupt, either."""
    _, built = run
    with full_after(10_000), pytest.raises(PolarError, match=r"step-00000009: checkpoint could not be saved: .* MiB are free"):
        state.save(tmp_path, 9, built.weights, built.optimizer, {}, built.world, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_log_on_a_full_disk_is_named_and_repaired_by_the_next_run(tmp_path):
    """F13."""
    path = tmp_path / "metrics.jsonl"
    sink = metrics.JsonlSink(path, 0)
    sink.write(1, {"loss": 1.0})
    with (
        full_after(path.stat().st_size + 5),
        pytest.raises(MachineFailure, match=r"metrics.jsonl: could not be written: .*File too large.* and the same command"),
    ):
        sink.write(2, {"loss": 2.0})
    assert path.read_text().startswith('{"step": 1, "loss": 1.0}\n{"st')
    assert open_log(path, 1) == []
    assert steps(path) == [{"step": 1, "loss": 1.0}]


def log(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))


def steps(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def open_log(path, first_step, last=None):
    reported = []
    metrics.JsonlSink(path, first_step, last, reported.append).close()
    return reported


def test_damaged_lines_of_the_log_are_reported_and_the_last_comes_from_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, {"step": 1, "loss": 1}, b"\0\0\0\n", {"step": 3, "loss": 3}, b'{"step": 4, "lo')
    [message] = open_log(path, 4, {"step": 4, "loss": 4})
    assert message.endswith("metrics.jsonl: damaged lines: 2; steps without a line: 2; the file was repaired")
    assert steps(path) == [{"step": 1, "loss": 1}, {"step": 3, "loss": 3}, {"step": 4, "loss": 4}]
    assert open_log(path, 4) == [message.replace("lines: 2", "lines: none")]  # the line of step 2 stays missing


@pytest.mark.parametrize("line", [b"5\n", b'{"loss": 1}\n', b'{"step": "1"}\n', b"\xff\n", b"\n", b"[" * 100_000 + b"\n"])
def test_any_other_line_is_damaged(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    log(path, {"step": 1}, line, {"step": 2})
    [message] = open_log(path, 2)
    assert "damaged lines: 2; steps without a line: none" in message
    assert steps(path) == [{"step": 1}, {"step": 2}]


def test_an_unfinished_last_line_is_not_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(path, {"step": 1}, {"step": 2}, {"step": 3}, b'{"step": 4')
    assert open_log(path, 2) == []
    assert steps(path) == [{"step": 1}, {"step": 2}]


def test_a_missing_log_is_reported(tmp_path):
    [message] = open_log(tmp_path / "run/metrics.jsonl", 2, {"step": 2})
    assert "steps without a line: 1;" in message
    assert steps(tmp_path / "run/metrics.jsonl") == [{"step": 2}]


def test_a_kill_while_the_log_is_rewritten_leaves_the_old_one(tmp_path, monkeypatch):
    """B24."""
    path = tmp_path / "metrics.jsonl"
    log(path, {"step": 1}, {"step": 2})

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        open_log(path, 1)
    assert steps(path) == [{"step": 1}, {"step": 2}]

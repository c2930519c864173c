"""Two ranks and one rank: the same gradients, the same checkpoints (gloo on a CPU)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import runs

SCRIPT = Path(__file__).parents[1] / "support/gradients.py"


def gradients(folder: Path, ranks: int, *overrides: str) -> dict:
    target = folder / f"gradients-{ranks}.pt"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [
        sys.executable,
        *launcher,
        str(SCRIPT),
        str(runs.config(folder, **runs.with_scores(folder))),
        str(target),
        *overrides,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(target, weights_only=True)


@pytest.mark.slow
def test_two_ranks_and_one_give_the_same_gradients(tmp_path):
    one, two = gradients(tmp_path, 1), gradients(tmp_path, 2, "row_tokens=150")
    assert one["values"]["pairs"] == two["values"]["pairs"]
    for name, expected in one["gradients"].items():
        assert (two["gradients"][name] - expected).norm() / expected.norm() < 1e-5, name


@pytest.mark.slow
def test_two_ranks_add_up_bfloat16_gradients_in_float32(tmp_path):
    """The same rows on one rank and on two: what differs is where they are added up. In bfloat16 that would show at 1e-3."""
    options = ("precision=bf16", "row_tokens=60")
    one, two = gradients(tmp_path, 1, *options), gradients(tmp_path, 2, *options)
    for name, expected in one["gradients"].items():
        assert (two["gradients"][name].float() - expected).norm() / expected.norm() < 1e-5, name


@pytest.mark.slow
def test_checkpoint_of_two_ranks_resumes_on_one(tmp_path):
    config = runs.config(tmp_path)
    whole = runs.run("pretrain", config, f"output={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    # The schedule is laid out for all steps, so the first part is stopped by its checkpoint, not by max_steps.
    part = runs.run("pretrain", config, "checkpoint_every=4", "keep_checkpoints=10", ranks=2)
    assert part.returncode == 0, part.stderr
    for folder in (tmp_path / "run/checkpoints").glob("step-*"):
        if folder.name != "step-00000004":
            shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "run/model")
    resumed = runs.run("pretrain", config)
    assert resumed.returncode == 0, resumed.stderr
    assert "behind step 4" in resumed.stderr
    expected = runs.final_weights(tmp_path / "whole")
    for name, tensor in runs.final_weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)

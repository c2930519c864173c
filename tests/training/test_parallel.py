"""Two ranks and one rank: the same gradients, the same checkpoints (gloo on a CPU)."""

from __future__ import annotations

import os
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
    environment = os.environ | {"COMPILE_BACKEND": "aot_eager"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return torch.load(target, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["compile=true"], ["compile=true", "activation_checkpointing=true", "lora.rank=4"]])
def test_two_ranks_and_one_give_the_same_gradients(tmp_path, options):
    lora = [option for option in options if option.startswith("lora")]
    if lora:
        pytest.importorskip("peft")
    one, two = gradients(tmp_path, 1, *lora), gradients(tmp_path, 2, "row_tokens=150", *options)
    assert one["values"]["pairs"] == two["values"]["pairs"]
    found = {
        name: gradient for name, gradient in one["gradients"].items() if gradient.any()
    }  # not of adapters that begin as zero
    assert len(found) > 5
    for name, expected in found.items():
        assert (two["gradients"][name] - expected).norm() / expected.norm() < 1e-5, name


@pytest.mark.slow
def test_two_ranks_add_up_bfloat16_gradients_in_float32(tmp_path):
    """The same rows on one rank and on two: what differs is where they are added up. In bfloat16 that would show at 1e-3."""
    options = ("precision=bf16", "row_tokens=60")
    one, two = gradients(tmp_path, 1, *options), gradients(tmp_path, 2, *options)
    for name, expected in one["gradients"].items():
        assert (two["gradients"][name].float() - expected).norm() / expected.norm() < 1e-5, name


@pytest.mark.slow
def test_a_loss_of_one_rank_that_is_not_finite_ends_both_with_its_rows_named(tmp_path):
    """A rank that raised alone would leave the other in a collective until its timeout of many minutes."""
    script = SCRIPT.with_name("not_finite.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    config = runs.config(tmp_path, **runs.with_scores(tmp_path))
    done = subprocess.run([*command, str(config), str(tmp_path / "said")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [(tmp_path / f"said-{rank}").read_text().split("\n") for rank in (0, 1)]
    assert said[0] == said[1]
    message, rows = said[0]
    assert rows  # those of rank 1
    assert message == f"step 1: the loss is nan on {rows}"


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

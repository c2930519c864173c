"""Two ranks and one rank have the same gradients and the same checkpoints (gloo on a CPU)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support import runs
from support.gradients import write_error, write_gradients
from support.ranks import on_ranks


def gradients(folder: Path, ranks: int, *overrides: str, backend: str = "eager") -> dict:
    config, target = runs.config(folder, **runs.with_scores(folder)), folder / f"gradients-{ranks}.pt"
    if ranks == 1:
        write_gradients(config, target, list(overrides))
    else:
        on_ranks(ranks, write_gradients, config, target, list(overrides), backend)
    return torch.load(target, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "backend"),
    [
        ([], "eager"),
        (["row_tokens=40"], "eager"),  # nearly every comparison is split over its candidates
        (["compile=true", "row_tokens=250"], "aot_eager"),  # long rows: those of one score are further graphs
        (["compile=true", "row_tokens=250", "activation_checkpointing=true", "lora.rank=4"], "eager"),
    ],
)
def test_two_ranks_and_one_give_the_same_gradients(tmp_path, options, backend):
    lora = [option for option in options if option.startswith("lora")]
    if lora:
        pytest.importorskip("peft")
    one, two = gradients(tmp_path, 1, *lora), gradients(tmp_path, 2, "row_tokens=150", *options, backend=backend)
    for name in ("pairs", "tokens", "flops"):
        assert one["values"][name] == two["values"][name], name
    # Adapters that are initialised with zeros make the gradients of others zero.
    nonzero = {name: gradient for name, gradient in one["gradients"].items() if gradient.any()}
    assert len(nonzero) > 5
    for name, expected in nonzero.items():
        assert (two["gradients"][name] - expected).norm() / expected.norm() < 1e-5, name
    states = [json.loads((tmp_path / f"gradients-2.state-{rank}").read_text()) for rank in (0, 1)]
    assert states == [json.loads((tmp_path / "gradients-1.state-0").read_text()), {}]  # B10, F16: rank 1 keeps nothing
    assert len(states[0]) > 20


@pytest.mark.slow
def test_two_copies_on_two_ranks_each_give_the_gradients_of_one_rank(tmp_path):
    """HSDP: a gradient is summed within a copy and over the copies. A checkpoint of it resumes anywhere."""
    one, four = gradients(tmp_path, 1), gradients(tmp_path, 4, "row_tokens=60", "shard_ranks=2")
    assert one["values"]["tokens"] == four["values"]["tokens"]
    for name, expected in one["gradients"].items():
        assert (four["gradients"][name] - expected).norm() / expected.norm() < 1e-5, name
    shapes = [json.loads((tmp_path / f"gradients-4.state-{rank}").read_text()) for rank in range(4)]
    assert shapes == [json.loads((tmp_path / "gradients-1.state-0").read_text()), {}, {}, {}]
    assert json.loads((tmp_path / "gradients-4.shards").read_text()) == [2, 2]


@pytest.mark.slow
def test_two_ranks_sum_bfloat16_gradients_in_float32(tmp_path):
    """The same rows on one rank and on two ranks: only the summation differs. A sum in bfloat16 would be off by 1e-3."""
    options = ("precision=bf16", "row_tokens=60")
    one, two = gradients(tmp_path, 1, *options), gradients(tmp_path, 2, *options)
    for name, expected in one["gradients"].items():
        assert (two["gradients"][name].float() - expected).norm() / expected.norm() < 1e-5, name


@pytest.mark.slow
def test_a_loss_of_one_rank_that_is_not_finite_ends_both_and_names_its_rows(tmp_path):
    """If one rank raised alone, the other would wait in a collective until its timeout of many minutes."""
    on_ranks(2, write_error, runs.config(tmp_path, **runs.with_scores(tmp_path)), tmp_path / "error")
    errors = [(tmp_path / f"error-{rank}").read_text().split("\n") for rank in (0, 1)]
    assert errors[0] == errors[1]
    message, rows = errors[0]
    assert rows  # the rows of rank 1
    assert message == f"step 1: the loss is nan on {rows}"


@pytest.mark.slow
def test_checkpoint_of_two_ranks_resumes_on_one(tmp_path):
    config = runs.config(tmp_path)
    uninterrupted = runs.run("pretrain", config, f"output={tmp_path / 'uninterrupted'}")
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    # max_steps would change the learning rate schedule, so the run is interrupted by deleting its later checkpoints.
    two_ranks = runs.run("pretrain", config, "checkpoint_every=4", "keep_checkpoints=10", ranks=2)
    assert two_ranks.returncode == 0, two_ranks.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["optimizer"] == {"name": "AdamW", "fused": True}
    for folder in (tmp_path / "run/checkpoints").glob("step-*"):
        if folder.name != "step-00000004":
            shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "run/model")
    resumed = runs.run("pretrain", config)
    assert resumed.returncode == 0, resumed.stderr
    assert "after step 4" in resumed.stderr
    expected = runs.final_weights(tmp_path / "uninterrupted")
    for name, tensor in runs.final_weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)

"""The plan for several GPUs, against measured runs and against sums by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import runs
from support.commands import in_process

from polar_rm.attention.layout import TreeSpan
from polar_rm.errors import ConfigError
from polar_rm.model.presets import preset_config
from polar_rm.training.cluster import Work, mean_tree, plan_cluster, rates
from polar_rm.training.config import TrainConfig

RESULTS = Path(__file__).parents[2] / "benchmarks/results/gpu_step.json"
GIB = 2**30
# Of the preset 1b with a vocabulary of 49,152.
PARAMETERS = 1_138_851_840


def config(**changes):
    values = {"output": "run", "model": {"preset": "1b", "tokenizer": "t"}, "data": {"train": ["a"]}, "row_tokens": 16384}
    return TrainConfig.model_validate(values | changes)


def backbone():
    return preset_config("1b", vocab_size=49152)


def work(**changes):
    tree = TreeSpan(0, 3000, (1000, 1000))
    return replace(Work(PARAMETERS, PARAMETERS + 2048, tree, [5000] * 2000, 1000, 1e10), **changes)


def plan(n=64, device="h100", *, settings=None, **changes):
    return plan_cluster(config(**settings or {}), backbone(), work(**changes), gpus=n, device=device)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("row_tokens", [8192, 16384])
def test_memory_of_one_gpu_is_what_was_measured(compiled, row_tokens):
    [measured] = [
        row["peak_gib"]
        for row in json.loads(RESULTS.read_text())
        if (row["what"], row["preset"], row["k"], row["row_tokens"], row["compile"]) == ("before", "1b", 2, row_tokens, compiled)
        and row["call"] == 1
    ]
    planned = plan(1, settings={"row_tokens": row_tokens, "compile": compiled})
    assert sum(planned.memory.values()) / GIB == pytest.approx(measured, rel=0.03)


def test_sharded_memory_shrinks_with_the_ranks_of_a_copy():
    all_share, node = plan(64), plan(64, settings={"shard_ranks": 8})
    for kind, size in (("weights", 4), ("gradients", 4), ("moments", 8)):
        assert all_share.memory[kind] == pytest.approx(size * (PARAMETERS + 2048) / 64)
        assert node.memory[kind] == pytest.approx(size * (PARAMETERS + 2048) / 8)
    recomputed, some = plan(settings={"activation_checkpointing": True}), plan(settings={"activation_checkpointing": 11})
    assert recomputed.memory["activations"] < some.memory["activations"] < 0.6 * all_share.memory["activations"]


def test_time_and_network_are_sums_by_hand():
    result = plan(64)
    rows = 667  # of three trees of 5,000 tokens
    assert result.rows == rows
    assert result.busy == pytest.approx(rows / (11 * 64))
    flops = result.compute * 989e12 * 64 * result.utilisation
    assert flops / 1e7 == pytest.approx(6 * 1.04e9, rel=0.35)  # 6 a parameter besides the embedding, and attention
    weights, gradients = 2 * 2 * PARAMETERS, 4 * (PARAMETERS + 2048)
    assert result.network == pytest.approx(11 * (weights + gradients) * 63 / 64 / 50e9)
    within = plan(64, settings={"shard_ranks": 8})
    copies = 2 * gradients / 8 * 7 / 8
    assert within.network == pytest.approx(11 * ((weights + gradients) * 7 / 8 / 450e9 + copies / 50e9))
    assert result.hours == pytest.approx(1000 * max(result.compute, result.network) / 3600)
    assert plan(128).hours < result.hours
    assert result.encoded == 4e10
    assert result.encode_core_hours == pytest.approx(1e10 / rates()["encode_tokens_per_core"] / 3600)


def test_what_breaks_first_is_noted():
    assert any("use activation_checkpointing" in note for note in plan(1, settings={"row_tokens": 65536}).notes)
    assert any("they wait for 9" in note for note in plan(64, lengths=[5000] * 10).notes)
    assert any("network bounds a step" in note for note in plan(64, lengths=[50] * 64, settings={"row_tokens": 64}).notes)
    assert any("utilisation was measured from" in note for note in plan(parameters=7 * 10**9).notes)


def test_the_mean_tree_follows_from_the_sums():
    # Two trees of 10 + 3 x 4 tokens and one of 22 + 3 x 8: as separate sequences 3 x 14 and 3 x 30.
    assert mean_tree(3, 9, 2 * 22 + 46, 2 * 42 + 90) == TreeSpan(0, 14, (5, 5, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "b300"}, "--device: no rates for 'b300'; known: h100, h200, h800, a100"),
        ({"n": 0}, "--gpus: at least 1, not 0"),
        ({"settings": {"shard_ranks": 3}}, "shard_ranks: 3 does not divide 64 GPUs"),
    ],
)
def test_what_can_not_be_planned_is_one_line(arguments, message):
    with pytest.raises(ConfigError) as error:
        plan(**arguments)
    assert str(error.value) == message


def test_the_verb_plans_for_gpus_and_trains_only_without(tmp_path):
    path = runs.config(tmp_path)
    options = ("shard_ranks=8", "--dry-run", "--gpus", "16", "--device", "h800", "--json", tmp_path / "plan.json")
    code, output, _ = in_process("pretrain", path, *options)
    assert code == 0
    assert "16 x h800, 2 copies of the weights" in output
    assert "memory a GPU" in output
    written = json.loads((tmp_path / "plan.json").read_text())["cluster"]
    assert written["gpus"] == 16
    assert sum(written["memory"].values()) > GIB
    refused = tmp_path / "refused"
    code, _, errors = in_process("pretrain", path, f"output={refused}", "--dry-run", "--gpus", "16", "--device", "tpu")
    assert (code, refused.exists()) == (2, False), "before data are encoded"
    assert "no rates for 'tpu'" in errors
    for arguments, message in (
        (["--gpus", "16"], "--gpus plans and trains nothing"),
        (["shard_ranks=8"], "shard_ranks: 8 does not divide the 1 ranks of this run"),
    ):
        code, _, errors = in_process("pretrain", path, *arguments)
        assert code == 2
        assert message in errors

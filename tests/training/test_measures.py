"""The values that a run logs and passes to libraries, against independent computations."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import asdict

import pytest
import torch
from support import runs
from torch.distributed.fsdp import MixedPrecisionPolicy

from polar_rm.common.config import load_config
from polar_rm.encoded.corpus import EncodedCorpus
from polar_rm.errors import NonFinite
from polar_rm.model.packing import pack
from polar_rm.model.reward_model import RewardModel
from polar_rm.training import metrics, parallel, trainer
from polar_rm.training.config import LoraConfig, TrainConfig
from polar_rm.training.lora import adapter_settings
from polar_rm.training.losses import pair_indices
from polar_rm.training.parallel import World
from polar_rm.training.totals import Totals
from polar_rm.training.trainer import Trainer, dropout_seed


def start(folder, *overrides, **changes):
    config = load_config(TrainConfig, [runs.config(folder, **changes)], overrides)
    built = Trainer(config, World(0, 1, torch.device("cpu")))
    built.model.train()
    return built


def plain_scores(backbone, tree):
    """The score of every sequence, computed separately by plain transformers."""
    sequences = [torch.tensor([tree.sequence(i)]) for i in range(len(tree.ranks))]
    return torch.cat([backbone(ids, use_cache=False).logits[:, 0] for ids in sequences])


def pairs(ranks):
    """(better, worse) of every ordered pair, by index."""
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


def test_every_logged_value_is_what_its_name_says(tmp_path, monkeypatch):
    """Architecture 3, part 4 of the faults: values, not only names."""
    scoring = runs.with_scores(tmp_path)
    built = start(tmp_path, "max_steps=1", "batch_size=16", "optim.lr=1e-3", "optim.warmup=0", **scoring)
    now = [0.0]  # the clock, which every backward advances by two seconds
    backward = Trainer._backward

    def two_seconds(self, indices):
        batch.extend(indices)
        now[0] += 2.0
        return backward(self, indices)

    batch: list[int] = []
    monkeypatch.setattr(Trainer, "_backward", two_seconds)
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(metrics, "peak_flops", lambda device, dtype: 1e9)
    monkeypatch.setattr(metrics, "training_flops", lambda *args: 0.25e9)
    monkeypatch.setattr(metrics, "peak_memory", lambda device: 1.5)
    built.fit()
    monkeypatch.undo()
    [row] = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]

    backbone = RewardModel.from_pretrained(tmp_path / "scoring", implementation="eager").backbone
    trees = [built.train_set[i] for i in batch]
    scores = [plain_scores(backbone, tree) for tree in trees]
    differences = torch.stack([s[i] - s[j] for s, tree in zip(scores, trees, strict=True) for i, j in pairs(tree.ranks)])
    loss = torch.nn.functional.softplus(-differences).mean()
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in backbone.parameters()))
    all_scores = torch.cat(scores).detach()
    tokens = sum(len(tree.prefix) + sum(map(len, tree.branches)) for tree in trees)
    rows = len(list(built.rows.rows_of_rank({i: tree.n_tokens for i, tree in enumerate(trees)})))
    correct = float((differences > 0).sum() + 0.5 * (differences == 0).sum())
    expected = {
        "step": 1,
        "loss": loss.item(),
        "accuracy": correct / len(differences),
        "margin": differences.mean().item(),
        "reward_mean": all_scores.mean().item(),
        "reward_std": all_scores.std(correction=0).item(),
        "grad_norm": norm,
        "lr": 1e-3,
        "pairs": len(differences),
        "tokens": tokens,
        "seconds": 2.0,
        "data_seconds": 0.0,
        "tokens_per_second": tokens / 2,
        "pairs_per_second": len(differences) / 2,
        "memory_gib": 1.5,
        "flops": rows * 0.25e9,
        "mfu": rows * 0.25e9 / 2 / 1e9,
    }
    assert row == pytest.approx(expected, rel=2e-4, abs=1e-5)
    assert 0 < expected["accuracy"] < 1 and expected["reward_std"] > 0.01 and rows > 2


def test_the_deviation_of_rewards_far_from_zero_does_not_lose_precision():
    scores = 1000 + torch.randn(64, generator=torch.Generator().manual_seed(0)) / 10
    totals = Totals(torch.device("cpu"))
    for part in scores.split(8):
        totals.add([0], torch.tensor(1.0), part, pair_indices([range(8)]), 5)
    deviation = totals.read(World(0, 1, torch.device("cpu"))).values["reward_std"]
    assert deviation == pytest.approx(scores.double().std(correction=0).item(), rel=1e-5)


def test_run_json_describes_the_run(tmp_path):
    """B9: hashes are those at the start, whatever happens to the files later."""
    file = runs.config(tmp_path, max_steps=1)
    config = load_config(TrainConfig, [file], [f"data.eval=[{tmp_path / 'eval.jsonl'}]", "seed=7"])
    hashes = {
        str(tmp_path / f"{name}.jsonl"): hashlib.sha256((tmp_path / f"{name}.jsonl").read_bytes()).hexdigest()
        for name in ("train", "eval")
    }
    built = Trainer(config, World(0, 1, torch.device("cpu")))
    (tmp_path / "train.jsonl").write_text("something else")
    results = built.fit()
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["config"] == config.model_dump(mode="json")
    assert run["plan"] == json.loads(json.dumps(asdict(built.plan)))
    assert run["data"] == hashes
    assert (run["seed"], run["encoder_hash"]) == (7, built.model.encoder.hash)
    assert run["results"] == results and results["steps"] == 1
    [line] = [json.loads(each) for each in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert results["train"] == {key: value for key, value in line.items() if key != "step" and not key.startswith("eval_")}
    assert results["eval"] == {key: line[f"eval_{key}"] for key in ("loss", "accuracy", "margin")}
    assert run["versions"]["torch"] == torch.__version__


def test_the_log_is_on_the_disk_before_a_checkpoint_of_its_step(tmp_path, monkeypatch):
    built, events = start(tmp_path, "max_steps=1"), []
    monkeypatch.setattr(metrics.JsonlSink, "sync", lambda self: events.append("log"))
    monkeypatch.setattr(Trainer, "save", lambda self: events.append("checkpoint"))
    built.fit()
    assert events == ["log", "checkpoint"]


def test_ties_count_half(tmp_path):
    """trn-7: with a new head all scores are zero."""
    values = start(tmp_path).accumulate(list(range(16)))
    assert (values["accuracy"], values["margin"], values["reward_mean"], values["reward_std"]) == (0.5, 0, 0, 0)


def test_the_optimiser_gets_all_its_settings(tmp_path):
    """trn-1."""
    built = start(tmp_path, "optim={lr: 2e-3, betas: [0.7, 0.8], eps: 1e-5, weight_decay: 0.3}")
    [group] = built.optimizer.param_groups
    assert isinstance(built.optimizer, torch.optim.AdamW)
    expected = {"lr": 2e-3, "betas": (0.7, 0.8), "eps": 1e-5, "weight_decay": 0.3, "amsgrad": False, "maximize": False}
    assert {key: group[key] for key in expected} == expected
    assert {id(each) for each in group["params"]} == {id(each) for each in built.weights.named.values()}
    assert start(tmp_path, f"output={tmp_path / 'other'}").optimizer.param_groups[0]["weight_decay"] == 0


def test_shards_compute_in_one_type_and_are_summed_in_float32(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(parallel, "fully_shard", lambda module, mesh, mp_policy: calls.append((module, mp_policy, mesh)))
    built = start(tmp_path)
    parallel._shard(built.model, torch.bfloat16, "mesh")
    *layers, head, root = calls
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    assert {mesh for _, _, mesh in calls} == {"mesh"}
    assert [module for module, _, _ in layers] == list(built.model.backbone.base_model.layers)
    assert all(each == policy for _, each, _ in [*layers, root])
    assert head[:2] == (built.model.backbone.score, MixedPrecisionPolicy())
    assert root[0] is built.model


def test_adapters_get_all_their_settings(tmp_path):
    pytest.importorskip("peft")
    settings = adapter_settings(LoraConfig(rank=4, alpha=12, dropout=0.25))
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (4, 12, 0.25)
    built = start(tmp_path, lora={"rank": 4, "alpha": 12, "dropout": 0.25})
    layer = built.model.backbone.base_model.layers[0].mlp.up_proj
    assert (layer.scaling["default"], layer.lora_dropout["default"].p) == (3.0, 0.25)
    assert layer.lora_A["default"].weight.shape == (4, 64)


def test_evaluation_has_no_dropout_and_training_has(tmp_path):
    """trn-6."""
    pytest.importorskip("peft")
    scoring = runs.with_scores(tmp_path)
    built = start(tmp_path, f"data.eval=[{tmp_path / 'eval.jsonl'}]", lora={"rank": 4, "dropout": 0.5}, **scoring)
    for name, tensor in built.weights.named.items():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.1, generator=torch.Generator().manual_seed(0))
    built.weights.update_copies()
    assert built.evaluate(built.eval_set) == built.evaluate(built.eval_set)
    assert built.model.training
    losses = [built.accumulate(list(range(8)))["loss"] for _ in range(2)]
    assert losses[0] != losses[1]


def test_dropout_depends_on_seed_step_and_rank_with_every_python():
    """B22: the values must not change, because runs in progress depend on them."""
    assert dropout_seed(0, 0, 0) == 15793235383387715774
    assert dropout_seed(7, 3, 1) != dropout_seed(7, 1, 3) != dropout_seed(1, 7, 3)
    torch.manual_seed(dropout_seed(2**63 - 1, 10**9, 4095))


def test_a_gradient_that_is_not_finite_changes_no_weights(tmp_path, monkeypatch):
    """trn-4."""
    built = start(tmp_path)
    before = {name: tensor.clone() for name, tensor in built.weights.named.items()}
    for norm in (math.inf, math.nan):
        monkeypatch.setattr(built.weights, "clip", lambda limit, norm=norm: torch.tensor(norm))
        with pytest.raises(NonFinite, match=r"step 1: the gradient's norm is .*(inf|nan).* on .*train.jsonl: comparison 1;"):
            built.optimize(list(range(8)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.weights.named.items())
    assert not built.optimizer.state


def test_an_evaluation_that_is_not_finite_names_its_rows(tmp_path, monkeypatch):
    """B23."""
    built = start(tmp_path, f"data.eval=[{tmp_path / 'eval.jsonl'}]", "max_steps=1", **runs.with_scores(tmp_path))
    trees = [corpus[i] for corpus in (built.train_set, built.eval_set) for i in range(len(corpus))]
    used = {token for tree in trees for part in (tree.prefix, *tree.branches) for token in part}
    embedding = built.model.backbone.get_input_embeddings().weight
    unused = next(token for token in range(len(embedding)) if token not in used)
    with torch.no_grad():
        embedding[unused] = math.nan
    damaged = built.eval_set[4]
    damaged.branches[1][0] = unused
    original = EncodedCorpus.__getitem__
    monkeypatch.setattr(
        EncodedCorpus, "__getitem__", lambda self, i: damaged if self is built.eval_set and i == 4 else original(self, i)
    )
    with pytest.raises(NonFinite, match=r"step 1: evaluation: .*loss is nan.* on .*eval\.jsonl: comparison 5$"):
        built.fit()
    assert not (tmp_path / "run/metrics.jsonl").read_text()


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_memory_is_reported_in_gib_on_every_system(monkeypatch, platform, unit):
    """B12: macOS counts in bytes; Windows has no such counter."""
    import resource

    class Usage:
        ru_maxrss = 3 * 2**30 / unit

    monkeypatch.setattr(resource, "getrusage", lambda who: Usage)
    monkeypatch.setattr(metrics.sys, "platform", platform)
    assert metrics.peak_memory(torch.device("cpu")) == 3
    monkeypatch.setitem(sys.modules, "resource", None)
    assert math.isnan(metrics.peak_memory(torch.device("cpu")))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_gradients_of_many_rows_are_summed_in_float32(tmp_path, precision):
    """The oracle sums each row's gradients in float64. A sum in bfloat16 would be off by more than 1e-3."""
    built = start(tmp_path, f"precision={precision}", "row_tokens=177", **runs.with_scores(tmp_path))
    indices = list(range(32))
    built.accumulate(indices)
    gradients = {name: tensor.grad.clone() for name, tensor in built.weights.named.items()}
    trees = runs.trees_of(built, indices)
    n_pairs = sum(len(pairs(tree.ranks)) for tree in trees.values())
    expected = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in gradients.items()}
    rows = list(built.rows.rows_of_rank({i: tree.n_tokens for i, tree in trees.items()}))
    assert len(rows) >= 16
    for in_row in rows:
        for tensor in built.weights.named.values():
            tensor.grad = None
        row = pack([trees[i] for i in in_row])
        scores = built.model(row).split(list(map(len, row.ranks)))
        differences = [s[i] - s[j] for s, ranks in zip(scores, row.ranks, strict=True) for i, j in pairs(ranks)]
        loss = torch.nn.functional.softplus(-torch.stack(differences)).sum()
        (loss / n_pairs).backward()
        for name, tensor in built.weights.named.items():
            expected[name] += tensor.grad.double()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 2e-6 * expected[name].norm(), name

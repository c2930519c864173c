import json
import math
from dataclasses import replace

import pytest
import torch
from support import runs

from polar_rm.common.config import load_config
from polar_rm.errors import ConfigError, NonFinite, PolarError
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import read_comparisons
from polar_rm.scoring.scorer import Scorer
from polar_rm.training.config import TrainConfig
from polar_rm.training.lora import merge_lora
from polar_rm.training.parallel import World
from polar_rm.training.plan import make_plan
from polar_rm.training.resume import identity as identity_of
from polar_rm.training.trainer import Trainer, train


def trainer(folder, *overrides, **changes):
    config = load_config(TrainConfig, [runs.config(folder, **changes)], overrides)
    built = Trainer(config, World(0, 1, torch.device("cpu")))
    built.model.train()
    return built


def gradients(built):
    values = built.accumulate(list(range(16)))
    result = {name: tensor.grad.float() for name, tensor in built.weights.named.items() if tensor.grad is not None}
    assert all(map(torch.any, result.values()))  # zeros would be equal whatever computes them
    return values, result


def test_the_first_loss_is_ln_2(tmp_path):
    values = trainer(tmp_path).accumulate(list(range(16)))
    assert values["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert values["pairs"] > 16


def oracle(folder, trees, dtype):
    """Gradients of the mean over all pairs, by plain transformers on every separate sequence, without trees and rows.

    They are summed over comparisons in float64.
    """
    backbone = RewardModel.from_pretrained(folder, implementation="eager", dtype=dtype).backbone
    pairs = sum(a < b for tree in trees for a in tree.ranks for b in tree.ranks)
    parameters = dict(backbone.named_parameters())
    total = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}
    for tree in trees:
        hidden = [
            backbone.base_model(torch.tensor([tree.sequence(i)]), use_cache=False).last_hidden_state[0, -1]
            for i in range(len(tree.ranks))
        ]
        scores = backbone.score(torch.stack(hidden).float())[:, 0]
        better = [(i, j) for i, a in enumerate(tree.ranks) for j, b in enumerate(tree.ranks) if a < b]
        loss = sum(torch.nn.functional.softplus(scores[j] - scores[i]) for i, j in better) / pairs
        for name, gradient in zip(total, torch.autograd.grad(loss, parameters.values()), strict=True):
            total[name] += gradient.double()
    return total


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gradient_is_that_of_the_mean_over_all_pairs(tmp_path, precision):
    built = trainer(tmp_path, f"precision={precision}", **runs.with_scores(tmp_path))
    _, ours = gradients(built)
    trees = [built.train_set[i] for i in range(16)]
    exact = oracle(tmp_path / "scoring", trees, "float32")
    rounded = oracle(tmp_path / "scoring", trees, "bfloat16") if precision == "bf16" else {}
    for name, gradient in exact.items():
        error = (ours.pop(name) - gradient).norm() / gradient.norm()
        # In bfloat16 the error is no larger than that of separate sequences whose gradients are summed in float64.
        allowed = 1.25 * (rounded[name] - gradient).norm() / gradient.norm() if rounded else 1e-5
        assert error < allowed, name
    assert not ours


def test_references_replace_the_best_candidate_in_fewer_and_fewer_comparisons(tmp_path):
    built = trainer(tmp_path, "data.identical_steps=20")
    indices = list(range(40))
    replaced = {}
    for built.step in (0, 10, 19, 20):
        trees = runs.trees_of(built, indices)
        assert trees == runs.trees_of(built, indices)
        replaced[built.step] = [trees[i] != built.train_set[i] for i in indices]
        for i, is_replaced in zip(indices, replaced[built.step], strict=True):
            expected = built.model.encoder.with_identical(built.train_set[i]) if is_replaced else built.train_set[i]
            assert trees[i] == expected
    assert all(replaced[0])
    assert 10 < sum(replaced[10]) < 30
    assert sum(replaced[19]) < 8
    assert not any(replaced[20])
    assert built.accumulate(indices)["pairs"] == built.train_set.stats.pairs
    with pytest.raises(PolarError, match="identical_steps needs references"):
        trainer(tmp_path, "data.identical_steps=20", "data.reference=empty")


def test_which_references_replace_candidates_depends_on_the_seed(tmp_path):
    def replaced(seed):
        built = trainer(tmp_path, "data.identical_steps=20", f"seed={seed}")
        built.step = 10
        return [tree != built.train_set[i] for i, tree in runs.trees_of(built, list(range(40))).items()]

    assert replaced(0) == replaced(0) != replaced(1)


def test_every_setting_of_the_optimiser_is_used(tmp_path):
    built = trainer(tmp_path, "optim={eps: 0.01, betas: [0.5, 0.75], weight_decay: 0.25, clip: .inf, lr: 0.1, warmup: 0}")
    twin = {name: tensor.detach().clone().double() for name, tensor in built.weights.named.items()}
    built.accumulate(list(range(16)))
    gradients = {name: tensor.grad.double() for name, tensor in built.weights.named.items() if tensor.grad is not None}
    built.optimizer.zero_grad(set_to_none=True)
    built.optimize(list(range(16)))
    [group] = built.optimizer.param_groups
    assert group["betas"] == (0.5, 0.75)
    for name, gradient in gradients.items():  # the first step of AdamW (Loshchilov and Hutter 2019, algorithm 2)
        expected = twin[name] * (1 - group["lr"] * 0.25) - group["lr"] * gradient / (gradient.abs() + 0.01)
        torch.testing.assert_close(built.weights.named[name].detach().double(), expected, rtol=1e-4, atol=1e-6)
    assert gradients["score.weight"].abs().max() > 0


def test_training_goes_on_in_training_mode_after_an_evaluation(tmp_path):
    built = trainer(tmp_path)
    built.evaluate(built.train_set)
    assert all(module.training for module in built.model.modules())


@pytest.mark.parametrize(
    "option",
    ["activation_checkpointing=true", "activation_checkpointing=1", "row_tokens=10000", "row_tokens=40", "attention=tree_dense"],
)
def test_options_that_save_time_or_memory_do_not_change_gradients(tmp_path, option):
    model = runs.with_scores(tmp_path)
    expected, plain = gradients(trainer(tmp_path, **model))
    values, others = gradients(trainer(tmp_path, option, "output=" + str(tmp_path / "other"), **model))
    for name in ("loss", "margin", "pairs", "tokens", "flops"):
        assert values[name] == pytest.approx(expected[name], rel=1e-5), name
    for name, gradient in plain.items():
        assert (others[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.slow
def test_compiled_layers_give_the_same_gradients(tmp_path):
    model = runs.with_scores(tmp_path)
    _, plain = gradients(trainer(tmp_path, **model))
    _, compiled = gradients(trainer(tmp_path, "compile=true", "output=" + str(tmp_path / "other"), **model))
    for name, gradient in plain.items():
        assert (compiled[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def check_card(card, run):
    """The card says what the run says."""
    assert "# run/model" in card and 'polar_rm.load("run/model")' in card
    [digest] = [digest for file, digest in run["data"].items() if file.endswith("train.jsonl")]
    assert f"train.jsonl`, SHA-256 `{digest}`" in card and f"hash `{run['encoder_hash']}`" in card
    measured = run["results"]["eval"]
    assert f"at the end: accuracy {measured['accuracy']:.3f}, loss {measured['loss']:.3f}\n" in card
    assert f"60 steps of {run['config']['batch_size']} comparisons, seed {run['seed']}" in card


def test_a_run_learns_and_writes_all_outputs(tmp_path):
    config = load_config(
        TrainConfig,
        [runs.config(tmp_path, epochs=12)],
        [f"data.eval=[{tmp_path / 'eval.jsonl'}]", "eval_every=30", "precision=bf16", "log.tensorboard=true"],
    )
    results = train(config)
    output = tmp_path / "run"
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))
    names = "loss accuracy margin reward_mean reward_std grad_norm lr tokens_per_second pairs_per_second mfu memory_gib".split()
    assert set(names) <= rows[0].keys()
    assert [row["step"] for row in rows if "eval_accuracy" in row] == [30, 60]
    assert sum(row["loss"] for row in rows[-5:]) / 5 < 0.35
    assert results["eval"]["accuracy"] > 0.8
    assert list((output / "tensorboard").iterdir())
    run = json.loads((output / "run.json").read_text())
    assert {"config", "plan", "data", "encoder_hash", "seed", "versions", "git", "results"} <= run.keys()
    check_card((output / "model/README.md").read_text(), run)
    comparisons = list(read_comparisons(tmp_path / "eval.jsonl"))
    trained = RewardModel.from_pretrained(output / "model")
    assert trained.untrained == ()
    scores = list(Scorer(trained).score_comparisons(comparisons))
    correct = [s[i] > s[j] for s, c in zip(scores, comparisons, strict=True) for i, j in c.pairs()]
    assert sum(correct) / len(correct) > 0.8


def test_lora_trains_adapters_and_exports_merged_weights(tmp_path):
    pytest.importorskip("peft")
    before = RewardModel.from_causal_lm(runs.config(tmp_path).parent / "lm").backbone.state_dict()
    config = load_config(TrainConfig, [runs.config(tmp_path, epochs=8, lora={"rank": 4}, optim={"lr": 2e-2})])
    results = train(config)
    assert results["train"]["loss"] < 0.5
    model = RewardModel.from_pretrained(tmp_path / "run/model")
    after = model.backbone.state_dict()
    assert after.keys() == before.keys()
    assert model.untrained == ("<|reward|>", "[UNUSED_TOKEN_130]")  # their embeddings stay as they were drawn
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    change = after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(change, rtol=1e-3) == 4
    # The exported model scores like the model with adapters.
    comparisons = list(read_comparisons(tmp_path / "train.jsonl"))[:8]
    resumed = trainer(tmp_path, epochs=8, lora={"rank": 4}, optim={"lr": 2e-2})
    resumed._resume()
    adapted = list(Scorer(resumed.model).score_comparisons(comparisons))
    exported = list(Scorer(model).score_comparisons(comparisons))
    assert sum(exported, []) == pytest.approx(sum(adapted, []), rel=1e-3, abs=1e-3)


def test_adapters_depend_on_the_seed_and_the_exported_base_is_exact(tmp_path):
    pytest.importorskip("peft")

    def adapters(seed):
        built = trainer(tmp_path, f"seed={seed}", "precision=bf16", lora={"rank": 4}, **runs.with_scores(tmp_path))
        return built, {name: tensor for name, tensor in built.weights.full_state().items() if "lora_A" in name}

    (built, first), (_, again), (_, other) = adapters(0), adapters(0), adapters(1)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not any(torch.equal(tensor, other[name]) for name, tensor in first.items())
    base = RewardModel.from_pretrained(tmp_path / "scoring").backbone.state_dict()
    exported = merge_lora(built.model, built.weights.full_state())  # new adapters change nothing
    assert exported.keys() == base.keys()
    assert all(torch.equal(tensor, base[name]) for name, tensor in exported.items())


def test_what_decides_the_weights_is_the_identity_of_a_run_and_nothing_else(tmp_path):
    def identity(*overrides):
        run = trainer(tmp_path, *overrides)
        return identity_of(run.config, run.prepared)

    first = identity()
    for changed, key in (
        ("data.identical_steps=20", "identical_steps"),
        ("optim.warmup=0", "optim"),
        ("loss.objective=listwise", "loss"),
        ("seed=1", "seed"),
        ("epochs=3", "epochs"),
        ("max_steps=2", "max_steps"),
        ("batch_size=4", "batch_size"),
        ("data.reference=empty", "data"),
    ):
        other = identity(changed)
        assert {name for name in first if first[name] != other[name]} == {key}, changed
    assert identity("row_tokens=150", "precision=bf16", "checkpoint_every=1") == first


def test_a_run_is_not_continued_with_other_adapters_or_on_another_base(tmp_path):
    pytest.importorskip("peft")
    changes = {"epochs": 1, "lora": {"rank": 4}, **runs.with_scores(tmp_path)}
    train(load_config(TrainConfig, [runs.config(tmp_path, **changes)]))
    for lora in ({"rank": 2}, None):
        with pytest.raises(ConfigError, match=r"started with other settings .*lora\.rank: 4 there"):
            trainer(tmp_path, **changes | {"lora": lora})._resume()
    model = RewardModel.from_pretrained(tmp_path / "scoring")
    model.backbone.model.norm.weight.data += 1
    model.save(tmp_path / "scoring")
    with pytest.raises(ConfigError, match=r"started with other settings \(base"):
        trainer(tmp_path, **changes)._resume()


def test_a_loss_that_is_not_finite_stops_and_names_the_rows(tmp_path):
    built = trainer(tmp_path)
    built.model.backbone.score.weight.data.fill_(float("nan"))
    with pytest.raises(NonFinite, match=r"step 1: the loss is nan on .*train.jsonl: comparison \d+"):
        built.optimize(list(range(8)))


def test_a_full_disk_is_one_clear_error_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    import torch.distributed.checkpoint as dcp

    built = trainer(tmp_path)
    built.optimize(list(range(8)))
    built.step = 1
    built.save()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dcp, "save", full)
    built.step = 2
    with pytest.raises(PolarError, match="No space left on device"):
        built.save()
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000001"]


def test_plans_describe_the_run(tmp_path):
    built = trainer(tmp_path, "optim.lr=paper", "optim.base_tokens=2e12", "batch_size=paper", "row_tokens=30")
    plan = make_plan(built.config, built.model.backbone, built.train_set, "cpu")
    assert plan.comparisons == 40
    assert plan.separate_tokens > plan.tokens
    text = "\n".join(f"{name}: {value}" for name, value in plan.describe())
    assert "extrapolation" in text
    assert "longer than row_tokens" in text
    with pytest.raises(PolarError, match="needs optim.base_tokens"):
        trainer(tmp_path, "optim.lr=paper", f"output={tmp_path / 'other'}")


def test_a_reward_model_continues_with_its_encoder_or_with_new_lengths(tmp_path):
    first = trainer(tmp_path)
    first.model.save(tmp_path / "rm")

    def settings(**encoder):
        model = {"init": None, "resume_from": str(tmp_path / "rm"), "encoder": encoder or None}
        return trainer(tmp_path, model=model).model.encoder.settings

    assert settings() == first.model.encoder.settings
    assert settings(max_response_length=32) == replace(first.model.encoder.settings, max_response_length=32)
    with pytest.raises(ConfigError, match=r"model\.encoder\.template: .*rm was trained with 'polar', not 'polar-chat'"):
        settings(template="polar-chat")

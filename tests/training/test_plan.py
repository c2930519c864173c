import pytest
import torch
from support import runs, tiny

from polar_rm.common.config import load_config
from polar_rm.training.config import TrainConfig
from polar_rm.training.parallel import World
from polar_rm.training.schedule import paper_batch_size, paper_learning_rate
from polar_rm.training.trainer import Trainer


def trainer(folder, *overrides, **changes):
    return Trainer(load_config(TrainConfig, [runs.config(folder, **changes)], overrides), World(0, 1, torch.device("cpu")))


def plan(folder, *overrides, **changes):
    return trainer(folder, *overrides, **changes).plan


@pytest.mark.parametrize(
    ("overrides", "steps", "epochs"),
    [
        (["batch_size=320", "epochs=1"], 1, 1.0),
        (["batch_size=12", "epochs=2"], 8, 2.0),  # 12, 12, 12 and 4
        (["batch_size=12", "epochs=2", "max_steps=6"], 6, 1.6),
        (["batch_size=12", "epochs=2", "max_steps=4"], 4, 1.0),
        (["batch_size=12", "epochs=2", "max_steps=99"], 8, 2.0),
    ],
)
def test_the_last_batch_of_an_epoch_counts_its_comparisons(tmp_path, overrides, steps, epochs):
    result = plan(tmp_path, *overrides)
    assert (result.steps, result.epochs) == (steps, pytest.approx(epochs))


def test_the_papers_rules_depend_on_the_tokens_of_the_run(tmp_path):
    base = ["optim={lr: paper, base_tokens: 2e12}", "epochs=10"]
    full, short = plan(tmp_path, *base), plan(tmp_path, *base, "max_steps=7")
    for each, epochs in ((full, 10), (short, 1.4)):
        tokens = each.separate_tokens * epochs
        assert each.peak_lr == pytest.approx(paper_learning_rate(each.parameters, 2e12, tokens))
    assert short.peak_lr < full.peak_lr
    by_paper = plan(tmp_path, "batch_size=paper", "epochs=1000")
    assert by_paper.batch_size == paper_batch_size(by_paper.parameters, 1000 * by_paper.separate_tokens)


def test_sequences_longer_than_the_backbones_positions_are_noted(tmp_path):
    longest = trainer(tmp_path).train_set.stats.longest_sequence
    for positions, noted in ((longest - 1, True), (longest, False)):
        tiny.causal_lm(tmp_path / "short", max_position_embeddings=positions)
        model = {"init": str(tmp_path / "short"), "encoder": {"max_length": 256, "max_response_length": 64}}
        note = (
            f"the longest sequence has {longest} tokens, more than the backbone has positions "
            f"(max_position_embeddings: {positions})"
        )
        assert (note in plan(tmp_path, model=model).notes) == noted


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_planned_memory_is_that_of_the_tensors_of_a_run(tmp_path, precision, lora):
    if lora:
        pytest.importorskip("peft")
    built = trainer(tmp_path, f"precision={precision}", lora=lora)
    trained = sum(tensor.numel() for tensor in built.weights.named.values())
    assert built.plan.trained == trained
    tensors = [*built.weights.named.values(), *built.model.backbone.parameters()]
    sizes = {tensor.data_ptr(): tensor.nbytes for tensor in tensors}
    head = built.model.backbone.score.weight.numel()  # always float32; the plan counts a copy for it, as for the others
    head_copy = head * (2 if precision == "bf16" else 0)
    assert built.plan.state_bytes == sum(sizes.values()) + 12 * trained + head_copy
    frozen = built.plan.parameters if lora else 0
    assert built.plan.flops == (6 * trained + 4 * frozen) * built.plan.tokens * built.plan.epochs

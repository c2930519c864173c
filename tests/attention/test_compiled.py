"""Compiled decoder layers: one graph for all rows, and the same numbers as without compiling, for each family."""

from __future__ import annotations

import random

import pytest
import torch
from support import tiny
from torch._dynamo.utils import counters
from transformers import AutoModelForSequenceClassification

from polar_rm import attention
from polar_rm.encoding.tree import PrefixTree
from polar_rm.model import layers
from polar_rm.model.packing import PackedRow, pack
from polar_rm.model.reward_model import RewardModel

attention.register()


def build(family: str, implementation: str = "tree_cpu", **changes: int) -> RewardModel:
    torch.manual_seed(0)
    config = tiny.config(family, num_labels=1, attn_implementation=implementation, **{"num_hidden_layers": 3} | changes)
    return RewardModel(AutoModelForSequenceClassification.from_config(config), None, {}).train()


@pytest.fixture(autouse=True)
def no_graphs():
    torch._dynamo.reset()
    counters.clear()


def compile_layers(model: RewardModel, monkeypatch, backend: str = "aot_eager") -> None:
    """Compile with tracing but without code generation: the number of graphs does not depend on the backend."""
    real = torch.compile
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **options: real(function, backend=backend, **options))
        assert layers.compile_layers(model.backbone, torch.float32)


def forests(n: int) -> list[list[PrefixTree]]:
    rng = random.Random(0)
    ids = lambda max_length: [rng.randrange(5, 300) for _ in range(rng.randint(1, max_length))]  # noqa: E731

    def tree() -> PrefixTree:
        k = rng.randint(2, 4)
        return PrefixTree(ids(60), [ids(40) for _ in range(k)], tuple(range(k)))

    return [[tree() for _ in range(rng.randint(1, 3))] for _ in range(n)]


def scores_and_gradients(model: RewardModel, row: PackedRow) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    scores = model(row)
    (scores * torch.linspace(-1, 1, len(scores))).sum().backward()
    return scores.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad]


def assert_equal(compiled, plain) -> None:
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(compiled[1], plain[1], strict=True):
        assert (gradient - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("implementation", ["tree_cpu", "tree_dense"])
@pytest.mark.parametrize("padding", [1, 64])
def test_padding_influences_nothing(implementation, padding):
    """Scores and gradients are those of the row without padding, whatever ids the padding holds."""
    model = build("llama", implementation)
    for forest in forests(4):
        row = pack(forest, multiple=padding)
        filled = row.ids.clone()
        filled[:, row.layout.n_tokens :] = 7
        assert_equal(
            scores_and_gradients(model, type(row)(filled, *[getattr(row, n) for n in ("tree", "layout", "ranks")])),
            scores_and_gradients(model, pack(forest)),
        )


@pytest.mark.slow
def test_fifty_rows_are_two_graphs(monkeypatch):
    model, plain = build("llama"), build("llama")
    compile_layers(model, monkeypatch)
    for number, forest in enumerate(forests(50)):
        row = pack(forest, multiple=32)
        if number % 10:
            model(row).sum().backward()
        else:
            assert_equal(scores_and_gradients(model, row), scores_and_gradients(plain, pack(forest)))
    assert counters["stats"]["unique_graphs"] == 2  # the last layer has a graph of its own
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(tiny.CONFIGS.keys() - {"llama"}))
def test_every_family_compiles_to_the_same_numbers(family, monkeypatch):
    model, plain = build(family), build(family)
    compile_layers(model, monkeypatch)
    layers.checkpoint_activations(model.backbone)
    for forest in forests(3):
        assert_equal(scores_and_gradients(model, pack(forest, multiple=32)), scores_and_gradients(plain, pack(forest)))
    assert counters["stats"]["unique_graphs"] <= 3


@pytest.mark.slow
def test_models_of_many_shapes_compile_in_one_process(monkeypatch):
    """torch's limit of 8 graphs of a function would end the ninth, and with it a training."""
    row = pack(forests(1)[0], multiple=32)
    for width in range(9):
        model = build("llama", num_hidden_layers=1, intermediate_size=8 * (width + 1))
        compile_layers(model, monkeypatch, "eager")
        assert torch.isfinite(model(row)).all()
    assert counters["stats"]["unique_graphs"] == 9

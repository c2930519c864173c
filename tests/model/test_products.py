"""Products by oneDNN: where they are taken, and that a row's rounding depends on nothing but the row."""

from copy import deepcopy

import pytest
import torch
from support import tiny

from polar_rm.model import products
from polar_rm.model.layers import compile_layers
from polar_rm.model.products import Product, attach_products
from polar_rm.scoring.scorer import Scorer

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN")

OUTPUTS = ["a fox", "a slow green turtle", "the river", "Beijing " * 30]


@pytest.fixture(autouse=True)
def _on_any_processor(monkeypatch):
    monkeypatch.setattr(products, "AVAILABLE", True)


@pytest.fixture
def calls(monkeypatch):
    """The number of rows of every product by oneDNN."""
    sizes = []
    multiply = Product._multiply
    monkeypatch.setattr(Product, "_multiply", lambda self, rows: sizes.append(len(rows)) or multiply(self, rows))
    return sizes


def linear(bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 64, bias=bias)
    attach_products(layer)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 15, 96), (2, 9, 96), (1, 512, 96), (1, 1100, 96), (3, 96)])
def test_a_product_is_that_of_float64(shape, bias, calls):
    layer, input = linear(bias), torch.randn(shape)
    exact = input.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    with torch.inference_mode():
        output = layer(input)
    assert sum(calls) == input[..., 0].numel()
    assert max(calls) <= Product.ROWS
    torch.testing.assert_close(output.double(), exact.detach(), rtol=1e-5, atol=1e-5)


def test_a_row_is_rounded_alike_alone_and_among_others():
    layer, input = linear(), torch.randn(700, 96)
    with torch.inference_mode():
        whole = layer(input)
        for first, end in ((0, 1), (5, 8), (17, 300), (100, 700), (511, 514)):
            assert torch.equal(layer(input[first:end]), whole[first:end])


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_scores_are_those_of_torch_and_the_same_bits_alone(tmp_path, family, n_threads, calls):
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        scorer = Scorer(tiny.reward_model(tmp_path, family))
        together = scorer.score_outputs(prompt="What?", reference="a fox", outputs=OUTPUTS)
        assert calls
        alone = [scorer.score_outputs(prompt="What?", reference="a fox", outputs=[output])[0] for output in OUTPUTS]
        assert together == alone
        calls.clear()
        with torch.backends.mkldnn.flags(enabled=False):
            by_torch = scorer.score_outputs(prompt="What?", reference="a fox", outputs=OUTPUTS)
        assert not calls
        assert together == pytest.approx(by_torch, rel=1e-5, abs=1e-6)
    finally:
        torch.set_num_threads(before)


def test_everything_else_is_the_layers_own(calls):
    layer, input = linear(), torch.randn(4, 96, requires_grad=True)
    layer(input).sum().backward()
    assert input.grad is not None
    with torch.no_grad():  # the first pass of activation checkpointing, whose values the second must get
        layer(input)
    with torch.inference_mode():
        layer(input[:0])
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(input).dtype == torch.bfloat16
        deepcopy(layer).bfloat16()(input.bfloat16())
    assert not calls


def test_a_copy_multiplies_by_its_own_weights_and_a_second_attachment_changes_nothing(calls):
    layer = linear()
    other = deepcopy(layer)
    torch.nn.init.zeros_(other.weight)
    torch.nn.init.zeros_(other.bias)
    forward = layer.forward
    attach_products(layer)
    assert layer.forward is forward
    with torch.inference_mode():
        assert not other(torch.randn(20, 96)).any()
        assert layer(torch.randn(20, 96)).all()
    assert calls == [20, 20]


def test_compiled_layers_have_none(tmp_path):
    model = deepcopy(tiny.reward_model(tmp_path))
    linears = [module for module in model.backbone.model.modules() if isinstance(module, torch.nn.Linear)]
    assert linears
    assert all(isinstance(module.forward, Product) for module in linears)
    compile_layers(model.backbone, torch.float32)
    assert not any("forward" in vars(module) for module in linears)

"""Tree attention against ordinary runs of every sequence, for each family: scores and gradients."""

from __future__ import annotations

import random

import pytest
import torch
from support import tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForSequenceClassification

from polar_rm import attention
from polar_rm.attention import TreeLayout, TreeSpan, cpu
from polar_rm.attention.dense import dense_mask, tree_dense
from polar_rm.encoding.tree import PrefixTree
from polar_rm.model.packing import PackedRow, pack
from polar_rm.model.reward_model import RewardModel

attention.register()


def trees(k: int, *, seed: int = 0) -> list[PrefixTree]:
    """Trees of different lengths; some segments are longer than a block, some branches are a single token.

    The last tree is that of the turns of one conversation: its branches leave the prefix at different tokens.
    """
    rng = random.Random(seed)
    ids = lambda n: [rng.randrange(5, 300) for _ in range(n)]  # noqa: E731
    shapes = [(150, [40, 1, 140]), (1, [7, 3, 1]), (30, [20, 11, 2])]
    flat = [PrefixTree(ids(p), [ids(branches[i % 3] + i // 3) for i in range(k)], tuple(range(k))) for p, branches in shapes]
    conversation = ids(20 + 40 * k)
    turns = PrefixTree(ids(5), [[*conversation[: 20 + 40 * i], *ids(1 + i % 2)] for i in range(k)], tuple(range(k)))
    return [*flat, turns.nested()]


def build(family: str, implementation: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = tiny.config(family, num_labels=1, attn_implementation=implementation)
    return AutoModelForSequenceClassification.from_config(config).to(dtype)


def tree_scores(model: nn.Module, row: PackedRow) -> torch.Tensor:
    return RewardModel(model, None, {})(row)


def separate_scores(model: nn.Module, forest: list[PrefixTree]) -> torch.Tensor:
    sequences = [torch.tensor([tree.sequence(i)]) for tree in forest for i in range(len(tree.branches))]
    ends = torch.cat([model.model(ids, use_cache=False).last_hidden_state[:, -1] for ids in sequences])
    return model.score(ends.to(model.score.weight.dtype))[:, 0]


def gradients(model: nn.Module, scores: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(-1, 1, len(scores), dtype=scores.dtype)
    (scores * weights).sum().backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_scores_and_gradients_equal_separate_runs(family, k):
    forest = trees(k)
    exact_model = build(family, "eager", torch.float64)
    exact = separate_scores(exact_model, forest)
    exact_gradients = gradients(exact_model, exact)
    plain_model, tree_model = build(family, "eager"), build(family, "tree_cpu")
    plain, tree = separate_scores(plain_model, forest), tree_scores(tree_model, pack(forest))
    torch.testing.assert_close(tree, plain, rtol=1e-5, atol=1e-5)
    plain_error, tree_error = (
        (gradients(model, scores) - exact_gradients).norm() / exact_gradients.norm()
        for model, scores in ((plain_model, plain), (tree_model, tree))
    )
    assert tree_error < max(1.5 * plain_error, 1e-6)
    assert tree_error < 1e-5


@pytest.mark.parametrize("implementation", sorted(attention.IMPLEMENTATIONS.keys() - {"tree_cpu"}))
def test_other_implementations_have_the_same_scores(implementation):
    forest = trees(3)
    with torch.no_grad():
        expected = separate_scores(build("llama", "sdpa"), forest)
        torch.testing.assert_close(tree_scores(build("llama", implementation), pack(forest)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", sorted(attention.IMPLEMENTATIONS))
def test_the_scaling_of_a_model_is_its_own(implementation):
    """Granite's is a number of its config, not one over the root of the head's dimension."""
    forest, models = trees(2), [build("llama", name) for name in ("eager", implementation)]
    for layer in (layer for model in models for layer in model.model.layers):
        layer.self_attn.scaling = 0.5
    with torch.no_grad():
        expected, found = separate_scores(models[0], forest), tree_scores(models[1], pack(forest))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(separate_scores(build("llama", "eager"), forest), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_bf16_is_no_further_from_fp32_than_ordinary_bf16(family):
    forest = [tree for seed in range(4) for tree in trees(8, seed=seed)]
    with torch.no_grad():
        exact = separate_scores(build(family, "sdpa"), forest)
        ordinary = build(family, "eager", torch.bfloat16)
        ordinary.score.float()  # as ours is
        half = separate_scores(ordinary, forest)
        tree = tree_scores(build(family, "tree_cpu", torch.bfloat16), pack(forest))
    assert (tree - exact).norm() < 1.05 * (half - exact).norm()


def test_under_autocast_queries_and_keys_are_cast_to_the_type_of_the_values():
    """The backward runs outside autocast and must not get two types."""
    forest = trees(3)
    models = [build("llama", "sdpa"), build("llama", "eager"), build("llama", "tree_cpu")]
    scores = [separate_scores(models[0], forest)]
    with torch.autocast("cpu", torch.bfloat16):
        scores += [separate_scores(models[1], forest), tree_scores(models[2], pack(forest))]
    exact, half, tree = (gradients(model, each) for model, each in zip(models, scores, strict=True))
    assert (tree - exact).norm() < 1.5 * (half - exact).norm()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant):
    row = pack(trees(3))
    plain, checkpointed = build("llama", "tree_cpu"), build("llama", "tree_cpu").train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed.enable_input_require_grads()
    expected = gradients(plain, tree_scores(plain, row))
    torch.testing.assert_close(gradients(checkpointed, tree_scores(checkpointed, row)), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("keep", [0, 20_000])
def test_recomputed_probabilities_give_the_same_gradients(keep, monkeypatch):
    row = pack(trees(3))
    model = build("llama", "tree_cpu")
    expected = gradients(model, tree_scores(model, row))
    monkeypatch.setattr(cpu, "KEEP_BYTES", keep)
    again = build("llama", "tree_cpu")
    torch.testing.assert_close(gradients(again, tree_scores(again, row)), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_kept_probabilities_have_no_more_bytes_than_allowed(dtype, monkeypatch):
    monkeypatch.setattr(cpu, "KEEP_BYTES", 400)
    tree = TreeLayout((TreeSpan(0, 20, (10, 10)),)).tensors()
    query = torch.ones(1, 2, 40, 4, dtype=dtype, requires_grad=True)
    kept = []

    def note(tensor):
        kept.extend([tensor.nbytes] if tensor.dim() == 1 else [])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        cpu.tree_cpu(query, query, query, tree, 0.5)
    assert kept == [400]


@pytest.mark.parametrize("last", [False, True])
def test_gradcheck(last):
    tree = TreeLayout((TreeSpan(0, 3, (2, 1)), TreeSpan(6, 1, (2,)), TreeSpan(9, 3, (1, 2, 1), (1, 3, 2)))).tensors()
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 16, 4, dtype=torch.float64, generator=generator, requires_grad=True) for heads in (4, 2, 2)
    )
    assert torch.autograd.gradcheck(lambda q, k, v: cpu.tree_cpu(q, k, v, tree, 0.5, last), (query, key, value))


@pytest.mark.parametrize("last", [False, True])
def test_the_kernel_for_inference_gives_the_same(last):
    spans = (TreeSpan(0, 150, (300, 1, 129)), TreeSpan(580, 1, (128, 2)), TreeSpan(711, 140, (1, 130, 2), (129, 140, 7)))
    tree = TreeLayout(spans).tensors()
    n_tokens = len(tree.trees)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, n_tokens, 8, generator=generator) for heads in (6, 2, 2))
    rows = tree.scores if last else torch.arange(n_tokens)
    expected = cpu.tree_cpu(query, key, value, tree, 0.3, last)[:, :, rows]
    with torch.inference_mode():
        torch.testing.assert_close(cpu.tree_cpu(query, key, value, tree, 0.3, last)[:, :, rows], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_a_lone_query_is_as_exact_over_many_keys_as_many_queries(last, inference):
    """A turn's end in one pass, and each score in the last layer: with one row the library adds up the keys one after another."""
    tree = TreeLayout((TreeSpan(0, 6000, (1, 64)),)).tensors()
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 6065, 16, generator=generator) for heads in (4, 2, 2))
    value += 0.5  # else the sums stay near zero, and rounding is small
    ends = [6000, 6064]  # of the branches of one and of 64 tokens
    exact = cpu.tree_cpu(query.double(), key.double(), value.double(), tree, 0.25, last)[:, :, ends]
    with torch.inference_mode(inference):
        found = cpu.tree_cpu(query, key, value, tree, 0.25, last)[:, :, ends]
    assert ((found - exact)[0].norm(dim=(0, 2)) / exact[0].norm(dim=(0, 2))).max() < 5e-7


def test_the_products_stay_on_the_device_of_the_queries(monkeypatch):
    """A Mac's GPU has the CPU's attention. Fake tensors of another device refuse any tensor that is left on the CPU."""
    tree = TreeLayout((TreeSpan(0, 150, (300, 1)),)).tensors()
    segments = list(cpu._segments(tree.segments, False))
    monkeypatch.setattr(cpu, "_segments", lambda *_: iter(segments))
    with FakeTensorMode():
        query, key, value = (torch.empty(heads, 451, 8, device="meta") for heads in (4, 2, 2))
        with torch.inference_mode():
            output, kept = cpu._forward._init_fn(query, key, value, None, 0.3, False, 500)
        gradients = cpu._backward._init_fn(output, query, key, value, kept, None, 0.3, False)
    assert [(each.device.type, each.shape) for each in (output, *gradients)] == [
        ("meta", each.shape) for each in (query, query, key, value)
    ]
    assert cpu._causal(2, 1, torch.float32, torch.device("meta")).device.type == "meta"


def test_wrong_branch_mask_is_caught():
    """Branches that also attend to earlier branches: the first score stays right, the others must be far off."""
    forest = trees(3)[:1]
    row = pack(forest)
    [span] = row.layout.spans
    model = build("llama", "tree_cpu")
    leaky = TreeLayout((TreeSpan(0, span.prefix, (sum(span.branches),)),)).tensors()
    with torch.no_grad():
        expected = separate_scores(build("llama", "eager"), forest)
        hidden = model.model(row.ids, position_ids=row.tree.positions[None], use_cache=False, tree=leaky).last_hidden_state
        difference = (model.score(hidden[0, row.tree.scores])[:, 0] - expected).abs()
    assert difference[0] < 1e-5
    assert difference[1:].min() > 1e-3


def test_dense_mask_is_the_definition():
    mask = dense_mask(TreeLayout((TreeSpan(0, 2, (1, 2)), TreeSpan(5, 1, (1,)))).tensors())
    expected = ["1......", "11.....", "111....", "11.1...", "11.11..", ".....1.", ".....11"]
    assert ["".join("1" if seen else "." for seen in row) for row in mask.tolist()] == expected


def test_a_branch_sees_only_the_tokens_that_it_continues():
    mask = dense_mask(TreeLayout((TreeSpan(0, 3, (1, 2), (1, 2)),)).tensors())
    expected = ["1.....", "11....", "111...", "1..1..", "11..1.", "11..11"]
    assert ["".join("1" if seen else "." for seen in row) for row in mask.tolist()] == expected


def test_in_bf16_a_prefix_adds_up_its_branches_in_float32():
    """The gradient of a prefix with 64 branches is compared with float64, and with separate sequences, one for each branch, whose
    gradients are summed in float32."""
    span = TreeSpan(0, 20, (8,) * 64)
    tree = TreeLayout((span,)).tensors()
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, heads, span.n_tokens, 16, generator=generator).bfloat16() for heads in (4, 2, 2, 4)]
    *inputs, gradient = tensors
    gradient[:, :, : span.prefix] = 0

    def differentiated(attend, tensors, gradient):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        attend(*leaves).backward(gradient)
        return [leaf.grad.double() for leaf in leaves[1:]]

    def causal(query, key, value):
        return tree_dense(query, key, value, TreeLayout((TreeSpan(0, 1, (query.shape[2] - 1,)),)).tensors(), 0.3)

    exact = differentiated(lambda *t: tree_dense(*t, tree, 0.3), [t.double() for t in inputs], gradient.double())
    ours = differentiated(lambda *t: cpu.tree_cpu(*t, tree, 0.3), inputs, gradient)
    separate = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in inputs[1:]]
    for start, length in span.branch_starts():
        tokens = torch.tensor([*range(span.prefix), *range(start, start + length)])
        parts = differentiated(causal, [t[:, :, tokens] for t in inputs], gradient[:, :, tokens])
        for total, part in zip(separate, parts, strict=True):
            total[:, :, tokens] += part
    prefix = slice(0, span.prefix)
    for our, their, right in zip(ours, separate, exact, strict=True):
        our_error, their_error = ((each - right)[:, :, prefix].norm() for each in (our, their))
        # Our sum is rounded to bfloat16 once, at the end; the other sum is not rounded.
        rounding = (right.bfloat16().double() - right)[:, :, prefix].norm()
        assert our_error < 1.05 * (their_error**2 + rounding**2) ** 0.5

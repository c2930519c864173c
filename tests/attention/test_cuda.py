"""What runs on CUDA: its division into sequences, with the kernel spelt out; the kernels themselves where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from polar_rm.attention import IMPLEMENTATIONS, TreeLayout, TreeSpan, varlen
from polar_rm.attention.dense import tree_dense

LAYOUT = TreeLayout((TreeSpan(0, 150, (300, 1, 129)), TreeSpan(580, 1, (128, 2)), TreeSpan(711, 3, (1,))))
TREE = LAYOUT.tensors()
HEADS, KV_HEADS, DIM = 9, 3, 64  # a group that is no power of two
SCALE = 0.2

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def tensors(dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, heads, LAYOUT.n_tokens, DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [tensor.to(device, dtype).requires_grad_() for tensor in drawn]


def results(implementation, inputs: list[torch.Tensor], *further) -> list[torch.Tensor]:
    """Output and gradients, for a gradient that is not all of one sign."""
    output = implementation(*inputs, *further)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).sin().view(output.shape).to(output)
    output.backward(weights)
    return [output.detach(), *(tensor.grad for tensor in inputs)]


def error(found: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    pairs = [(a.double().cpu(), b.double().cpu()) for a, b in zip(found, exact, strict=True)]
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


def spelt_out(query, keys, values, query_ends, key_ends, most_queries, most_keys, dropout, causal, *rest, scale):
    """What the kernel does, for one sequence after another: the last query sees the last key. A query without keys gets zeros,
    and plus infinity as its log-sum-exp."""
    groups = query.shape[1] // keys.shape[1]
    outputs, sums = [], []
    for i in range(len(query_ends) - 1):
        q = query[query_ends[i] : query_ends[i + 1]].transpose(0, 1)
        k, v = (t[key_ends[i] : key_ends[i + 1]].transpose(0, 1).repeat_interleave(groups, 0) for t in (keys, values))
        assert q.shape[1] <= most_queries
        assert k.shape[1] <= most_keys
        seen = q @ k.transpose(1, 2) * scale
        if causal:
            seen = seen.masked_fill(torch.ones(seen.shape[1:], dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1]), -torch.inf)
        outputs.append((torch.softmax(seen, -1) @ v).transpose(0, 1))
        sums.append(torch.logsumexp(seen, -1) if k.shape[1] else torch.full(q.shape[:2], torch.inf, dtype=q.dtype))
    nothing = torch.empty(0)
    return torch.cat(outputs), torch.cat(sums, 1), nothing, nothing, nothing


def differentiated(
    gradient, query, keys, values, output, lse, query_ends, key_ends, most_queries, most_keys, dropout, causal, *rest, scale
):
    """What the kernel's backward does, by the output and the log-sum-exps that it is given."""
    groups = query.shape[1] // keys.shape[1]
    d_query, d_keys, d_values = (torch.zeros_like(tensor) for tensor in (query, keys, values))
    for i in range(len(query_ends) - 1):
        rows, columns = slice(query_ends[i], query_ends[i + 1]), slice(key_ends[i], key_ends[i + 1])
        q, d_out, out = (tensor[rows].transpose(0, 1) for tensor in (query, gradient, output))
        k, v = (tensor[columns].transpose(0, 1).repeat_interleave(groups, 0) for tensor in (keys, values))
        seen = q @ k.transpose(1, 2) * scale
        if causal:
            seen = seen.masked_fill(torch.ones(seen.shape[1:], dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1]), -torch.inf)
        p = torch.exp(seen - lse[:, rows, None])
        d_seen = p * (d_out @ v.transpose(1, 2) - (d_out * out).sum(-1, keepdim=True)) * scale
        d_query[rows] = (d_seen @ k).transpose(0, 1)
        for target, found in ((d_keys, d_seen.transpose(1, 2) @ q), (d_values, p.transpose(1, 2) @ d_out)):
            target[columns] = found.view(keys.shape[1], groups, *found.shape[1:]).sum(1).transpose(0, 1)
    return d_query, d_keys, d_values


@pytest.mark.parametrize("last", [False, True])
def test_division_into_sequences(monkeypatch, last):
    monkeypatch.setattr(varlen, "_flash", spelt_out)
    monkeypatch.setattr(varlen, "_flash_backward", differentiated)

    def divided(*inputs):
        by_token = (tensor[0].transpose(0, 1) for tensor in inputs)
        return varlen._by_token(*by_token, TREE, SCALE, last).transpose(0, 1)[None]

    def oracle(*inputs):
        output = tree_dense(*inputs, TREE, SCALE)
        return torch.zeros_like(output).index_copy(2, TREE.scores, output[:, :, TREE.scores]) if last else output

    expected = results(oracle, tensors(torch.float64, "cpu"))
    # The sums over branches are float32.
    assert max(error(results(divided, tensors(torch.float64, "cpu")), expected)) < 1e-6


def test_single_queries_are_not_taken_for_decoding():
    """For which the kernel has no backward."""
    single = TreeLayout((TreeSpan(0, 1, (1, 1)),)).tensors()
    assert single.most.tolist() == [2, 1]
    assert single.tree_most.tolist() == [2, 1]
    assert TREE.score_most.tolist() == [2, 450]


@needs_gpu
@pytest.mark.parametrize("name", ["tree_varlen", "tree_flex"])
def test_gpu_float32_equals_the_oracle(name):
    expected = results(tree_dense, tensors(torch.float64, "cpu"), TREE, SCALE)
    assert (
        max(error(results(IMPLEMENTATIONS[name], tensors(torch.float32, "cuda"), TREE.to(torch.device("cuda")), SCALE), expected))
        < 1e-5
    )


@needs_gpu
@pytest.mark.parametrize("name", ["tree_varlen", "tree_flex"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gpu_half_precision_is_no_further_off_than_the_oracle(name, dtype):
    exact = results(tree_dense, [t.detach().double().cpu().requires_grad_() for t in tensors(dtype, "cuda")], TREE, SCALE)
    plain = error(results(tree_dense, tensors(dtype, "cuda"), TREE.to(torch.device("cuda")), SCALE), exact)
    found = error(results(IMPLEMENTATIONS[name], tensors(dtype, "cuda"), TREE.to(torch.device("cuda")), SCALE), exact)
    assert all(mine < 1.5 * theirs for mine, theirs in zip(found, plain, strict=True)), (found, plain)


@needs_gpu
@pytest.mark.parametrize("name", ["tree_varlen", "tree_flex"])
def test_gpu_rows_of_any_length(name):
    """One row after another, as in training: nothing of an earlier row is left."""
    for number in range(12):
        layout = TreeLayout((TreeSpan(0, 3 + 7 * number, (1 + 40 * number, 2)), TreeSpan(6 + 47 * number, 1, (1,))))
        tree = layout.tensors(number % 3).to(torch.device("cuda"))
        shapes = [(1, heads, len(tree.trees), DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
        mine = results(IMPLEMENTATIONS[name], [t.clone().requires_grad_() for t in inputs], tree, SCALE)
        exact = results(tree_dense, [t.double().requires_grad_() for t in inputs], tree, SCALE)
        assert max(error(mine, exact)) < 2e-2


@needs_gpu
@pytest.mark.parametrize("spans", [(TreeSpan(0, 1, (1, 1)),), LAYOUT.spans])
def test_gpu_queries_at_score_positions_alone(spans):
    """As in a last layer: one query a branch, forwards and backwards. The first layout has no longer segment either."""
    tree = TreeLayout(spans).tensors().to(torch.device("cuda"))
    shapes = [(1, heads, len(tree.trees), DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]

    def at_scores(attention, tensors, *further):
        tensors = [t.clone().requires_grad_() for t in tensors]
        output = attention(*tensors, tree, SCALE, *further)[:, :, tree.scores]
        output.backward(torch.ones_like(output))
        return [output.detach(), *(t.grad for t in tensors)]

    for last in (False, True):
        mine = at_scores(IMPLEMENTATIONS["tree_varlen"], inputs, last)
        assert max(error(mine, at_scores(tree_dense, [t.double() for t in inputs]))) < 2e-2

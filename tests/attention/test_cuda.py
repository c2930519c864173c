"""What runs on CUDA: its division into sequences, with the kernel spelt out; the kernels themselves where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from polar_rm.attention import IMPLEMENTATIONS, TreeLayout, TreeSpan, varlen
from polar_rm.attention.dense import tree_dense

LAYOUT = TreeLayout((TreeSpan(0, 150, (300, 1, 129)), TreeSpan(580, 1, (128, 2)), TreeSpan(711, 3, (1,))))
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


def spelt_out(query, keys, values, query_ends, key_ends, most_queries, most_keys, dropout, causal, *, scale):
    """What the kernel does, for one sequence after another: the last query sees the last key."""
    assert (dropout, causal) == (0.0, True)
    groups = query.shape[1] // keys.shape[1]
    parts = []
    for i in range(len(query_ends) - 1):
        q = query[query_ends[i] : query_ends[i + 1]].transpose(0, 1)
        k, v = (t[key_ends[i] : key_ends[i + 1]].transpose(0, 1).repeat_interleave(groups, 0) for t in (keys, values))
        assert q.shape[1] <= most_queries
        assert k.shape[1] <= most_keys
        hidden = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1])
        parts.append((torch.softmax((q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf), -1) @ v).transpose(0, 1))
    return torch.cat(parts)


def test_division_into_sequences(monkeypatch):
    def forward(query, keys, values, *rest, scale):
        *shape, debug = rest
        assert debug is False
        return spelt_out(query, keys, values, *shape, scale=scale), torch.empty(0), torch.empty(0), torch.empty(0), torch.empty(0)

    def backward(gradient, query, keys, values, output, log_sum_exp, *rest, scale):
        *shape, _, _ = rest
        with torch.enable_grad():
            inputs = [tensor.detach().requires_grad_() for tensor in (query, keys, values)]
            return torch.autograd.grad(spelt_out(*inputs, *shape, scale=scale), inputs, gradient)

    monkeypatch.setattr(varlen, "_forward", forward)
    monkeypatch.setattr(varlen, "_backward", backward)
    row = varlen.sequences(LAYOUT, torch.device("cpu"))

    def divided(*inputs):
        by_token = (tensor[0].transpose(0, 1) for tensor in inputs)
        return varlen._VarlenAttention.apply(*by_token, row, SCALE).transpose(0, 1)[None]

    expected = results(tree_dense, tensors(torch.float64, "cpu"), LAYOUT, SCALE)
    # The sums over branches are float32.
    assert max(error(results(divided, tensors(torch.float64, "cpu")), expected)) < 1e-6


@needs_gpu
@pytest.mark.parametrize("name", ["tree_varlen", "tree_flex"])
def test_gpu_float32_equals_the_oracle(name):
    expected = results(tree_dense, tensors(torch.float64, "cpu"), LAYOUT, SCALE)
    assert max(error(results(IMPLEMENTATIONS[name], tensors(torch.float32, "cuda"), LAYOUT, SCALE), expected)) < 1e-5


@needs_gpu
@pytest.mark.parametrize("name", ["tree_varlen", "tree_flex"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gpu_half_precision_is_no_further_off_than_the_oracle(name, dtype):
    exact = results(tree_dense, [t.detach().double().cpu().requires_grad_() for t in tensors(dtype, "cuda")], LAYOUT, SCALE)
    plain = error(results(tree_dense, tensors(dtype, "cuda"), LAYOUT, SCALE), exact)
    found = error(results(IMPLEMENTATIONS[name], tensors(dtype, "cuda"), LAYOUT, SCALE), exact)
    assert all(mine < 1.5 * theirs for mine, theirs in zip(found, plain, strict=True)), (found, plain)


@needs_gpu
@pytest.mark.parametrize("name", ["tree_varlen", "tree_flex"])
def test_gpu_rows_of_any_length(name):
    """One row after another, as in training: nothing of an earlier row is left."""
    for number in range(12):
        layout = TreeLayout((TreeSpan(0, 3 + 7 * number, (1 + 40 * number, 2)), TreeSpan(6 + 47 * number, 1, (1,))))
        shapes = [(1, heads, layout.n_tokens, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
        mine = results(IMPLEMENTATIONS[name], [t.clone().requires_grad_() for t in inputs], layout, SCALE)
        exact = results(tree_dense, [t.double().requires_grad_() for t in inputs], layout, SCALE)
        assert max(error(mine, exact)) < 2e-2

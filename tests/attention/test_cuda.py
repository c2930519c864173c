"""Tree attention on CUDA: the division into sequences, with the kernel replaced by plain code; and the kernels, on a GPU."""

from __future__ import annotations

import os

import pytest
import torch

from polar_rm.attention import IMPLEMENTATIONS, TreeLayout, TreeSpan, varlen
from polar_rm.attention.dense import tree_dense

LAYOUT = TreeLayout(
    (
        TreeSpan(0, 150, (300, 1, 129)),
        TreeSpan(580, 1, (128, 2)),
        TreeSpan(711, 3, (1,)),
        TreeSpan(715, 140, (1, 130, 2), (129, 140, 7)),  # turns of a conversation: each leaves the prefix at another token
    )
)
TREE = LAYOUT.tensors()
HEADS, KV_HEADS, DIM = 9, 3, 64  # a group size that is not a power of two
SCALE = 0.2

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module", autouse=True)
def other_kernel():
    """``FLASH_ATTENTION=FA4 pytest tests/attention/test_cuda.py`` tests our operators over another kernel of torch."""
    if name := os.environ.get("FLASH_ATTENTION"):
        torch.nn.attention.activate_flash_attention_impl(name)
        yield
        torch.nn.attention.restore_flash_attention_impl()
    else:
        yield


def tensors(dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, LAYOUT.n_tokens, DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [tensor.to(device, dtype).requires_grad_() for tensor in inputs]


def results(implementation, inputs: list[torch.Tensor], *arguments) -> list[torch.Tensor]:
    """The output and the gradients of the inputs, for an output gradient with both signs."""
    output = implementation(*inputs, *arguments)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).sin().view(output.shape).to(output)
    output.backward(weights)
    return [output.detach(), *(tensor.grad for tensor in inputs)]


def error(tensors: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    pairs = [(a.double().cpu(), b.double().cpu()) for a, b in zip(tensors, exact, strict=True)]
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


def plain_kernel(query, keys, values, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout, causal, *rest, scale):
    """The kernel's result, computed for one sequence after another: the last query attends to the last key.

    A query without keys gets zeros, and plus infinity as its log-sum-exp.
    """
    groups = query.shape[1] // keys.shape[1]
    outputs, sums = [], []
    for i in range(len(cu_seqlens_q) - 1):
        q = query[cu_seqlens_q[i] : cu_seqlens_q[i + 1]].transpose(0, 1)
        k, v = (t[cu_seqlens_k[i] : cu_seqlens_k[i + 1]].transpose(0, 1).repeat_interleave(groups, 0) for t in (keys, values))
        assert q.shape[1] <= max_seqlen_q
        assert k.shape[1] <= max_seqlen_k
        scores = q @ k.transpose(1, 2) * scale
        if causal:
            future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1])
            scores = scores.masked_fill(future, -torch.inf)
        outputs.append((torch.softmax(scores, -1) @ v).transpose(0, 1))
        sums.append(torch.logsumexp(scores, -1) if k.shape[1] else torch.full(q.shape[:2], torch.inf, dtype=q.dtype))
    unused = torch.empty(0)
    return torch.cat(outputs), torch.cat(sums, 1), unused, unused, unused


def plain_backward(
    gradient,
    query,
    keys,
    values,
    output,
    lse,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout,
    causal,
    *rest,
    scale,
):
    """The result of the kernel's backward, computed from the output and the log-sum-exps."""
    groups = query.shape[1] // keys.shape[1]
    d_query, d_keys, d_values = (torch.zeros_like(tensor) for tensor in (query, keys, values))
    for i in range(len(cu_seqlens_q) - 1):
        rows, columns = slice(cu_seqlens_q[i], cu_seqlens_q[i + 1]), slice(cu_seqlens_k[i], cu_seqlens_k[i + 1])
        q, d_out, out = (tensor[rows].transpose(0, 1) for tensor in (query, gradient, output))
        k, v = (tensor[columns].transpose(0, 1).repeat_interleave(groups, 0) for tensor in (keys, values))
        scores = q @ k.transpose(1, 2) * scale
        if causal:
            future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1])
            scores = scores.masked_fill(future, -torch.inf)
        p = torch.exp(scores - lse[:, rows, None])
        d_scores = p * (d_out @ v.transpose(1, 2) - (d_out * out).sum(-1, keepdim=True)) * scale
        d_query[rows] = (d_scores @ k).transpose(0, 1)
        for target, per_head in ((d_keys, d_scores.transpose(1, 2) @ q), (d_values, p.transpose(1, 2) @ d_out)):
            target[columns] = per_head.view(keys.shape[1], groups, *per_head.shape[1:]).sum(1).transpose(0, 1)
    return d_query, d_keys, d_values


@pytest.mark.parametrize("last", [False, True])
def test_division_into_sequences(monkeypatch, last):
    monkeypatch.setattr(varlen, "_flash", plain_kernel)
    monkeypatch.setattr(varlen, "_flash_backward", plain_backward)

    def divided(*inputs):
        by_token = (tensor[0].transpose(0, 1) for tensor in inputs)
        return varlen._by_token(*by_token, TREE, SCALE, last).transpose(0, 1)[None]

    def oracle(*inputs):
        output = tree_dense(*inputs, TREE, SCALE)
        return torch.zeros_like(output).index_copy(2, TREE.scores, output[:, :, TREE.scores]) if last else output

    expected = results(oracle, tensors(torch.float64, "cpu"))
    # The sums over branches are float32.
    assert max(error(results(divided, tensors(torch.float64, "cpu")), expected)) < 1e-6


def test_single_queries_do_not_take_the_decoding_path():
    """That path of the kernel has no backward."""
    single = TreeLayout((TreeSpan(0, 1, (1, 1)),)).tensors()
    assert single.max_seqlens.tolist() == [2, 1]
    assert single.prefix_max_seqlens.tolist() == [2, 1]
    assert TREE.score_max_seqlens.tolist() == [2, 450]


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
def test_gpu_half_precision_has_no_larger_error_than_the_oracle(name, dtype):
    exact = results(tree_dense, [t.detach().double().cpu().requires_grad_() for t in tensors(dtype, "cuda")], TREE, SCALE)
    plain = error(results(tree_dense, tensors(dtype, "cuda"), TREE.to(torch.device("cuda")), SCALE), exact)
    ours = error(results(IMPLEMENTATIONS[name], tensors(dtype, "cuda"), TREE.to(torch.device("cuda")), SCALE), exact)
    assert all(our < 1.5 * their for our, their in zip(ours, plain, strict=True)), (ours, plain)


@needs_gpu
@pytest.mark.parametrize("name", ["tree_varlen", "tree_flex"])
def test_gpu_rows_of_any_length(name):
    """One row after another, as in training: an earlier row has no influence."""
    for number in range(12):
        layout = TreeLayout((TreeSpan(0, 3 + 7 * number, (1 + 40 * number, 2)), TreeSpan(6 + 47 * number, 1, (1,))))
        tree = layout.tensors(number % 3).to(torch.device("cuda"))
        shapes = [(1, heads, len(tree.trees), DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
        ours = results(IMPLEMENTATIONS[name], [t.clone().requires_grad_() for t in inputs], tree, SCALE)
        exact = results(tree_dense, [t.double().requires_grad_() for t in inputs], tree, SCALE)
        assert max(error(ours, exact)) < 2e-2


@needs_gpu
@pytest.mark.parametrize("spans", [(TreeSpan(0, 1, (1, 1)),), LAYOUT.spans])
def test_gpu_queries_at_score_positions_only(spans):
    """A last layer has one query a branch, forwards and backwards. In the first layout all segments are single tokens, too."""
    tree = TreeLayout(spans).tensors().to(torch.device("cuda"))
    shapes = [(1, heads, len(tree.trees), DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]

    def at_scores(attention, tensors, *arguments):
        tensors = [t.clone().requires_grad_() for t in tensors]
        output = attention(*tensors, tree, SCALE, *arguments)[:, :, tree.scores]
        output.backward(torch.ones_like(output))
        return [output.detach(), *(t.grad for t in tensors)]

    for last in (False, True):
        ours = at_scores(IMPLEMENTATIONS["tree_varlen"], inputs, last)
        assert max(error(ours, at_scores(tree_dense, [t.double() for t in inputs]))) < 2e-2

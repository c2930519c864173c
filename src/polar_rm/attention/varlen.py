"""Tree attention on CUDA in half precision: torch's flash kernel for sequences of different lengths, in two passes.

Every segment (a prefix or a branch) attends to itself causally, and all branches of a tree attend to its prefix. Each of the
two is one call of the kernel. In the first a sequence is a segment. In the second a sequence has all branches of a tree as its
queries and the prefix as its keys; the prefixes, which stand between the branches of two trees, are queries without any keys.
So each prefix is gathered once and nothing else is, and the kernel adds up in float32 the gradients that a prefix collects from
its branches. The two outputs are merged by their log-sum-exps. The backward calls the kernel's backward with the merged output
and log-sum-exps in both passes, which is exact.

In a last layer the last token of each branch is its only query. That is one call with gathered keys, because the kernel aligns
its causal mask with the ends of queries and keys.

The calls and their backwards are custom operators of PyTorch, so that a layer around them compiles.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from polar_rm.attention.flex import tree_flex
from polar_rm.attention.layout import TreeTensors

# The public torch.nn.attention.varlen wraps these two operators, but its arguments change from release to release.
_flash = torch.ops.aten._flash_attention_forward
_flash_backward = torch.ops.aten._flash_attention_backward

# Arguments as in TreeTensors; _SCORES takes score_keys, score_cu_seqlens_q, score_cu_seqlens_k, score_max_seqlens.
_PASSES = (
    "Tensor cu_seqlens, Tensor max_seqlens, "
    "Tensor prefix_indices, Tensor prefix_cu_seqlens_q, Tensor prefix_cu_seqlens_k, Tensor prefix_max_seqlens"
)
_SCORES = "Tensor keys, Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor max_seqlens"
_GRADIENT = "Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse"


# fused: merge the two passes by compiled code.
@torch.library.custom_op(
    "polar::tree_varlen",
    mutates_args=(),
    schema=f"(Tensor query, Tensor key, Tensor value, {_PASSES}, float scale, bool fused) -> (Tensor, Tensor)",
)
def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlens: torch.Tensor,
    prefix_indices: torch.Tensor,
    prefix_cu_seqlens_q: torch.Tensor,
    prefix_cu_seqlens_k: torch.Tensor,
    prefix_max_seqlens: torch.Tensor,
    scale: float,
    fused: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [T, heads, dim], key and value [T, kv_heads, dim] -> [T, heads, dim], and the log-sum-exps, float32 [heads, T]"""
    segments = (cu_seqlens, cu_seqlens, *max_seqlens.tolist())
    first, first_lse, *_ = _flash(query, key, value, *segments, 0.0, True, False, scale=scale)
    shared = (prefix_cu_seqlens_q, prefix_cu_seqlens_k, *prefix_max_seqlens.tolist())
    second, second_lse, *_ = _flash(query, key[prefix_indices], value[prefix_indices], *shared, 0.0, False, False, scale=scale)
    return (_fused_merge() if fused else _merge)(first, first_lse, second, second_lse)


def _merge(
    first: torch.Tensor, first_lse: torch.Tensor, second: torch.Tensor, second_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention over two parts of the keys, merged.

    Outputs are [T, heads, dim]. Log-sum-exps are [heads, T], with plus infinity where a query has no keys in the second part.
    """
    second_lse = torch.where(second_lse == torch.inf, -torch.inf, second_lse)
    lse = torch.logaddexp(first_lse, second_lse)
    weight = torch.exp(second_lse - lse).T[:, :, None]
    merge_dtype = torch.promote_types(first.dtype, torch.float32)
    output = first + weight * (second.to(merge_dtype) - first)
    return output.to(first.dtype).contiguous(), lse.contiguous()


@cache
def _fused_merge() -> Any:
    return torch.compile(_merge, dynamic=True)


@torch.library.custom_op(
    "polar::tree_varlen_backward",
    mutates_args=(),
    schema=f"({_GRADIENT}, {_PASSES}, float scale) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlens: torch.Tensor,
    prefix_indices: torch.Tensor,
    prefix_cu_seqlens_q: torch.Tensor,
    prefix_cu_seqlens_k: torch.Tensor,
    prefix_max_seqlens: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    segments = (cu_seqlens, cu_seqlens, *max_seqlens.tolist())
    no_dropout = _no_dropout(key.device)
    d_query, d_key, d_value = _flash_backward(
        gradient, query, key, value, output, lse, *segments, 0.0, True, *no_dropout, scale=scale
    )
    shared = (prefix_cu_seqlens_q, prefix_cu_seqlens_k, *prefix_max_seqlens.tolist())
    d_query_shared, d_keys, d_values = _flash_backward(
        gradient, query, key[prefix_indices], value[prefix_indices], output, lse, *shared, 0.0, False, *no_dropout, scale=scale
    )
    d_key.index_add_(0, prefix_indices, d_keys)
    d_value.index_add_(0, prefix_indices, d_values)
    return d_query.add_(d_query_shared).contiguous(), d_key.contiguous(), d_value.contiguous()


@torch.library.custom_op(
    "polar::tree_scores",
    mutates_args=(),
    schema=f"(Tensor query, Tensor key, Tensor value, {_SCORES}, float scale) -> (Tensor, Tensor)",
)
def _scores_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlens: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [candidates, heads, dim], key and value [T, kv_heads, dim] -> [candidates, heads, dim], and log-sum-exps, float32
    [heads, candidates]"""
    sequences = (cu_seqlens_q, cu_seqlens_k, *max_seqlens.tolist())
    output, lse, *_ = _flash(query, key[keys], value[keys], *sequences, 0.0, True, False, scale=scale)
    return output.contiguous(), lse


@torch.library.custom_op(
    "polar::tree_scores_backward",
    mutates_args=(),
    schema=f"({_GRADIENT}, {_SCORES}, float scale) -> (Tensor, Tensor, Tensor)",
)
def _scores_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    keys: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlens: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sequences = (cu_seqlens_q, cu_seqlens_k, *max_seqlens.tolist())
    d_query, *d_gathered = _flash_backward(
        gradient, query, key[keys], value[keys], output, lse, *sequences, 0.0, True, *_no_dropout(key.device), scale=scale
    )
    # A prefix collects the gradients of all its branches, in float32.
    d_key, d_value = (
        torch.zeros(key.shape, dtype=torch.float32, device=key.device).index_add_(0, keys, part.float()).to(key.dtype)
        for part in d_gathered
    )
    return d_query.contiguous(), d_key, d_value


def _no_dropout(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """An RNG state for the kernel, which it does not read without dropout."""
    return torch.zeros(2, dtype=torch.uint64, device=device), torch.empty(0, device=device)


def _output_shapes(query: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    n_queries, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((heads, n_queries), dtype=torch.float32)


def _gradient_shapes(gradient: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in rest[:3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, *indices = inputs
    ctx.scale = next(value for value in indices if not isinstance(value, torch.Tensor | bool))
    ctx.n_inputs = len(inputs)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, *output, *(index for index in indices if isinstance(index, torch.Tensor)))


def _differentiate(backward: Any) -> Any:
    def differentiate(ctx: Any, gradient: torch.Tensor | None, _: None) -> tuple[torch.Tensor | None, ...]:
        if gradient is None:
            return (None,) * int(ctx.n_inputs)
        gradients: tuple[torch.Tensor, ...] = backward(gradient, *ctx.saved_tensors, ctx.scale)
        return *gradients, *(None,) * (int(ctx.n_inputs) - 3)

    return differentiate


for _operator, _its_backward in ((_forward, _backward), (_scores_forward, _scores_backward)):
    _operator.register_fake(_output_shapes)
    _its_backward.register_fake(_gradient_shapes)
    _operator.register_autograd(_differentiate(_its_backward), setup_context=_save)


def has_flash_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the flash kernel supports a device and a type: bfloat16 and float16, on GPUs since Ampere."""
    return device.type == "cuda" and dtype.itemsize == 2 and torch.cuda.get_device_capability(device) >= (8, 0)


def tree_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeTensors, scale: float, scores_only: bool = False
) -> torch.Tensor:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] -> [1, heads, T, dim], differentiable.

    Without a flash kernel for the device and type, :func:`tree_flex` computes everything.
    """
    # Layers are compiled only where there is a kernel, see `compiles`.
    if not torch.compiler.is_compiling() and not has_flash_kernel(value.device, value.dtype):
        return tree_flex(query, key, value, tree, scale)
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return _by_token(queries, keys, values, tree, scale, scores_only).transpose(0, 1)[None]


def _by_token(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeTensors, scale: float, scores_only: bool = False
) -> torch.Tensor:
    """query [T, heads, dim], key and value [T, kv_heads, dim] -> [T, heads, dim]"""
    if scores_only:
        sequences = tree.score_keys, tree.score_cu_seqlens_q, tree.score_cu_seqlens_k, tree.score_max_seqlens
        output = _scores_forward(query[tree.scores], key, value, *sequences, scale)[0]
        return query.new_zeros(query.shape).index_copy(0, tree.scores, output)
    shared = tree.prefix_indices, tree.prefix_cu_seqlens_q, tree.prefix_cu_seqlens_k, tree.prefix_max_seqlens
    fused = torch.compiler.is_compiling()
    result: torch.Tensor = _forward(query, key, value, tree.cu_seqlens, tree.max_seqlens, *shared, scale, fused)[0]
    return result

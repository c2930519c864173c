"""Tree attention on CUDA in half precision: torch's flash kernel for sequences of different lengths, in two passes.

Every segment (a prefix or a branch) sees itself causally, and all branches of a tree see its prefix. Each is one call: in the
first a sequence is a segment, in the second all branches of a tree are the queries and its prefix the keys, where the prefixes
themselves, which stand between the branches of two trees, are queries without any key. So nothing is gathered but each prefix
once, and the kernel adds up what a prefix collects from its branches, in float32. The two outputs are merged by their
log-sum-exps. The backward calls the kernel's with the output and the log-sum-exps of both passes, which is exact.

In a last layer the last token of each branch is its one query. That is one call, whose keys are gathered: the kernel aligns its
causal mask with the ends of queries and keys.

Calls and backwards are operators of torch, so that a layer around them compiles.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from polar_rm.attention.flex import tree_flex
from polar_rm.attention.layout import TreeTensors

# The public torch.nn.attention.varlen is this pair of operators, with arguments that change from release to release.
_flash = torch.ops.aten._flash_attention_forward
_flash_backward = torch.ops.aten._flash_attention_backward

# As in TreeTensors. At score positions: score_keys, score_ends, score_key_ends, score_most.
_PASSES = "Tensor ends, Tensor most, Tensor prefixes, Tensor tree_query_ends, Tensor tree_key_ends, Tensor tree_most"
_SCORES = "Tensor keys, Tensor query_ends, Tensor key_ends, Tensor most"
_GRADIENT = "Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse"


# fused: with a compiled merge.
@torch.library.custom_op(
    "polar::tree_varlen",
    mutates_args=(),
    schema=f"(Tensor query, Tensor key, Tensor value, {_PASSES}, float scale, bool fused) -> (Tensor, Tensor)",
)
def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    most: torch.Tensor,
    prefixes: torch.Tensor,
    tree_query_ends: torch.Tensor,
    tree_key_ends: torch.Tensor,
    tree_most: torch.Tensor,
    scale: float,
    fused: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [T, heads, dim], key and value [T, kv_heads, dim] -> [T, heads, dim], and the log-sum-exps, float32 [heads, T]"""
    own = (ends, ends, *most.tolist())
    first, first_lse, *_ = _flash(query, key, value, *own, 0.0, True, False, scale=scale)
    shared = (tree_query_ends, tree_key_ends, *tree_most.tolist())
    second, second_lse, *_ = _flash(query, key[prefixes], value[prefixes], *shared, 0.0, False, False, scale=scale)
    return (_fused_merge() if fused else _merge)(first, first_lse, second, second_lse)


def _merge(
    first: torch.Tensor, first_lse: torch.Tensor, second: torch.Tensor, second_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax over two parts of the keys. Outputs [T, heads, dim]; log-sum-exps [heads, T], plus infinity where a query has
    no keys in the second part."""
    second_lse = torch.where(second_lse == torch.inf, -torch.inf, second_lse)
    lse = torch.logaddexp(first_lse, second_lse)
    share = torch.exp(second_lse - lse).T[:, :, None]
    exact = torch.promote_types(first.dtype, torch.float32)
    output = first + share * (second.to(exact) - first)
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
    ends: torch.Tensor,
    most: torch.Tensor,
    prefixes: torch.Tensor,
    tree_query_ends: torch.Tensor,
    tree_key_ends: torch.Tensor,
    tree_most: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    own = (ends, ends, *most.tolist())
    no_dropout = _no_dropout(key.device)
    d_query, d_key, d_value = _flash_backward(gradient, query, key, value, output, lse, *own, 0.0, True, *no_dropout, scale=scale)
    shared = (tree_query_ends, tree_key_ends, *tree_most.tolist())
    d_query_shared, d_keys, d_values = _flash_backward(
        gradient, query, key[prefixes], value[prefixes], output, lse, *shared, 0.0, False, *no_dropout, scale=scale
    )
    d_key.index_add_(0, prefixes, d_keys)
    d_value.index_add_(0, prefixes, d_values)
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
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    most: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """query [candidates, heads, dim], key and value [T, kv_heads, dim] -> [candidates, heads, dim], and the log-sum-exps"""
    sequences = (query_ends, key_ends, *most.tolist())
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
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    most: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sequences = (query_ends, key_ends, *most.tolist())
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
    """A state that is not read."""
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


for _one, _other in ((_forward, _backward), (_scores_forward, _scores_backward)):
    _one.register_fake(_output_shapes)
    _other.register_fake(_gradient_shapes)
    _one.register_autograd(_differentiate(_other), setup_context=_save)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """It knows bfloat16 and float16, on GPUs from Ampere on."""
    return device.type == "cuda" and dtype.itemsize == 2 and torch.cuda.get_device_capability(device) >= (8, 0)


def tree_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeTensors, scale: float, scores_only: bool = False
) -> torch.Tensor:
    """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] -> [1, heads, T, dim], differentiable.

    Where the kernel does not go, all is done by :func:`tree_flex`.
    """
    # Compiled layers are only made where there is a kernel.
    if not torch.compiler.is_compiling() and not has_kernel(value.device, value.dtype):
        return tree_flex(query, key, value, tree, scale)
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return _by_token(queries, keys, values, tree, scale, scores_only).transpose(0, 1)[None]


def _by_token(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: TreeTensors, scale: float, scores_only: bool = False
) -> torch.Tensor:
    """query [T, heads, dim], key and value [T, kv_heads, dim] -> [T, heads, dim]"""
    if scores_only:
        sequences = tree.score_keys, tree.score_ends, tree.score_key_ends, tree.score_most
        output = _scores_forward(query[tree.scores], key, value, *sequences, scale)[0]
        return query.new_zeros(query.shape).index_copy(0, tree.scores, output)
    passes = tree.ends, tree.most, tree.prefixes, tree.tree_query_ends, tree.tree_key_ends, tree.tree_most
    whole: torch.Tensor = _forward(query, key, value, *passes, scale, torch.compiler.is_compiling())[0]
    return whole

"""Attention over prefix trees, as attention implementations of transformers.

The forward of a model loaded with ``attn_implementation="tree_cpu"`` takes the row's :class:`TreeTensors` as the keyword argument
``tree``, which stock backbones pass to every attention layer. Nothing is patched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from polar_rm.attention.cpu import tree_cpu
from polar_rm.attention.dense import tree_dense
from polar_rm.attention.flex import tree_flex
from polar_rm.attention.layout import TreeLayout, TreeSpan, TreeTensors
from polar_rm.attention.prefixes import RowPrefixes
from polar_rm.attention.varlen import has_flash_kernel, tree_varlen
from polar_rm.errors import PolarError, UnsupportedModel

__all__ = ["IMPLEMENTATIONS", "TreeLayout", "TreeSpan", "TreeTensors", "compiles", "default_attention", "register"]

# (query, key, value, tree, scale, scores_only). scores_only: only the queries at score positions matter, as in a last layer. An
# implementation may skip the other queries and return any finite values for them.
Implementation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, TreeTensors, float, bool], torch.Tensor]

IMPLEMENTATIONS: dict[str, Implementation] = {
    "tree_cpu": tree_cpu,
    "tree_varlen": tree_varlen,
    "tree_flex": tree_flex,
    "tree_dense": tree_dense,
}


def register() -> None:
    """Register the implementations with transformers; calling it again changes nothing."""
    for name, implementation in IMPLEMENTATIONS.items():
        AttentionInterface.register(name, _adapter(implementation))
        AttentionMaskInterface.register(name, _no_mask)  # the tree's layout is the mask


def default_attention(device: torch.device) -> str:
    """The fast implementation for a device."""
    return "tree_varlen" if device.type == "cuda" else "tree_cpu"


def compiles(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a layer with this attention compiles to one graph for all rows. FlexAttention's block mask does not allow it, and
    compilation for a Mac's GPU is too young."""
    if device.type == "mps":
        return False
    return has_flash_kernel(device, dtype) if name == "tree_varlen" else name in ("tree_cpu", "tree_dense")


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def _adapter(implementation: Implementation) -> Callable[..., tuple[torch.Tensor, None]]:
    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        tree: TreeTensors | None = None,
        scores_only: bool = False,
        prefixes: RowPrefixes | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """query [1, heads, T, dim] -> [1, T, heads, dim], the layout that transformers expects."""
        if tree is None:
            raise PolarError("tree attention was called without a tree: pass tree=TreeTensors to the model's forward")
        if query.shape[0] != 1 or query.shape[2] != len(tree.trees):
            raise PolarError(f"a packed row is [1, {len(tree.trees)}], but the model got {[*query.shape[::2]]}")
        if kwargs.get("sliding_window") is not None:
            raise UnsupportedModel("prefix trees need full causal attention, but this layer has a sliding window")
        if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
            raise UnsupportedModel("prefix trees need plain softmax attention, but this layer caps its logits or adds sinks")
        if not getattr(module, "is_causal", True):
            raise UnsupportedModel("prefix trees need causal attention, but this layer is not causal")
        if dropout:
            raise UnsupportedModel("tree attention has no dropout; set attention_dropout to 0 in the model's config")
        query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast RoPE leaves them in float32
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if prefixes is None:
            output = implementation(query, key, value, tree, scale, scores_only)
        else:
            layer: int = module.layer_idx  # type: ignore[assignment]
            output = prefixes.attend(
                layer, query, key, value, lambda q, k, v, whole: implementation(q, k, v, whole, scale, scores_only)
            )
        return output.transpose(1, 2).contiguous(), None

    return attend

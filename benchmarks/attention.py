"""The attention call alone, forward and backward: row blocks over trees compared with torch's kernel on whole sequences.

The peers have the same shapes and call ``scaled_dot_product_attention``: every candidate as a separate sequence, one by one and
padded to a batch; and each tree alone with a dense mask.

    python benchmarks/attention.py --k 2 8
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import paired, report

from polar_rm.attention.cpu import tree_cpu
from polar_rm.attention.dense import dense_mask
from polar_rm.attention.layout import TreeLayout, TreeSpan
from polar_rm.model.devices import compute_dtype

HEADS, KV_HEADS, DIM = 9, 3, 64  # SmolLM2-135M


def layouts(k: int, length: int, trees: int) -> TreeLayout:
    """Trees of prompt, reference and candidates of ``length`` tokens, plus or minus half; the prefix has the prompt twice."""
    rng = random.Random(k)

    def jittered() -> int:
        return rng.randint(length // 2, length * 3 // 2)

    spans, start = [], 0
    for _ in range(trees):
        span = TreeSpan(start, 2 * jittered() + jittered(), tuple(jittered() for _ in range(k)))
        spans.append(span)
        start += span.prefix + sum(span.branches)
    return TreeLayout(tuple(spans))


def tensors(n_tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = [(1, HEADS, n_tokens, DIM), (1, KV_HEADS, n_tokens, DIM), (1, KV_HEADS, n_tokens, DIM)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def sequences(layout: TreeLayout) -> list[list[int]]:
    """The positions in the row of every candidate's whole sequence."""
    positions = []
    for span in layout.spans:
        start = span.start + span.prefix
        for branch in span.branches:
            positions.append([*range(span.start, span.start + span.prefix), *range(start, start + branch)])
            start += branch
    return positions


def measure(k: int, dtype: torch.dtype, length: int, rounds: int) -> dict[str, Any]:
    layout = layouts(k, length, trees=max(1, 16 // k))
    row = tensors(layout.n_tokens, dtype)
    lengths = [len(sequence) for sequence in sequences(layout)]
    alone = [tensors(n, dtype) for n in lengths]
    batch = [torch.randn(len(lengths), t.shape[1], max(lengths), DIM, dtype=dtype, requires_grad=True) for t in row]
    masks = [dense_mask(TreeLayout((TreeSpan(0, span.prefix, span.branches),)).tensors()) for span in layout.spans]
    tree = layout.tensors()
    trees = [(tensors(len(mask), dtype), mask) for mask in masks]

    def ours() -> None:
        tree_cpu(*row, tree, DIM**-0.5).sum().backward()

    def separate() -> None:
        for query, key, value in alone:
            F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).sum().backward()

    def padded() -> None:
        F.scaled_dot_product_attention(*batch, is_causal=True, enable_gqa=True).sum().backward()

    def dense() -> None:
        for (query, key, value), mask in trees:
            F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).sum().backward()

    values: dict[str, Any] = {"k": k, "dtype": str(dtype).removeprefix("torch."), "tokens": layout.n_tokens}
    for name, peer in (("separate", separate), ("padded", padded), ("dense_mask", dense)):
        times = paired(ours, peer, rounds)
        values |= {f"over_{name}": times["ratio"], f"over_{name}_cpu": times["cpu_ratio"]}
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    dtypes = dict.fromkeys([torch.float32, compute_dtype("auto", "cpu")])
    report([measure(k, dtype, arguments.length, arguments.rounds) for dtype in dtypes for k in arguments.k], arguments.output)


if __name__ == "__main__":
    main()

"""Scoring with the products of oneDNN and with PyTorch's own, in turns: float32 on a CPU, with kept prefixes.

The ratio is time of PyTorch's / time of oneDNN's for the same trees, which have 1, 4 and 16 live candidates. ``--force`` takes
oneDNN on other processors, too; the two variables restrict PyTorch and oneDNN to AVX2, but not MKL.

    python benchmarks/products.py --json benchmarks/results/products.json
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/products.py --force
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from common import LANGUAGE_MODEL, comparisons, origin, paired, report

from polar_rm.attention.prefixes import PrefixStore
from polar_rm.common.files import write_json
from polar_rm.encoding.tree import PrefixTree
from polar_rm.model import products
from polar_rm.model.reward_model import RewardModel
from polar_rm.scoring.scorer import Scorer


def load(name: str) -> RewardModel:
    """SmolLM2-135M whole for ``135m``, else random weights of a preset."""
    model = RewardModel.from_causal_lm(LANGUAGE_MODEL) if name == "135m" else RewardModel.from_preset(name, LANGUAGE_MODEL)
    torch.nn.init.normal_(model.backbone.score.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return model


def measure(name: str, sizes: list[int], length: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each number of candidates, whose prefix is kept."""
    model = load(name)
    [tree] = model.encoder.encode_many(comparisons(1, max(sizes), length))
    scorer = Scorer(model, prefixes=PrefixStore(1 << 30))
    scorer.score_trees([tree])  # keeps its prefix
    rows = []
    for size in sizes:
        part = PrefixTree(tree.prefix, tree.branches[:size], tree.ranks[:size])

        def by_onednn(part: PrefixTree = part) -> list[float]:
            return scorer.score_trees([part])[0]

        def by_torch(part: PrefixTree = part) -> list[float]:
            with torch.backends.mkldnn.flags(enabled=False):
                return scorer.score_trees([part])[0]

        n_tokens = sum(map(len, part.branches))
        difference = max(abs(a - b) for a, b in zip(by_onednn(), by_torch(), strict=True))
        ratios = paired(by_onednn, by_torch, rounds)
        about = {"model": name, "candidates": size, "tokens": n_tokens, "tokens_s": n_tokens / ratios["ours_s"]}
        rows.append(about | ratios | {"largest_difference": difference})
        report(rows[-1:], None)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["135m", "400m", "1b"])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--length", type=int, default=150, help="tokens of a prompt, a reference and a candidate")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--force", action="store_true", help="take oneDNN whatever the processor is")
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    products.AVAILABLE |= arguments.force
    if not products.AVAILABLE:
        raise SystemExit("this processor has no AVX-512, so both would be PyTorch's own products; see --force")
    code = {"code": os.environ.get("ONEDNN_MAX_CPU_ISA", torch.backends.cpu.get_cpu_capability())}
    rows = [row for name in arguments.models for row in measure(name, arguments.candidates, arguments.length, arguments.rounds)]
    if arguments.json:
        write_json(arguments.json, [code | row | origin() for row in rows])


if __name__ == "__main__":
    main()

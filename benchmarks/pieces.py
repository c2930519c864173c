"""Scoring of groups whose candidates arrive in pieces, as trainers send them: with prefixes kept between calls, and without.

Both score the same pieces with the same model; the ratio is time without / time with. Whole groups show what keeping costs.

    python benchmarks/pieces.py --layers 30 --rounds 2 --output results/pieces.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import LANGUAGE_MODEL, comparisons, paired, report

from polar_rm.attention.prefixes import PrefixStore
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import ScoreItem
from polar_rm.scoring.scorer import Scorer


def pieces_of(items: list[ScoreItem], size: int) -> list[list[ScoreItem]]:
    """Consecutive items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def measure(model: RewardModel, groups: list[list[ScoreItem]], size: int, rounds: int) -> dict[str, Any]:
    """One row: the ratio for pieces of ``size`` candidates, and whether the scores are equal."""

    def score(kept: bool) -> list[float]:
        scorer = Scorer(model, prefixes=PrefixStore(1 << 30) if kept else None)
        pieces = [piece for group in groups for piece in pieces_of(group, size)]
        return [reward.reward for piece in pieces for reward in scorer.score(piece)]

    first, second = score(True), score(False)
    ratios = paired(lambda: score(True), lambda: score(False), rounds)
    return {
        "piece": size,
        "equal_bits": first == second,
        "largest_difference": max(abs(a - b) for a, b in zip(first, second, strict=True)),
        **ratios,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=LANGUAGE_MODEL)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--length", type=int, default=200, help="tokens of a prompt, a reference and a candidate")
    parser.add_argument("--pieces", type=int, nargs="+", default=[1, 2, 4, 16])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = RewardModel.from_causal_lm(arguments.model, n_layers=arguments.layers)
    torch.nn.init.normal_(model.backbone.score.weight, std=0.02)
    groups = [
        [ScoreItem(c.prompt, c.reference, output) for output in c.candidates]
        for c in comparisons(arguments.groups, arguments.candidates, arguments.length)
    ]
    about = {"layers": arguments.layers, "candidates": arguments.candidates, "length": arguments.length}
    report([about | measure(model, groups, size, arguments.rounds) for size in arguments.pieces], arguments.output)


if __name__ == "__main__":
    main()

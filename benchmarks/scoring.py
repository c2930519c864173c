"""Scoring speed compared with plain transformers: candidates/s for 2, 8, 16 and 64 candidates per reference, with the same ids
and precision.

Plain transformers runs one by one, in padded batches sorted by length, and in padded batches in input order. The benchmark also
prints how far the scores of both are from those of transformers in float32.

    python benchmarks/scoring.py --layers 6 --candidates 2 8 16 64 --output scoring.jsonl
    python benchmarks/scoring.py --device cuda --preset 1b --length 1000
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import comparisons, paired, report, timed
from models import build_model, device_name, model_options
from transformers import AutoModelForSequenceClassification

from polar_rm.encoding.tree import PrefixTree
from polar_rm.model.devices import compute_dtype
from polar_rm.model.reward_model import RewardModel
from polar_rm.scoring.scorer import Scorer


class Peer:
    """``AutoModelForSequenceClassification`` on whole sequences. A batch of 1 needs no padding."""

    def __init__(self, model: Path, dtype: torch.dtype, device: str) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype).eval().to(device)

    @torch.inference_mode()
    def score(self, sequences: list[list[int]], batch: int, *, by_length: bool) -> torch.Tensor:
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i])) if by_length else list(range(len(sequences)))
        scores = torch.zeros(len(sequences))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            width = max(len(sequences[i]) for i in chosen)
            padding = self.model.config.pad_token_id
            # Right padding: the head reads the last token that is not padding.
            ids = torch.tensor([sequences[i] + [padding] * (width - len(sequences[i])) for i in chosen]).to(self.model.device)
            mask = torch.tensor([[1] * len(sequences[i]) + [0] * (width - len(sequences[i])) for i in chosen]).to(ids.device)
            logits = self.model(ids, attention_mask=mask if len(chosen) > 1 else None, use_cache=False).logits
            scores[chosen] = logits.squeeze(-1).float().cpu()
        return scores


def measure(ours: Scorer, peer: Peer, exact: Peer, trees: list[PrefixTree], rounds: int) -> dict[str, Any]:
    sequences = [tree.sequence(i) for tree in trees for i in range(len(tree.branches))]
    settings: dict[str, Callable[[], torch.Tensor]] = {
        "one by one": lambda: peer.score(sequences, 1, by_length=False),
        **{f"sorted {n}": lambda n=n: peer.score(sequences, n, by_length=True) for n in (4, 8, 16)},
        "padded 16": lambda: peer.score(sequences, 16, by_length=False),
    }
    our_scores = torch.tensor([score for row in ours.score_trees(trees) for score in row])
    peer_scores: dict[str, torch.Tensor] = {}
    trials = {name: timed(lambda n=name: peer_scores.update({n: settings[n]()}))[0] for name in settings}
    largest = max(float((scores - our_scores).abs().max()) for scores in peer_scores.values())
    reference = exact.score(sequences, 1, by_length=False)
    best = min(trials, key=lambda name: trials[name])
    against_best = paired(lambda: ours.score_trees(trees), settings[best], rounds)
    against_padded = paired(lambda: ours.score_trees(trees), settings["padded 16"], rounds)
    return {
        "best_peer": best,
        "ratio_best": against_best["ratio"],
        "ratio_best_cpu": against_best["cpu_ratio"],
        "ratio_padded": against_padded["ratio"],
        "ratio_padded_cpu": against_padded["cpu_ratio"],
        "our_candidates_per_second": len(sequences) / timed(lambda: ours.score_trees(trees))[0],
        "token_count_prediction": sum(map(len, sequences)) / sum(tree.n_tokens for tree in trees),
        "largest_difference": largest,
        "deviation": float(reference.std()),
        "rms_from_float32": {"ours": _rms(our_scores - reference), "one by one": _rms(peer_scores["one by one"] - reference)},
        "peer_candidates_per_second": {name: round(len(sequences) / seconds, 2) for name, seconds in trials.items()},
    }


def _rms(difference: torch.Tensor) -> float:
    return float(difference.square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_options(parser)
    parser.add_argument("--candidates", type=int, nargs="+", default=[2, 8, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    dtype = compute_dtype(arguments.precision, arguments.device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        built = build_model(arguments)
        torch.nn.init.normal_(built.backbone.score.weight)
        built.save(Path(folder) / "model")
        name = str(dtype).removeprefix("torch.")
        ours = Scorer(RewardModel.from_pretrained(Path(folder) / "model", dtype=name, device=arguments.device))
        peer, exact = (Peer(Path(folder) / "model", each, arguments.device) for each in (dtype, torch.float32))
        for count in arguments.candidates:
            trees = ours.model.encoder.encode_many(comparisons(max(1, 64 // count), count, arguments.length, seed=count))
            setting = {"device": device_name(ours.model.device), "candidates": count, "dtype": name}
            rows.append(setting | measure(ours, peer, exact, trees, arguments.rounds))
            report(rows[-1:], None)
    if arguments.output:
        report(rows, arguments.output)


if __name__ == "__main__":
    main()

"""One forward and backward pass of a random Llama on one comparison: as a prefix tree, with both attentions for CUDA, and with
every candidate as a separate sequence. It uses neither the optimiser nor the rest of the trainer (see ``training.py``).

On a GPU the model is 1B in bfloat16, with p = r = c = 1000. Without a GPU a tiny model with p = r = c = 60 runs the same code
with the CPU's attention, and the result says so: such numbers say nothing about GPUs.

    python benchmarks/gpu.py --k 2 8 --output gpu.jsonl
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import report, timed
from models import device_name, wait
from transformers import AutoModelForSequenceClassification

from polar_rm import attention
from polar_rm.encoding.tree import PrefixTree
from polar_rm.model.devices import compute_dtype
from polar_rm.model.packing import pack
from polar_rm.model.presets import preset_config
from polar_rm.model.reward_model import RewardModel
from polar_rm.training.config import LossConfig
from polar_rm.training.losses import loss_sum, pair_indices
from polar_rm.training.metrics import peak_flops, training_flops

VOCABULARY = 32000


def build(preset: str, implementation: str, device: torch.device, dtype: torch.dtype) -> Any:
    options = {"vocab_size": VOCABULARY, "max_position_embeddings": 16384, "pad_token_id": 0}
    config = preset_config(preset, attn_implementation=implementation, **options)
    torch.manual_seed(0)
    with device:
        return AutoModelForSequenceClassification.from_config(config, dtype=dtype)


def tree(rng: random.Random, k: int, length: int) -> PrefixTree:
    """A tree of random ids; lengths vary by half. The first candidate is the best."""

    def ids(n: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(n * rng.randint(500, 1500) // 1000)]

    return PrefixTree(ids(3 * length), [ids(length) for _ in range(k)], (0, *[1] * (k - 1)))


def seconds(work: Callable[[], None], device: torch.device, rounds: int) -> float:
    """The median time, after one warm-up round."""

    def run() -> None:
        work()
        wait(device)

    run()
    return statistics.median(timed(run)[0] for _ in range(rounds))


def measure(
    comparison: PrefixTree, trees: dict[str, RewardModel], plain: Any, device: torch.device, rounds: int
) -> dict[str, Any]:
    row = pack([comparison]).to(device)
    pairs = pair_indices(row.ranks, device)
    sequences = [torch.tensor([comparison.sequence(i)], device=device) for i in range(len(comparison.branches))]

    def tree_step(model: RewardModel) -> None:
        loss_sum(model(row), pairs, LossConfig()).backward()

    def one_by_one() -> None:
        for ids in sequences:
            plain(ids, use_cache=False).logits.float().sum().backward()

    times = {name: seconds(lambda m=model: tree_step(m), device, rounds) for name, model in trees.items()}  # type: ignore[misc]
    times["one by one"] = seconds(one_by_one, device, rounds)
    default = attention.default_attention(device)
    flops = training_flops(plain.config, row.layout)
    return {
        "device": device_name(device) + ("" if device.type == "cuda" else ": a trial of the code, no claim about GPUs"),
        "k": len(sequences),
        "seconds": times,
        "ratio_one_by_one": times["one by one"] / times[default],
        "token_count_prediction": sum(ids.shape[1] for ids in sequences) / comparison.n_tokens,
        "mfu": flops / times[default] / peak_flops(device, plain.dtype),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset, length = ("1b", 1000) if device.type == "cuda" else ("1m", 60)
    dtype = compute_dtype("auto", device.type)
    attention.register()
    names = ["tree_varlen", "tree_flex"] if device.type == "cuda" else ["tree_cpu"]
    trees = {name: RewardModel(build(preset, name, device, dtype), None, {}) for name in names}  # type: ignore[arg-type]
    plain = build(preset, "sdpa", device, dtype)
    rng = random.Random(1)
    report([measure(tree(rng, k, length), trees, plain, device, arguments.rounds) for k in arguments.k], arguments.output)


if __name__ == "__main__":
    main()

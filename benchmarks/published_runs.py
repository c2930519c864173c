"""The published pre-trainings as ``--dry-run --gpus`` would plan them here: memory, time, disk and network, from
``src/polar_rm/training/rates.yaml``. Nothing is run. They were 1.8B parameters on 0.94T tokens and 320 H800, and 7B on 3.6T
tokens and 912 H800 (paper App. D.1.2).

    python benchmarks/published_runs.py --output results/published_runs.json

A published token is one of a separate sequence. 8,290 tokens a comparison follow from the published steps, batch and tokens; they
are taken as two candidates and equal lengths of prompt, reference and candidate.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import report
from transformers import LlamaConfig

from polar_rm.attention.layout import TreeSpan
from polar_rm.training.cluster import Work, plan_cluster
from polar_rm.training.config import TrainConfig

RUNS: list[dict[str, Any]] = [
    {"name": "POLAR-1.8B", "shape": (2048, 24, 16, 8, 8192), "tokens": 0.94e12, "batch": 1940, "gpus": 320, "hours": 57},
    {"name": "POLAR-7B", "shape": (4096, 32, 32, 8, 14336), "tokens": 3.6e12, "batch": 4343, "gpus": 912, "hours": 175},
]
VOCABULARY = 92_544
TOKENS_PER_COMPARISON = 8290
LENGTH = TOKENS_PER_COMPARISON // 8  # two candidates, as separate sequences: 2 (2p + r + c)


def backbone(shape: tuple[int, int, int, int, int]) -> LlamaConfig:
    """The config of InternLM2.5 as a Llama."""
    hidden, layers, heads, key_value_heads, feed_forward = shape
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=feed_forward,
        vocab_size=VOCABULARY,
    )


def parameters(config: LlamaConfig) -> int:
    """Of the backbone without its head."""
    hidden, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    attention = 2 * hidden * (hidden + config.num_key_value_heads * head)
    layer = attention + 3 * hidden * config.intermediate_size + 2 * hidden
    return int(VOCABULARY * hidden + config.num_hidden_layers * layer + hidden)


def plans(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one published run: with a copy shared by all ranks or by a node, with shared prefixes or separate sequences."""
    config = backbone(run["shape"])
    size = parameters(config)
    steps = round(run["tokens"] / TOKENS_PER_COMPARISON / run["batch"])
    trees = TreeSpan(0, 3 * LENGTH, (LENGTH, LENGTH)), TreeSpan(0, 4 * LENGTH - 1, (1,))
    rows = []
    for shard_ranks in (None, 8):
        for shared, tree, per_comparison in ((True, trees[0], 1), (False, trees[1], 2)):
            settings = {
                "output": "run",
                "model": {"preset": "1b", "tokenizer": "-"},  # not read: the config above is planned
                "data": {"train": ["-"]},
                "row_tokens": 16384,
                "compile": True,
                "shard_ranks": shard_ranks,
            }
            lengths = [tree.n_tokens] * (run["batch"] * per_comparison)
            tokens = float(sum(lengths)) * steps
            work = Work(size, size + config.hidden_size, tree, lengths, steps, tokens)
            plan = plan_cluster(TrainConfig.model_validate(settings), config, work, gpus=run["gpus"], device="h800")
            print(f"\n{run['name']}, {'shared prefixes' if shared else 'separate sequences'}")
            for name, value in plan.describe():
                print(f"  {name}: {value}")
            about = {"run": run["name"], "parameters": size, "shared_prefixes": shared, "published_hours": run["hours"]}
            values = {name: value for name, value in asdict(plan).items() if name != "notes"}
            rows.append(about | {"hours": plan.hours, "step_seconds": plan.step_seconds} | values)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    arguments = parser.parse_args()
    report([row for run in RUNS for row in plans(run)], arguments.output)


if __name__ == "__main__":
    main()

"""Policy discrimination on real data: pre-train on trajectories of 103 policies, test on unseen prompts and unseen policies.

python benchmarks/oasst.py --data traj_oasst_sampling.parquet --output runs/oasst
cd runs/oasst
polar pretrain ../../benchmarks/oasst.yaml
polar pretrain ../../benchmarks/oasst_long.yaml
polar pretrain ../../benchmarks/oasst_long.yaml model.resume_from=rm_long/model output=rm_longer seed=2
polar evaluate unseen_prompts.jsonl --model rm_longer/model
polar evaluate unseen_policies.jsonl --model rm_longer/model

On a GPU: polar pretrain ../../benchmarks/oasst_gpu.yaml, and rm_gpu/model.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from polar_rm.corpus import build_comparisons, is_held_out
from polar_rm.records import Comparison, read_trajectories, write_records

HELD_OUT_POLICIES = 12
HELD_OUT_PROMPTS = 0.15


def build(data: Path, output: Path) -> None:
    """Write training data with eight candidates (two of the reference's policy, six of others), drawn twice, and tests with
    pairs."""
    rows = list(read_trajectories(data))
    policies = sorted({row.policy for row in rows})
    unseen = set(random.Random(0).sample(policies, HELD_OUT_POLICIES))
    training = set(policies) - unseen
    held_out = {row.prompt_id for row in rows if is_held_out(row.prompt, HELD_OUT_PROMPTS)}

    def comparisons(policies: set[str], on_held_out: bool, **options: int) -> list[Comparison]:
        chosen = [row for row in rows if row.policy in policies and (row.prompt_id in held_out) == on_held_out]
        built = list(build_comparisons(chosen, **options))
        random.Random(0).shuffle(built)
        return built

    tests = comparisons(training, True, per_prompt=24)
    files = {
        "train": comparisons(training, False, positives=2, negatives=6),
        "train_again": comparisons(training, False, positives=2, negatives=6, seed=1),
        "unseen_prompts": tests,
        "unseen_policies": comparisons(unseen, True),
        "watch": tests[:200],
    }
    for name, built in files.items():
        write_records(output / f"{name}.jsonl", built)
        print(f"{name}: {len(built):,} comparisons, {len({c.metadata['prompt_id'] for c in built}):,} prompts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Parquet of trajectories")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    build(arguments.data, arguments.output)


if __name__ == "__main__":
    main()

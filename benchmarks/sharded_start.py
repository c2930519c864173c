"""Host memory of a start with weights shared by several ranks (gloo, on a CPU), over that of the model in float32.

SmolLM2-135M is written in float32. Every rank under torchrun makes the trainer of ``polar pretrain``, and tells its peak of
resident memory, less what it had with all imports before. On a CPU the shards lie in host memory, too: ``shards`` is their part,
which is on the GPUs where there are any. What remains is the copy that rank 0 reads, and one tensor at a time on every rank.

    python benchmarks/sharded_start.py --ranks 2 4 --output results/sharded_start.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import LANGUAGE_MODEL, comparisons, origin, peak_rss_mib

from polar_rm.common.config import load_config
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import write_records
from polar_rm.training.config import TrainConfig
from polar_rm.training.parallel import join_world
from polar_rm.training.trainer import Trainer


def one_rank(work: Path) -> None:
    """Start as ``polar pretrain`` does, and write this rank's numbers."""
    overrides = [
        f"model.resume_from={work / 'model'}",
        f"data.train=[{work / 'rows.jsonl'}]",
        f"output={work / 'run'}",
        "device=cpu",
    ]
    overrides += ["batch_size=2", "optim.lr=1e-4", "log.tensorboard=false"]
    config = load_config(TrainConfig, [], overrides)
    with join_world("cpu") as world:
        world.gather(0)
        before = _resident_mib()
        trainer = Trainer(config, world)
        peak = peak_rss_mib()
        shards = sum(_local(tensor).nbytes for tensor in trainer.model.parameters()) / 2**20
        numbers = {"rank": world.rank, "before_mib": before, "peak_mib": peak, "after_mib": _resident_mib(), "shards_mib": shards}
        numbers["largest_mib"] = max(tensor.numel() * 4 for tensor in trainer.model.parameters()) / 2**20
        numbers["model_mib"] = sum(tensor.numel() * 4 for tensor in trainer.model.parameters()) / 2**20
        (work / f"rank-{world.size}-{world.rank}.json").write_text(json.dumps(numbers))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[no-any-return]


def _resident_mib() -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 2**10


def measure(work: Path, ranks: int) -> dict[str, Any]:
    """One row: all ranks together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), __file__]
    subprocess.run([*command, "--rank-of", str(work)], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    numbers = [json.loads((work / f"rank-{ranks}-{rank}.json").read_text()) for rank in range(ranks)]
    model = numbers[0]["model_mib"]
    added = [each["peak_mib"] - each["before_mib"] for each in numbers]
    shards = [each["shards_mib"] for each in numbers]
    return {
        "ranks": ranks,
        "model_mib": model,
        "shards_over_model": sum(shards) / model,
        "added_over_model": sum(added) / model,
        "without_shards_over_model": (sum(added) - sum(shards)) / model,
        "largest_over_model": numbers[0]["largest_mib"] / model,
        "added_mib": added,
        "by_rank": numbers,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30, help="number of first layers of SmolLM2-135M")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        one_rank(arguments.rank_of)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        RewardModel.from_causal_lm(LANGUAGE_MODEL, n_layers=arguments.layers).save(work / "model")
        write_records(work / "rows.jsonl", comparisons(4, 2, 20))
        for ranks in arguments.ranks:
            rows.append(measure(work, ranks) | {"layers": arguments.layers} | origin())
            print(json.dumps(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

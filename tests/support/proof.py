"""The settings of ``benchmarks/proof`` at micro size."""

import sys
from contextlib import contextmanager
from pathlib import Path

import yaml

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RFT = [
    "policy.kind=base",
    "lora={rank: 4}",
    "trainer={max_steps: 4, num_generations: 4, per_device_train_batch_size: 8, max_completion_length: 6, save_steps: 2, "
    "gradient_checkpointing: false, learning_rate: 1.0e-3, beta: 0.1}",
]
WITHOUT_KL = ["trainer.beta=1.0e-9", "trainer.learning_rate=0.1", "monitor.kl={max: 1.0e-4}", "monitor.window=1"]


@contextmanager
def importable():
    """The benchmarks can be imported."""
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield
    finally:
        sys.path[:] = before


def write_size(folder):
    """Write ``micro.yaml`` for the tiny language model in the folder."""
    training = {"batch_size": 8, "row_tokens": 600, "optim": {"lr": 1e-3}, "precision": "fp32", "checkpoint_every": 1}
    size = {
        "model": {"init": str(folder / "tiny-lm"), "layers": 1, "max_length": 256, "max_response_length": 64},
        "corpus": {
            "sets": ["zoo"],
            "preferences": ["made"],
            "held_out_prompts": 0.3,
            "held_out_policies": 0.25,
            "pairing": {"kind": "k_way", "negatives": 2},
            "continuations": {
                "kind": "continuations",
                "rows": "trajectories",
                "negatives": 2,
                "min_beginning": 10,
                "min_continuation": 10,
            },
            "pairs": {"train": 16, "calibrate": 24, "test": 24},
            "workers": 1,
        },
        "pretrain": training | {"max_steps": 3},
        "finetune": training,
        "identical_steps": 1,
        "test_comparisons": 12,
        "gold_prompts": 5,
        "encoder": f"embedding:{folder / 'tiny-lm'}",
        "classifier": [],
        "references": [],
        "levers": {
            "deeper": {"about": "two layers", "model": {"layers": 2}, "pairing": {"near_length": 3}, "finetune": {"epochs": 2}}
        },
        "law": {"sizes": ["1m"], "per_parameter": [1]},
        "law_training": {},
        "rft": {"train_prompts": 6, "held_out_prompts": 5, "samples": 3, "overrides": RFT, "without_kl": WITHOUT_KL},
        "minutes": dict.fromkeys(
            "init corpus pretrain discrimination pairs finetune classifier preferences references calibration overoptimisation "
            "levers law rft".split(),
            1,
        ),
    }
    (folder / "micro.yaml").write_text(yaml.safe_dump(size))

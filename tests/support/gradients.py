"""The gradients of one global batch. test_parallel runs this file under torchrun for several ranks."""

import json
import os
import sys
from pathlib import Path

import torch

from polar_rm.common.config import load_config
from polar_rm.training.config import TrainConfig
from polar_rm.training.parallel import join_world
from polar_rm.training.trainer import Trainer


def write_gradients(config: Path, target: Path, *overrides: str) -> None:
    """Write the gradients and values of one batch with all rows, and for each rank the shapes of its ``full_state``."""
    with join_world("cpu") as world:
        trainer = Trainer(load_config(TrainConfig, [config], list(overrides)), world)
        values = trainer.accumulate(list(range(len(trainer.train_set))))
        grads = ((name, tensor.grad) for name, tensor in trainer.weights.named.items())
        full = {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in grads}
        shapes = {name: list(tensor.shape) for name, tensor in trainer.weights.full_state().items()}
        target.with_suffix(f".state-{world.rank}").write_text(json.dumps(shapes))
        if world.is_main:
            mesh = getattr(trainer.weights.named["score.weight"], "device_mesh", None)
            target.with_suffix(".shards").write_text(json.dumps(list(mesh.shape) if mesh else []))
            torch.save({"gradients": full, "values": values}, target)


if __name__ == "__main__":
    if backend := os.environ.get("COMPILE_BACKEND"):  # one that traces everything but skips the slow code generation
        real_compile = torch.compile
        torch.compile = lambda function, **options: real_compile(function, backend=backend, **options)
    write_gradients(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])

"""A script that test_parallel runs under torchrun: it writes the gradients of one global batch."""

import os
import sys
from pathlib import Path

import torch

from polar_rm.common.config import load_config
from polar_rm.training.config import TrainConfig
from polar_rm.training.parallel import join_world
from polar_rm.training.trainer import Trainer

if backend := os.environ.get("COMPILE_BACKEND"):  # a backend that traces everything but skips the slow code generation
    real_compile = torch.compile
    torch.compile = lambda function, **options: real_compile(function, backend=backend, **options)
config = load_config(TrainConfig, [Path(sys.argv[1])], sys.argv[3:])
with join_world("cpu") as world:
    trainer = Trainer(config, world)
    values = trainer.accumulate(list(range(len(trainer.train_set))))
    full = {n: t.grad.full_tensor() if hasattr(t.grad, "full_tensor") else t.grad for n, t in trainer.weights.named.items()}
    if world.is_main:
        torch.save({"gradients": full, "values": values}, sys.argv[2])

"""The gradients of one global batch, on one rank or several, and a loss of one rank that is not finite."""

import json
from pathlib import Path

import torch
import torch.distributed as dist

from polar_rm.common.config import load_config
from polar_rm.errors import NonFinite
from polar_rm.training.config import TrainConfig
from polar_rm.training.parallel import join_world
from polar_rm.training.trainer import Trainer


def write_gradients(config: Path, target: Path, overrides: list[str], backend: str = "eager") -> None:
    """Write the gradients and values of one batch with all rows, and for each rank the shapes of its ``full_state``.

    backend: of a compiled run. All skip the slow generation of code; aot_eager traces the backward pass as well, which takes
    twice as long.
    """
    real_compile = torch.compile
    torch.compile = lambda function, **options: real_compile(function, backend=backend, **options)
    try:
        with join_world("cpu") as world:
            trainer = Trainer(load_config(TrainConfig, [config], overrides), world)
            values = trainer.accumulate(list(range(len(trainer.train_set))))
            grads = ((name, tensor.grad) for name, tensor in trainer.weights.named.items())
            full = {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in grads}
            shapes = {name: list(tensor.shape) for name, tensor in trainer.weights.full_state().items()}
            target.with_suffix(f".state-{world.rank}").write_text(json.dumps(shapes))
            if world.is_main:
                mesh = getattr(trainer.weights.named["score.weight"], "device_mesh", None)
                target.with_suffix(".shards").write_text(json.dumps(list(mesh.shape) if mesh else []))
                torch.save({"gradients": full, "values": values}, target)
    finally:
        torch.compile = real_compile


def write_error(config: Path, target: Path) -> None:
    """Write every rank's error, and the rows whose scores are NaN: those of the second row of rank 1."""
    with join_world("cpu") as world:
        trainer = Trainer(load_config(TrainConfig, [config], ["row_tokens=200"]), world)
        lengths = {i: trainer.train_set[i].n_tokens for i in range(16)}
        rows = [trainer._describe(in_row) for in_row in trainer.rows.rows_of_rank(lengths)]
        calls = []

        def spoil(module, args, scores):
            calls.append(scores)
            return scores * float("nan") if world.rank == 1 and len(calls) == 2 else None

        trainer.model.register_forward_hook(spoil)
        before = [p.detach().clone() for p in trainer.weights.named.values()]
        try:
            trainer.optimize(list(range(16)))
            message = "no error"
        except NonFinite as error:
            message = str(error)
        assert all(
            (a == b).all() for a, b in zip(before, trainer.weights.named.values(), strict=True)
        )  # the weights did not change
        bad_rows = [rows[1] if world.rank == 1 else ""]
        dist.broadcast_object_list(bad_rows, src=1)
        Path(f"{target}-{world.rank}").write_text(f"{message}\n{bad_rows[0]}")

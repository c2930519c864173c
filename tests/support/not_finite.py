"""A script that test_parallel runs under torchrun.

On rank 1 the scores of its second row are NaN. Every rank writes the error that it gets, and the rows with these scores.
"""

import sys
from pathlib import Path

import torch.distributed as dist

from polar_rm.common.config import load_config
from polar_rm.errors import NonFinite
from polar_rm.training.config import TrainConfig
from polar_rm.training.parallel import join_world
from polar_rm.training.trainer import Trainer

config = load_config(TrainConfig, [Path(sys.argv[1])], ["row_tokens=200"])
with join_world("cpu") as world:
    trainer = Trainer(config, world)
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
    assert all((a == b).all() for a, b in zip(before, trainer.weights.named.values(), strict=True))  # the weights did not change
    bad_rows = [rows[1] if world.rank == 1 else ""]
    dist.broadcast_object_list(bad_rows, src=1)
    Path(f"{sys.argv[2]}-{world.rank}").write_text(f"{message}\n{bad_rows[0]}")

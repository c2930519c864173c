"""The ``polar`` command with a fault, for runs of several ranks: ``python faults.py FAULT VERB ...``.

Collectives time out after ten seconds here, instead of ten minutes or more.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

RANK = int(os.environ["RANK"])
FAULT = sys.argv.pop(1)
SLOW_S = 14

init_process_group = dist.init_process_group
dist.init_process_group = lambda *a, **options: init_process_group(*a, **options, timeout=timedelta(seconds=10))

from polar_rm.cli.main import main  # noqa: E402
from polar_rm.encoded import corpus  # noqa: E402
from polar_rm.errors import Damaged, PolarError  # noqa: E402
from polar_rm.model.blueprint import Blueprint  # noqa: E402
from polar_rm.training import parallel, prepare, state, trainer  # noqa: E402


def slowed(function):
    def slow(*args, **kwargs):
        time.sleep(SLOW_S)
        return function(*args, **kwargs)

    return slow


def once_stale(folder, **options):
    """Imitate the cache of a network file system: the new file is missing at the first attempt to open it."""
    prepare.open_corpus = corpus.open_corpus
    raise Damaged(f"{folder}: the file is missing")


def refused_in_step_two(self, indices):
    if RANK == 1 and self.step == 2:
        raise PolarError("this rank can't go on")
    return optimize(self, indices)


def hanging_in_step_two(self, indices):
    """Rank 0 waits in what never ends, as a collective of NCCL does, and rank 1 fails."""
    if RANK == 0 and self.step == 2:
        threading.Event().wait()
    return refused_in_step_two(self, indices)


def killed_in_step_two(self, indices):
    if RANK == 1 and self.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return optimize(self, indices)


def refused_load(*args, **kwargs):
    raise PolarError("the weights are loaded")


optimize = trainer.Trainer.optimize
if FAULT == "slow":
    prepare.encode_corpus = slowed(prepare.encode_corpus)
    trainer.Trainer._export = slowed(trainer.Trainer._export)
    state._publish = slowed(state._publish)
elif FAULT == "stale-cache" and RANK == 1:
    prepare.open_corpus = once_stale
elif FAULT == "not-shared":
    prepare._VISIBLE_S = 2
    if RANK == 1:
        prepare.os.listdir = lambda folder: []
elif FAULT == "refused":
    trainer.Trainer.optimize = refused_in_step_two
elif FAULT == "hanging":
    trainer.Trainer.optimize = hanging_in_step_two
elif FAULT == "killed":
    trainer.Trainer.optimize = killed_in_step_two
elif FAULT == "no-weights":
    Blueprint.load = refused_load
assert parallel.World
main()

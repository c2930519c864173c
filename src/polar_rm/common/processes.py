"""This process among others: a rank of a run, a worker that does not outlive the process that started it."""

from __future__ import annotations

import os
import threading
import time

_EVERY_S = 0.5


def n_started() -> int:
    """The number of processes that torchrun or accelerate has started for this run, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_rank() -> bool:
    """Whether this process prints and writes: under torchrun and accelerate every rank runs the same command."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_of_machine() -> bool:
    """Whether this process does what is needed once on a machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def die_with_parent(parent: int) -> None:
    """End this process soon after its parent has ended, for whatever reason; call it first in a worker.

    A thread watches the parent's process id. The kernel's mechanism (``PR_SET_PDEATHSIG``) follows the parent's *thread* and
    would end the workers of a pool that a short-lived thread has started. parent: the process id of the parent, which the
    parent itself determines: it may be gone before the worker could ask for it.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()

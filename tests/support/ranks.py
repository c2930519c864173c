"""Ranks of a test as forks of one process that has imported the trainer, which takes each process of torchrun 6 s."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
from torch.multiprocessing import start_processes


def on_ranks(count: int, function: Callable[..., object], *arguments: object) -> None:
    """Call the function on ``count`` ranks at once, in the environment that torchrun makes; it must have a module's name.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a rank raised, with its traceback.
    """
    multiprocessing.set_forkserver_preload(["polar_rm.training.trainer", "polar_rm.model.reward_model", function.__module__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_run, (count, port, function, arguments), nprocs=count, start_method="forkserver")


def _run(rank: int, count: int, port: int, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    function(*arguments)

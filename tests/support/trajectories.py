"""Trajectories of made-up policies, and tasks for workers: in a module of their own, because a spawned process imports it."""

import os
import random
import signal
from pathlib import Path

from polar_rm.records import Trajectory

FAMILIES = {"a": "x", "b": "x", "c": "y", "d": "y"}


def zoo(prompts=6, policies="abcd", samples=3, **fields):
    """Every policy has its own words and lengths."""
    return [
        Trajectory("test", f"p{p}", f"prompt {p}", policy, s, text(policy, p, s), **fields)
        for p in range(prompts)
        for policy in policies
        for s in range(samples)
    ]


def text(policy, p, s):
    rng = random.Random(f"{policy}{p}{s}")
    words = [f"{policy}{rng.randrange(50)}" for _ in range(rng.randint(5, 25))]
    return f"{policy} says {' '.join(words)} ({s})."


def die_once(folder: Path, task: int) -> None:
    """Task 2 kills its process the first time."""
    marker = folder / "died"
    if task == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / str(task)).touch()


def die(folder: Path, task: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)

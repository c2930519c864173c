"""Trajectories of invented policies, and tasks for workers. It is a separate module, because spawned processes import it."""

import os
import random
import signal
import time
from pathlib import Path

from polar_rm.corpus.config import CorpusConfig
from polar_rm.records import Trajectory, write_records

FAMILIES = {"a": "x", "b": "x", "c": "y", "d": "y"}


def zoo(prompts=6, policies="abcd", samples=3, **fields):
    """Trajectories of policies that differ in words and lengths."""
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


def corpus_config(folder, rows=None, name="rows.parquet", **changes):
    """The config of a build into ``folder/out`` from a file with these rows."""
    folder.mkdir(exist_ok=True)
    if rows is not None:
        write_records(folder / name, rows)
    values = {"inputs": [str(folder / name)], "output": folder / "out", "workers": 1, "buckets": 3, "report": {"pairs": 50}}
    return CorpusConfig.model_validate(values | changes)


def die_once(folder: Path, task: int) -> None:
    """Write a file; task 2 kills its process the first time."""
    marker = folder / "died"
    if task == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / str(task)).touch()


def die(folder: Path, task: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class CountedJob:
    """Counts how often each process unpickles it, as bytes in ``loaded-PID``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = state
        with (self.folder / f"loaded-{os.getpid()}").open("a") as file:
            file.write("x")


def note_job(job: CountedJob, task: int) -> None:
    (job.folder / str(task)).touch()


def sleep(folder: Path, task: int) -> None:
    """A long task; it writes a file named after its process id."""
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def is_alive(pid: int) -> bool:
    """Whether a process is running; zombies are not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

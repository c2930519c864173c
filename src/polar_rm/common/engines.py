"""Engines that run independent tasks on all cores of this machine or on a Ray cluster, with the same results.

A task is a number. It runs a function of the job and this number, which writes its files atomically and may run again. So
nothing is lost when a worker dies: another worker runs its tasks. The job is sent to each worker once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa

from polar_rm.common.extras import needs
from polar_rm.common.processes import die_with_parent
from polar_rm.errors import MachineFailure, PolarError

J = TypeVar("J")
Engine = Literal["local", "ray"]

_WORKERS_PER_CORE = 16  # more of them only cost memory, however slow the disk is
_MAX_DEATHS = 3  # consecutive deaths of workers without a finished task between them


@dataclass(frozen=True, slots=True)
class Result:
    """A task that has ended. error: its message, or empty; a string, because exceptions with own fields may not survive pickling.
    by_machine: the machine is at fault and not the input."""

    task: int
    error: str = ""
    by_machine: bool = False


def check_workers(workers: int | None) -> None:
    """Whether this machine should start so many processes.

    Raises:
        PolarError: they are many more than its cores.
    """
    limit = _WORKERS_PER_CORE * _cores()
    if workers is not None and workers > limit:
        raise PolarError(
            f"workers: {workers:,} processes are too many for the {_cores():,} cores of this machine, which takes {limit:,} at "
            "most; left out, there is one for each core"
        )


def run_tasks(
    work: Callable[[J, int], None], job: J, tasks: Sequence[int], *, engine: Engine = "local", workers: int | None = None
) -> Iterator[int]:
    """Run tasks and yield each when it is finished, in any order. ``work`` and ``job`` must be picklable.

    Workers end with this process, whatever ends it.

    Raises:
        MachineFailure: a worker's disk or memory is full, or workers died several times in a row. Finished tasks stay finished.
        PolarError: a task raised it.
    """
    results = _on_ray(work, job, tasks, workers) if engine == "ray" else _on_processes(work, job, tasks, workers)
    for result in results:
        if result.error:
            raise MachineFailure(result.error) if result.by_machine else PolarError(result.error)
        yield result.task


def _run_and_catch(work: Callable[[J, int], None], job: J, task: int) -> Result:
    try:
        work(job, task)
    except PolarError as error:
        return Result(task, str(error), isinstance(error, MachineFailure))
    except OSError as error:
        return Result(task, f"{error.filename}: {error.strerror}" if error.filename else str(error), True)
    finally:
        pa.default_memory_pool().release_unused()
    return Result(task)


_run: Callable[[int], Result]  # set in each worker: runs a task of its job


def _start(parent: int, work: Callable[[J, int], None], job_file: Path) -> None:
    global _run
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group, but the parent ends its workers
    pa.set_cpu_count(1)  # because there is a process for every core
    _run = partial(_run_and_catch, work, ForkingPickler.loads(job_file.read_bytes()))


def _run_task(task: int) -> Result:
    return _run(task)


def _on_processes(work: Callable[[J, int], None], job: J, tasks: Sequence[int], workers: int | None) -> Iterator[Result]:
    workers = min(workers or _cores(), len(tasks))
    if workers <= 1:
        yield from (_run_and_catch(work, job, task) for task in tasks)
        return
    # Workers read the job from a private file. What a start takes along goes through a pipe of 64 KiB: with a tokenizer in it,
    # each worker would start only when the one before has imported everything.
    with tempfile.TemporaryDirectory(prefix="polar-") as folder:
        file = Path(folder) / "job"
        file.write_bytes(ForkingPickler.dumps(job))
        yield from _on_pools((os.getpid(), work, file), tasks, workers)


def _on_pools(start: tuple[Any, ...], tasks: Sequence[int], workers: int) -> Iterator[Result]:
    """Run tasks on pools of workers, one after another. start: arguments of :func:`_start`."""
    remaining, deaths = dict.fromkeys(tasks), 0
    # Spawned, not forked: a forked child inherits the locks of the parent's threads.
    context = multiprocessing.get_context("spawn")
    while remaining:
        pool = ProcessPoolExecutor(workers, context, _start, start)
        with _closing(pool):
            futures = [pool.submit(_run_task, task) for task in remaining]
            try:
                for future in as_completed(futures):
                    result = future.result()
                    del remaining[result.task]
                    deaths = 0
                    yield result
            except BrokenProcessPool as error:
                # A dead worker breaks the whole pool, so the remaining tasks get a new pool.
                deaths += 1
                if deaths == _MAX_DEATHS:
                    raise MachineFailure(
                        f"worker processes died {deaths} times in a row, perhaps from lack of memory; try fewer workers"
                    ) from error


@contextmanager
def _closing(pool: ProcessPoolExecutor) -> Iterator[None]:
    """End the workers when the block is left. After an error they are killed: the next run repeats their unfinished tasks.

    SIGTERM, which batch systems and containers send, becomes SystemExit, because by default it ends this process without any
    cleanup.
    """
    is_ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if is_ours:
        signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


def _on_ray(work: Callable[[J, int], None], job: J, tasks: Sequence[int], workers: int | None) -> Iterator[Result]:
    """Run tasks with Ray Data, one row per task. All nodes must see the output folder. Ray reruns the tasks of a dead worker."""
    with needs("ray", "engine: ray"):
        import ray.data

    def run(row: dict[str, Any]) -> dict[str, Any]:
        return asdict(_run_and_catch(work, job, int(row["task"])))

    if not tasks:
        return
    dataset = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=len(tasks))
    for row in dataset.map(run, concurrency=workers).iter_rows():
        yield Result(int(row["task"]), str(row["error"]), bool(row["by_machine"]))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Run independent tasks on all cores of this machine, or on a Ray cluster: the same tasks, so the same results.

A task is a number; what it does is a function of that number, writes its files atomically and may be run again. So a worker that
dies takes nothing along: its tasks are done by another one.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from polar_rm.errors import PolarError

Work = Callable[[int], None]
Engine = Literal["local", "ray"]

_MAX_DEATHS = 3  # in a row, with no task done in between


def run_tasks(work: Work, tasks: Sequence[int], *, engine: Engine = "local", workers: int | None = None) -> Iterator[int]:
    """Yield tasks as they are done, in any order. ``work`` must be picklable.

    Raises:
        PolarError: what a task raised, or workers died again and again. Its cause is an ``OSError`` or the broken pool where the
            machine is at fault and not the input: then what is done need not be done again.
    """
    guarded = partial(_guarded, work)
    results = _on_ray(guarded, tasks, workers) if engine == "ray" else _on_processes(guarded, tasks, workers)
    for task, error, by_machine in results:
        if error:
            raise PolarError(error) from (OSError(error) if by_machine else None)
        yield task


Result = tuple[int, str, bool]
"""The task, what went wrong (an exception with fields of its own need not survive the way between processes) or ``""``, and
whether the machine is at fault."""


def _guarded(work: Work, task: int) -> Result:
    try:
        work(task)
    except PolarError as error:
        return task, str(error), isinstance(error.__cause__, OSError)
    except OSError as error:
        return task, f"{error.filename}: {error.strerror}" if error.filename else str(error), True
    finally:
        pa.default_memory_pool().release_unused()
    return task, "", False


def _on_processes(work: Callable[[int], Result], tasks: Sequence[int], workers: int | None) -> Iterator[Result]:
    left, deaths = dict.fromkeys(tasks), 0
    workers = min(workers or _cores(), len(tasks))
    if workers <= 1:
        yield from map(work, tasks)
        return
    # Spawned, not forked: a forked child inherits the locks of the parent's threads.
    context = multiprocessing.get_context("spawn")
    while left:
        with ProcessPoolExecutor(workers, context, _one_thread) as pool:
            futures = [pool.submit(work, task) for task in left]
            try:
                for future in as_completed(futures):
                    result = future.result()
                    del left[result[0]]
                    deaths = 0
                    yield result
            except BrokenProcessPool as error:
                # It breaks the whole pool: the tasks that are left get a new one.
                deaths += 1
                if deaths == _MAX_DEATHS:
                    raise PolarError(
                        f"worker processes died {deaths} times in a row, perhaps for want of memory; try fewer workers"
                    ) from error
            finally:
                for future in futures:
                    future.cancel()


def _on_ray(work: Callable[[int], Result], tasks: Sequence[int], workers: int | None) -> Iterator[Result]:
    """One row a task. All nodes must see the output folder. Ray itself runs the tasks of a dead worker again."""
    try:
        import ray.data
    except ImportError:
        raise PolarError("engine: ray needs Ray: pip install 'polar-rm[ray]'") from None

    def run(row: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(("task", "error", "by_machine"), work(int(row["task"])), strict=True))

    if not tasks:
        return
    dataset = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=len(tasks))
    for row in dataset.map(run, concurrency=workers).iter_rows():
        yield int(row["task"]), str(row["error"]), bool(row["by_machine"])


def _one_thread() -> None:
    pa.set_cpu_count(1)  # there is a process for every core


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

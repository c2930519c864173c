import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.reduction import ForkingPickler

import pytest
from support import trajectories

from polar_rm.common import engines
from polar_rm.common.engines import Result, run_tasks
from polar_rm.errors import BadRow, MachineFailure, PolarError


def refuse(_, task):
    raise BadRow("file", task, "text", "a string")


def fill_the_disk(_, task):
    raise OSError(28, "No space left on device", "shard.parquet")


def test_an_error_in_a_task_is_reported_in_one_line():
    with pytest.raises(PolarError, match="file: row 7: field 'text'") as error:
        list(run_tasks(refuse, None, [7], workers=1))
    assert not isinstance(error.value, MachineFailure)


def test_a_full_disk_is_the_machines_fault():
    with pytest.raises(MachineFailure, match=r"shard.parquet: No space left"):
        list(run_tasks(fill_the_disk, None, [7], workers=1))


@pytest.mark.slow
def test_another_worker_runs_the_tasks_of_a_dead_one(tmp_path):
    assert sorted(run_tasks(trajectories.die_once, tmp_path, range(6), workers=2)) == list(range(6))
    assert {path.name for path in tmp_path.iterdir()} == {"died", *map(str, range(6))}


@pytest.mark.slow
def test_a_run_stops_if_workers_die_again_and_again(tmp_path):
    with pytest.raises(MachineFailure, match="died 3 times in a row"):
        list(run_tasks(trajectories.die, tmp_path, range(2), workers=2))


def test_deaths_are_counted_from_the_last_task_that_was_finished(monkeypatch):
    """A long build survives many workers, if they do not die in a row."""

    class Pool:
        """The first task that it gets is finished, then a worker dies; without a first task it dies at once."""

        _processes = None

        def __init__(self, *_):
            pools.append(self)
            self.left = next(finished)

        def submit(self, _, task):
            future = Future()
            future.set_result(Result(task)) if self.left > 0 else future.set_exception(BrokenProcessPool())
            self.left -= 1
            return future

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(engines, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(engines, "as_completed", list)  # in the order of the tasks
    pools, finished = [], iter([1, 0, 1, 1, 0, 1, 9])
    assert list(run_tasks(refuse, None, range(8), workers=2)) == list(range(8))
    assert len(pools) == 7
    pools, finished = [], iter([1, 0, 0, 9])
    with pytest.raises(MachineFailure, match="died 3 times in a row"):
        list(run_tasks(refuse, None, range(8), workers=2))
    assert len(pools) == 3


def test_workers_do_not_wait_for_one_another_to_start(monkeypatch):
    """A start blocks until the worker reads what does not fit into a pipe, which it does after its imports."""
    sizes = []

    def pool(_, context, function, arguments):
        sizes.append(len(ForkingPickler.dumps((function, arguments))))
        raise BrokenProcessPool

    monkeypatch.setattr(engines, "ProcessPoolExecutor", pool)
    with pytest.raises(BrokenProcessPool):
        list(run_tasks(trajectories.note_job, "x" * 10_000_000, range(2), workers=2))
    assert sizes[0] < 4096  # pipes hold 16 KiB or more


@pytest.mark.slow
def test_the_job_is_sent_to_a_worker_once(tmp_path):
    """It is not sent with each of thousands of tasks, because an index of evaluation prompts may be large."""
    assert sorted(run_tasks(trajectories.note_job, trajectories.CountedJob(tmp_path), range(40), workers=2)) == list(range(40))
    loads = list(tmp_path.glob("loaded-*"))
    assert len(loads) == sum(path.stat().st_size for path in loads) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path, number):
    """F9: signals that reach only the parent."""
    code = f"""
from pathlib import Path
from support import trajectories
from polar_rm.common.engines import run_tasks
if __name__ == "__main__":
    list(run_tasks(trajectories.sleep, Path({str(tmp_path)!r}), range(50), workers=2))
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment, start_new_session=True)
    until = time.monotonic() + 60
    while len(workers := [int(path.name) for path in tmp_path.glob("[0-9]*")]) < 2:
        assert parent.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    parent.send_signal(number)
    assert parent.wait(30) == {signal.SIGKILL: -9, signal.SIGTERM: 128 + 15, signal.SIGINT: -2}[number]
    until = time.monotonic() + 30
    while any(map(trajectories.is_alive, workers)):
        assert time.monotonic() < until, workers
        time.sleep(0.05)

"""Ray in tests: a stand-in in this process, a small cluster, and what actors run, in a file that they can import."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]


class ActorDied(Exception):
    """The stand-in's RayActorError. An actor that raises it is dead."""


class StandIn:
    """What our code uses of ``ray``: actors are objects of this process. The newest call is always the first one to end."""

    exceptions = SimpleNamespace(RayActorError=ActorDied)

    def __init__(self) -> None:
        self.started: list[dict[str, float]] = []
        self.killed = 0
        self.most_waiting = 0

    def is_initialized(self) -> bool:
        return True

    def remote(self, **resources: float) -> Any:
        def decorate(kind: type) -> Any:
            def start(*arguments: Any) -> Any:
                self.started.append(resources)
                return _Handle(kind(*arguments))

            return SimpleNamespace(remote=start)

        return decorate

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        self.most_waiting = max(self.most_waiting, len(references))
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference: Any) -> Any:
        if not reference.handle.dead:
            try:
                return reference.handle.actor.run(reference.value)
            except ActorDied:
                reference.handle.dead = True
        raise ActorDied

    def kill(self, actor: Any) -> None:
        self.killed += 1


class _Handle:
    def __init__(self, actor: Any) -> None:
        self.actor, self.dead = actor, False
        self.run = SimpleNamespace(remote=lambda value: _Reference(self, value))


class _Reference:
    def __init__(self, handle: _Handle, value: Any) -> None:
        self.handle, self.value = handle, value


@contextmanager
def cluster() -> Iterator[None]:
    """Two cores, whose workers find the package and the tests."""
    import ray

    paths = os.pathsep.join(str(ROOT / path) for path in ("src", "tests"))
    variables = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    quiet: dict[str, Any] = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    settings = {"worker_niceness": 0}  # by default workers give way to whatever else runs, and time out on a busy machine
    ray.init(num_cpus=2, runtime_env={"env_vars": variables}, _system_config=settings, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def fragile(start: Callable[[], Callable[[Any], Any]], marker: Path) -> Callable[[Any], Any]:
    """``start`` for windows of items, but the process is killed at the window of row 9, once."""
    compute = start()

    def run(window: Any) -> Any:
        if window[0][0] == 9 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(window)

    return run

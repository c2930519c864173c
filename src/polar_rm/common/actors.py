"""Actors of a Ray cluster: processes that load something large once and compute many inputs with it, in the inputs' order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from pydantic import Field, PositiveInt

from polar_rm.common.config import Config
from polar_rm.common.extras import needs
from polar_rm.common.limits import MAX_ACTORS
from polar_rm.errors import MachineFailure, PolarError

X = TypeVar("X")
R = TypeVar("R")

_INPUTS_PER_ACTOR = 2  # one is computed while the next one travels
_AHEAD_PER_ACTOR = 4  # results that may wait for an earlier one; they bound the driver's memory
_DEATHS_PER_ACTOR = 3  # without a finished input between them: the loss of a node is one death for each of its actors


class RayActors(Config):
    """Number and resources of the actors that load a model with ``engine: ray``."""

    actors: PositiveInt = Field(1, le=MAX_ACTORS, description="Number of actors; each loads the model.")
    cpus: float = Field(1.0, gt=0, description="CPU cores that Ray reserves for each actor.")
    gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves for each actor.")


def map_on_actors(start: Callable[[], Callable[[X], R]], inputs: Iterable[X], resources: RayActors) -> Iterator[R]:
    """One result for each input, in order, computed by actors of the cluster that this process has joined or that RAY_ADDRESS
    names, or else of one that Ray starts on this machine.

    Each actor calls ``start`` once; the returned function computes its inputs. ``start``, inputs and results must be picklable.
    A dead actor is replaced, and its inputs are computed again. Inputs are read as actors become free, so that memory does not
    grow with their number. An error of ``inputs`` is raised after the results of the inputs before it.

    Raises:
        MachineFailure: actors died again and again without a result.
        PolarError: raised by ``start`` or the function, or Ray is not installed.
    """
    with needs("ray", "engine: ray"):
        import ray
    if not ray.is_initialized():
        ray.init()
    pool = _Pool[X, R](start, resources)
    source: Iterator[X] | None = iter(inputs)
    fault: Exception | None = None
    try:
        while True:
            while source is not None and pool.has_room():
                try:
                    pool.send(next(source))
                except StopIteration:
                    source = None
                except Exception as error:  # raised in its turn, below
                    source, fault = None, error
            if not pool.waiting:
                break
            if pool.waiting[0].result is None:
                pool.wait()
            else:
                yield pool.take()
        if fault is not None:
            raise fault
    finally:
        pool.close()


class _Actor(Generic[X, R]):
    """Returns a user's error, because Ray wraps exceptions."""

    def __init__(self, start: Callable[[], Callable[[X], R]]) -> None:
        self.start = start
        self.compute: Callable[[X], R] | None = None

    def run(self, value: X) -> tuple[R | None, PolarError | None]:
        try:
            self.compute = self.compute or self.start()
            return self.compute(value), None
        except PolarError as error:
            # Exceptions with fields of their own may not survive pickling.
            return None, error if type(error).__init__ is PolarError.__init__ else PolarError(str(error))


@dataclass(slots=True)
class _Input(Generic[X, R]):
    value: X
    actor: Any
    result: tuple[R | None, PolarError | None] | None = None


class _Pool(Generic[X, R]):
    """Actors with the inputs that they compute. waiting: inputs without a result given out, in order."""

    def __init__(self, start: Callable[[], Callable[[X], R]], resources: RayActors) -> None:
        import ray

        kind: Any = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(_Actor)
        self._new: Callable[[], Any] = lambda: kind.remote(start)
        self.actors: list[Any] = [self._new() for _ in range(resources.actors)]
        self.waiting: deque[_Input[X, R]] = deque()
        self._running: dict[Any, _Input[X, R]] = {}
        self._deaths = 0

    def has_room(self) -> bool:
        """Whether another input should be sent."""
        n_actors = len(self.actors)
        return len(self._running) < _INPUTS_PER_ACTOR * n_actors and len(self.waiting) < _AHEAD_PER_ACTOR * n_actors

    def send(self, value: X) -> None:
        """Give an input to the actor that has the fewest."""
        self.waiting.append(_Input(value, None))
        self._run(self.waiting[-1])

    def _run(self, task: _Input[X, R]) -> None:
        loads = Counter(each.actor for each in self._running.values())
        task.actor = min(self.actors, key=lambda actor: loads[actor])
        self._running[task.actor.run.remote(task.value)] = task

    def take(self) -> R:
        """The result of the first waiting input, which must be there."""
        result, error = cast("tuple[R, PolarError | None]", self.waiting.popleft().result)
        if error is not None:
            raise error
        return result

    def wait(self) -> None:
        """Wait for the next result of any input."""
        import ray

        [done], _ = ray.wait(list(self._running), num_returns=1)
        task = self._running.pop(done)
        try:
            task.result = ray.get(done)
            self._deaths = 0
        except ray.exceptions.RayActorError as error:
            self._replace(task.actor, error)
            self._run(task)

    def _replace(self, actor: Any, error: Exception) -> None:
        if actor in self.actors:  # this is the first of its inputs that fails
            self.actors[self.actors.index(actor)] = self._new()
            self._deaths += 1
        if self._deaths == _DEATHS_PER_ACTOR * len(self.actors):
            raise MachineFailure(
                f"actors died {self._deaths} times in a row, perhaps from lack of memory; give each more, or take fewer"
            ) from error

    def close(self) -> None:
        """End the actors."""
        import ray

        for actor in self.actors:
            ray.kill(actor)

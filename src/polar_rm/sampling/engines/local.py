"""Threads of this process: one for each policy behind a server, and one for all that compute here, one after another."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread

from polar_rm.errors import PolarError
from polar_rm.sampling.base import Machine, Outcome, Request
from polar_rm.sampling.engines import Events, PolicyFailed, SampleArrived, Started, Work

_PATIENCE_S = 10.0  # for threads to notice that they should stop

_Queue = SimpleQueue[tuple[Events | BaseException | None, Event]]
"""What happened, and an event that is set once it is dealt with."""


def run(work: Work, machine: Machine) -> Generator[list[Events], None, None]:
    """Whatever has arrived, again and again until every policy is through. Closing the iterator stops all threads.

    Asking for more says that what came before is stored. Until then the thread that sent it asks nothing further, so a kill costs
    no more than the requests that are under way.

    Raises: an error that is no user's mistake, as it is.
    """
    queue: _Queue = SimpleQueue()
    stop = Event()
    here = [item for item in work if item[0].IS_LOCAL]
    here.sort(key=lambda item: item[0].model)  # policies of one model follow each other: it is loaded once
    groups = [here, *([item] for item in work if not item[0].IS_LOCAL)]
    threads = [Thread(target=_run_group, args=(group, machine, queue, stop), daemon=True) for group in groups if group]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            events: list[Events] = []
            dealt_with: list[Event] = []
            for event, done in _waiting(queue):
                dealt_with.append(done)
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    running -= 1
                else:
                    events.append(event)
            yield events
            for done in dealt_with:
                done.set()
    finally:
        stop.set()
        for thread in threads:
            thread.join(_PATIENCE_S)


def _waiting(queue: _Queue) -> Iterator[tuple[Events | BaseException | None, Event]]:
    """The next event, and all that have arrived meanwhile: they share a commit."""
    yield queue.get()
    try:
        while True:
            yield queue.get_nowait()
    except Empty:
        return


def _run_group(group: Work, machine: Machine, queue: _Queue, stop: Event) -> None:
    def tell(event: Events | BaseException | None) -> Event:
        queue.put((event, done := Event()))
        return done

    def answered(policy: str, request: Request, outcome: Outcome) -> None:
        stored = tell(SampleArrived(policy, request, outcome))
        while not stored.wait(0.2) and not stop.is_set():
            pass

    try:
        for policy, requests in group:
            if stop.is_set():
                break
            try:
                backend = policy.open(machine)
                tell(Started(policy.name))
                backend.run(requests, partial(answered, policy.name), stop)
            except PolarError as error:
                tell(PolicyFailed(policy.name, str(error)))
    except BaseException as error:  # the main thread raises it: a bug must not look like a policy that is down
        tell(error)
    tell(None)

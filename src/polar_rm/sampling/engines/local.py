"""Threads of this process: one for each policy behind a server, and one for all local policies, which run one after another."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread

from polar_rm.errors import PolarError
from polar_rm.sampling.base import Machine, Outcome, Request
from polar_rm.sampling.engines import PolicyFailed, PolicyStarted, SampleArrived, SamplingEvent, Work

_JOIN_TIMEOUT_S = 10.0  # time for threads to notice that they should stop

_Queue = SimpleQueue[tuple[SamplingEvent | BaseException | None, Event]]
"""A sampling event, an error or the end of a thread (None), and a threading event that is set once the item is processed."""


def run(work: Work, machine: Machine) -> Generator[list[SamplingEvent], None, None]:
    """Yields the events that have arrived, until every policy has finished. Closing the iterator stops all threads.

    The caller stores the events before it asks for more. Until then the thread that sent them sends no further request, so a kill
    costs no more than the requests in progress.

    Raises: any error that is not the user's mistake, unchanged.
    """
    queue: _Queue = SimpleQueue()
    stop = Event()
    local = [item for item in work if item[0].IS_LOCAL]
    local.sort(key=lambda item: item[0].model)  # policies of one model are adjacent, so that it is loaded once
    groups = [local, *([item] for item in work if not item[0].IS_LOCAL)]
    threads = [Thread(target=_run_group, args=(group, machine, queue, stop), daemon=True) for group in groups if group]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            events: list[SamplingEvent] = []
            processed: list[Event] = []
            for event, done in _next_items(queue):
                processed.append(done)
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    running -= 1
                else:
                    events.append(event)
            yield events
            for done in processed:
                done.set()
    finally:
        stop.set()
        for thread in threads:
            thread.join(_JOIN_TIMEOUT_S)


def _next_items(queue: _Queue) -> Iterator[tuple[SamplingEvent | BaseException | None, Event]]:
    """Waits for the next item and adds all others that are there: they share a commit."""
    yield queue.get()
    try:
        while True:
            yield queue.get_nowait()
    except Empty:
        return


def _run_group(group: Work, machine: Machine, queue: _Queue, stop: Event) -> None:
    def put(event: SamplingEvent | BaseException | None) -> Event:
        queue.put((event, done := Event()))
        return done

    def emit(policy: str, request: Request, outcome: Outcome) -> None:
        stored = put(SampleArrived(policy, request, outcome))
        while not stored.wait(0.2) and not stop.is_set():
            pass

    try:
        for policy, requests in group:
            if stop.is_set():
                break
            try:
                backend = policy.open(machine)
                put(PolicyStarted(policy.name))
                backend.run(requests, partial(emit, policy.name), stop)
            except PolarError as error:
                put(PolicyFailed(policy.name, str(error)))
    except BaseException as error:  # the main thread raises it, because a bug must not look like a policy that is down
        put(error)
    put(None)

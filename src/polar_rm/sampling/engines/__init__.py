"""Engines that execute a plan: threads of this process, or a Ray cluster. Both yield the same events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polar_rm.sampling.base import Outcome, Policy, Request


@dataclass(frozen=True, slots=True)
class PolicyStarted:
    """A policy is loaded and begins with its requests."""

    policy: str


@dataclass(frozen=True, slots=True)
class SampleArrived:
    """The outcome of a request has arrived."""

    policy: str
    request: Request
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class PolicyFailed:
    """A policy gave up; its remaining requests have no outcome."""

    policy: str
    error: str


SamplingEvent = PolicyStarted | SampleArrived | PolicyFailed
Work = Sequence[tuple[Policy, Sequence[Request]]]
"""Policies with the requests that they still have to answer."""


def by_key(requests: Iterable[Request]) -> dict[tuple[str, int], Request]:
    """Requests of one policy by (prompt_id, sample_id), in the same order."""
    return {(request.prompt_id, request.sample_id): request for request in requests}

"""What carries a plan out: threads of this process, or a Ray cluster. Both yield the same events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polar_rm.sampling.base import Outcome, Policy, Request


@dataclass(frozen=True, slots=True)
class Started:
    """A policy is loaded and asks its first request."""

    policy: str


@dataclass(frozen=True, slots=True)
class SampleArrived:
    """An outcome has arrived."""

    policy: str
    request: Request
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class PolicyFailed:
    """A policy gave up; its other requests have no outcome."""

    policy: str
    error: str


Events = Started | SampleArrived | PolicyFailed
Work = Sequence[tuple[Policy, Sequence[Request]]]
"""Policies and what they are still asked."""


def by_key(requests: Iterable[Request]) -> dict[tuple[str, int], Request]:
    """Requests of one policy by (prompt_id, sample_id), in their order."""
    return {(request.prompt_id, request.sample_id): request for request in requests}

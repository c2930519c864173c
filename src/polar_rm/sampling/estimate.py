"""Estimates the cost of a sampling run without sending a request."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from polar_rm.records import flatten
from polar_rm.sampling.config import SamplingConfig
from polar_rm.sampling.identity import identities
from polar_rm.sampling.plan import make_plan
from polar_rm.sampling.runner import missing_requests
from polar_rm.sampling.store import Store

CHARACTERS_PER_TOKEN = 4  # rough value for English prompts

Basis = Literal["measured", "assumed", "unknown"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of one policy.

    planned: number of samples in the plan. requests: number of samples still to draw. prompt_tokens: a rough value.
    new_tokens: by the measured mean length, else the maximum. seconds: None if the speed is unknown.
    basis: where length and speed come from.
    """

    policy: str
    planned: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    seconds: float | None
    basis: Basis


def estimate(config: SamplingConfig, tokens_per_s: float | None = None) -> list[Estimate]:
    """One estimate for each policy. It sends, writes and locks nothing, so a run may be using the folder at the same time.

    tokens_per_s: assumed speed of policies for which the store in the output folder has no measurement.

    Raises:
        PolarError: as :func:`sample`.
    """
    plan, estimates = make_plan(config), []
    with Store.read(config.output) as store:
        store.check(identities(config))
        for policy in config.policies:
            requests = missing_requests(plan, store, policy.name)
            characters = sum(len(flatten(request.prompt)) + len(policy.system or policy.template) for request in requests)
            tokens, seconds = store.throughput(policy.name)
            sampled = len(store.sampled(policy.name))
            limit = policy.decoding.max_new_tokens
            new_tokens = len(requests) * min(limit, round(tokens / sampled) if tokens and sampled else limit)
            speed = tokens / seconds if seconds and tokens else tokens_per_s
            basis: Basis = "measured" if tokens and seconds else "assumed" if tokens_per_s else "unknown"
            needed = new_tokens / speed if speed else None
            prompt_tokens = characters // CHARACTERS_PER_TOKEN
            estimates.append(
                Estimate(policy.name, plan.size(policy.name), len(requests), prompt_tokens, new_tokens, needed, basis)
            )
    return estimates


def describe(estimates: list[Estimate]) -> str:
    """One line for each policy, and one for the sums."""
    lines = []
    for each in estimates:
        time = "time unknown (--tokens-per-second)" if each.seconds is None else f"about {_time(each.seconds)}"
        lines.append(
            f"{each.policy:>18}: {each.requests:,} of {each.planned:,} samples to draw, {each.prompt_tokens:,} prompt tokens, "
            f"{'about' if each.basis == 'measured' else 'at most'} {each.new_tokens:,} new tokens, {time} ({each.basis} speed)"
        )
    requests, tokens = sum(each.requests for each in estimates), sum(each.new_tokens for each in estimates)
    known = [each.seconds for each in estimates if each.seconds is not None]
    time = f", about {_time(sum(known))} one after another" if len(known) == len(estimates) else ""
    return "\n".join([*lines, f"{'all':>18}: {requests:,} samples, {tokens:,} new tokens{time}"])


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))

"""The sampling plan: which policy answers which prompt, how often, and with which seeds."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from polar_rm.common.memory import check_memory, machine_memory
from polar_rm.errors import PolarError
from polar_rm.records import OnBadRow, side_file
from polar_rm.sampling.base import Policy, Request
from polar_rm.sampling.config import SamplingConfig
from polar_rm.sampling.prompts import Prefixes, Prompt, make_prefixes, read_rows

_REQUEST_BYTES = 300  # of one that is still to ask, with its key


@dataclass(frozen=True)
class SamplingPlan:
    """All samples of a run.

    shares: for every policy, (index of a prompt, number of samples), in the order of prompts.
    counts: numbers of texts, for each source of prefixes, see :func:`make_prefixes`.
    bad_rows: number of prompts and texts that were skipped.
    """

    prompts: list[Prompt]
    shares: dict[str, list[tuple[int, int]]]
    seed: int
    counts: list[dict[str, int]] = field(default_factory=list)
    bad_rows: int = 0

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Hashes of all prompts, by prompt id."""
        return {prompt.prompt_id: prompt.hash for prompt in self.prompts}

    def size(self, policy: str) -> int:
        """Number of planned samples of a policy."""
        return sum(count for _, count in self.shares[policy])

    def requests(self, policy: str) -> Iterator[Request]:
        """All requests of a policy."""
        for index, count in self.shares[policy]:
            prompt = self.prompts[index]
            for sample_id in range(count):
                seed = sample_seed(self.seed, policy, prompt.prompt_id, sample_id)
                yield Request(prompt.prompt_id, prompt.prompt, sample_id, seed)


def make_plan(config: SamplingConfig, folder: Path | None = None) -> SamplingPlan:
    """Read the prompts and assign policies to them.

    folder: receives skipped bad rows and the cache of prefixes; None writes nothing.

    Raises:
        BadRow: a row holds no prompt, or repeats an id. PolarError: see :func:`make_prefixes`; more samples of a policy than this
            machine's memory can plan.
    """
    if folder is not None and config.on_bad_row == "skip":
        folder.mkdir(parents=True, exist_ok=True)
    bad = OnBadRow(config.on_bad_row, side_file(folder / "prompts") if folder else os.devnull)
    prompts: list[Prompt] = []
    counts = []
    for number, source in enumerate(config.prompts):
        if isinstance(source, Prefixes):
            prefixes, text_counts = make_prefixes(source, config.seed, folder and folder / f"prefixes-{number}.json", bad)
            counts.append(text_counts)
            prompts += prefixes[: config.limit]
        else:
            prompts += islice(read_rows(source, bad), config.limit)
    _check_ids(prompts)
    shares: dict[str, list[tuple[int, int]]] = {policy.name: [] for policy in config.policies}
    pools = {source.pool: config.pool(source.pool) for source in config.prompts}
    for index, prompt in enumerate(prompts):
        for policy, count in _assigned(config, pools[prompt.pool], prompt):
            shares[policy.name].append((index, count))
    plan = SamplingPlan(prompts, shares, config.seed, counts, bad.count)
    for name in shares:
        check_memory(plan.size(name) * _REQUEST_BYTES, f"policy {name!r}: {plan.size(name):,} planned samples", machine_memory())
    return plan


def sample_seed(*names: str | int) -> int:
    """A hash of the names that identify a sample. With 63 bits, two of 10^8 samples share a seed with probability 0.0005."""
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8]) >> 1


def _assigned(config: SamplingConfig, pool: list[Policy], prompt: Prompt) -> list[tuple[Policy, int]]:
    if config.assignment.method == "grid":
        return [(policy, policy.samples) for policy in pool]
    drawn = sorted(pool, key=lambda policy: _arrival(config.seed, prompt.prompt_id, policy))[: config.assignment.policies]
    return [(policy, policy.samples if index == 0 else 1) for index, policy in enumerate(drawn)]


def _arrival(seed: int, prompt_id: str, policy: Policy) -> float:
    """An exponential random variable of rate ``weight``: the k smallest are a weighted draw without replacement.

    It depends on seed, prompt and policy alone (rendezvous hashing). A policy that joins the pool displaces others on some
    prompts, and no other policy has to give more samples than before.
    """
    uniform = (sample_seed(seed, "draw", prompt_id, policy.name) + 1) / 2**63
    return -math.log(uniform) / policy.weight


def _check_ids(prompts: list[Prompt]) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.prompt_id in seen:
            raise PolarError(f"prompts: the id {prompt.prompt_id!r} comes from two sources")
        seen.add(prompt.prompt_id)

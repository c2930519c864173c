"""A Ray cluster: a policy's requests form a dataset, which actors with the loaded policy map to outcomes for the driver.

Policies run one after another, each with all its actors. Ray replaces an actor that dies and repeats its current block.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import asdict
from threading import Event
from typing import Any, cast

import pyarrow as pa

from polar_rm.common.extras import needs
from polar_rm.errors import PolarError
from polar_rm.sampling.base import Machine, NoSample, Outcome, Policy, Request, Sample
from polar_rm.sampling.engines import PolicyFailed, PolicyStarted, SampleArrived, SamplingEvent, Work, by_key

_BATCHES_PER_BLOCK = 4  # or rounds of all connections; an actor's results are stored after each block


def run(work: Work, machine: Machine) -> Generator[list[SamplingEvent], None, None]:
    """Yields events as they reach the driver, on the cluster that this process has joined or that RAY_ADDRESS names.

    Raises:
        PolarError: Ray is not installed.
    """
    with needs("ray", "engine: ray"):
        import ray
    if work and not ray.is_initialized():
        ray.init()
    for policy, requests in work:
        yield [PolicyStarted(policy.name)]
        yield from _run_policy(policy, requests, machine)


def _run_policy(policy: Policy, requests: Sequence[Request], machine: Machine) -> Generator[list[SamplingEvent], None, None]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    DataContext.get_current().enable_progress_bars = False
    size = _BATCHES_PER_BLOCK * policy.max_concurrent(machine)
    blocks = max(1, len(requests) // size)
    rows = [asdict(request) | {"prompt": json.dumps(request.prompt)} for request in requests]
    answers = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        _Actor,
        fn_constructor_args=(policy, machine),
        batch_size=size,
        compute=ActorPoolStrategy(size=policy.ray.actors),
        num_cpus=policy.ray.cpus,
        num_gpus=policy.ray.gpus,
    )
    known = by_key(requests)
    for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
        events: list[SamplingEvent] = []
        for row in cast(pa.Table, batch).to_pylist():
            if row["error"] is not None:
                yield [*events, PolicyFailed(policy.name, row["error"])]
                return
            events.append(
                SampleArrived(policy.name, known[row["prompt_id"], row["sample_id"]], _outcome(json.loads(row["outcome"])))
            )
        yield events


def _outcome(values: dict[str, Any]) -> Outcome:
    return NoSample(**values) if "kind" in values else Sample(**values)


class _Actor:
    """Holds one loaded policy. It returns a user's mistake as a row, because Ray would wrap an exception and retry the block."""

    def __init__(self, policy: Policy, machine: Machine) -> None:
        self.error: str | None = None
        try:
            self.backend = policy.open(machine)
        except PolarError as error:
            self.error = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = zip(batch["prompt_id"], batch["prompt"], batch["sample_id"], batch["seed"], strict=True)
        requests = [Request(str(key), json.loads(prompt), int(sample), int(seed)) for key, prompt, sample, seed in columns]
        answers: dict[str, list[Any]] = {"prompt_id": [], "sample_id": [], "outcome": [], "error": []}

        def emit(request: Request | None, outcome: Outcome | None, error: str | None = None) -> None:
            answers["prompt_id"].append(request.prompt_id if request else "")
            answers["sample_id"].append(request.sample_id if request else 0)
            answers["outcome"].append(json.dumps(asdict(outcome)) if outcome else "")
            answers["error"].append(error)

        if self.error is None:
            try:
                self.backend.run(requests, emit, Event())
            except PolarError as error:
                emit(None, None, str(error))
        else:
            emit(None, None, self.error)
        return answers

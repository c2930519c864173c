"""A Ray cluster: a policy's requests are a dataset that actors answer, each with the policy loaded. Rows flow back to the driver.

Policies follow one another, each with all its actors. Ray replaces an actor that dies and repeats the block that it worked on.
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
from polar_rm.sampling.engines import Events, PolicyFailed, SampleArrived, Started, Work, by_key

_BLOCK = 4  # batches, or rounds of all connections: an actor's results are stored after each block


def run(work: Work, machine: Machine) -> Generator[list[Events], None, None]:
    """Events as they reach the driver, on the cluster that this process has joined or that RAY_ADDRESS names.

    Raises:
        PolarError: Ray is not installed.
    """
    with needs("ray", "engine: ray"):
        import ray
    if work and not ray.is_initialized():
        ray.init()
    for policy, requests in work:
        yield [Started(policy.name)]
        yield from _run_policy(policy, requests, machine)


def _run_policy(policy: Policy, requests: Sequence[Request], machine: Machine) -> Generator[list[Events], None, None]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    DataContext.get_current().enable_progress_bars = False
    size = _BLOCK * policy.max_concurrent(machine)
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
        events: list[Events] = []
        for row in cast(pa.Table, batch).to_pylist():
            if row["died"] is not None:
                yield [*events, PolicyFailed(policy.name, row["died"])]
                return
            events.append(
                SampleArrived(policy.name, known[row["prompt_id"], row["sample_id"]], _outcome(json.loads(row["outcome"])))
            )
        yield events


def _outcome(values: dict[str, Any]) -> Outcome:
    return NoSample(**values) if "kind" in values else Sample(**values)


class _Actor:
    """Holds one loaded policy. What a user did wrong comes back as a row: Ray would wrap an exception, and try again."""

    def __init__(self, policy: Policy, machine: Machine) -> None:
        self.died: str | None = None
        try:
            self.backend = policy.open(machine)
        except PolarError as error:
            self.died = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = zip(batch["prompt_id"], batch["prompt"], batch["sample_id"], batch["seed"], strict=True)
        requests = [Request(str(key), json.loads(prompt), int(sample), int(seed)) for key, prompt, sample, seed in columns]
        answers: dict[str, list[Any]] = {"prompt_id": [], "sample_id": [], "outcome": [], "died": []}

        def emit(request: Request | None, outcome: Outcome | None, died: str | None = None) -> None:
            answers["prompt_id"].append(request.prompt_id if request else "")
            answers["sample_id"].append(request.sample_id if request else 0)
            answers["outcome"].append(json.dumps(asdict(outcome)) if outcome else "")
            answers["died"].append(died)

        if self.died is None:
            try:
                self.backend.run(requests, emit, Event())
            except PolarError as error:
                emit(None, None, str(error))
        else:
            emit(None, None, self.died)
        return answers

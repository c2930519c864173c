"""Runs a sampling plan: every sample is stored when it arrives, and an interrupted run continues with what is missing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polar_rm.devices import compute_dtype, pick_device
from polar_rm.errors import PolarError
from polar_rm.files import sha256, write_json
from polar_rm.provenance import versions
from polar_rm.records import Text, Trajectory, read_prompts, read_trajectories, write_records
from polar_rm.sampling.policies import Policy, Request, SamplingConfig, requests_of

Progress = Callable[[str, int, int, int], None]
"""Called with policy, its samples done, its total, and tokens generated in this run."""


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What a run will ask for: prompts and, policy by policy, requests."""

    prompts: list[tuple[str, Text]]
    requests: dict[str, list[Request]]


def make_plan(config: SamplingConfig) -> SamplingPlan:
    """Read the prompts and lay out all requests.

    Raises:
        BadRow: a prompt is not one, or its id came before.
    """
    chosen = list(read_prompts(config.prompts))[: config.limit]
    return SamplingPlan(chosen, {p.name: requests_of(p, chosen, config.seed) for p in config.policies})


def sample(config: SamplingConfig, progress: Progress = lambda *_: None) -> Path:
    """Draw what is missing and write ``trajectories.parquet`` and ``manifest.json``; returns the Parquet file.

    Raises:
        PolarError: the folder holds samples of other settings, a model can't be loaded, a prompt does not fit its context.
    """
    plan = make_plan(config)
    store = config.output / "store"
    store.mkdir(parents=True, exist_ok=True)
    _claim(config)
    for policy in config.policies:
        _sample_policy(config, policy, plan.requests[policy.name], store / f"{policy.name}.jsonl", progress)
    target = config.output / "trajectories.parquet"
    count = write_records(target, _in_order(config, plan, store))
    write_json(config.output / "manifest.json", _manifest(config, plan, target, count))
    return target


def _sample_policy(config: SamplingConfig, policy: Policy, requests: list[Request], path: Path, progress: Progress) -> None:
    done = set(_stored(path))
    missing = [request for request in requests if (request.prompt_id, request.sample_id) not in done]
    progress(policy.name, len(done), len(requests), 0)
    if not missing:
        return
    from polar_rm.sampling.backends.transformers import TransformersPolicy

    device = pick_device(config.device)
    engine = TransformersPolicy(policy, dtype=compute_dtype(config.precision, device), device=device)
    missing.sort(key=lambda request: len(str(request.prompt)))  # little padding
    tokens = 0
    with path.open("a", encoding="utf-8") as file:
        for start in range(0, len(missing), config.batch_size):
            batch = missing[start : start + config.batch_size]
            for request, answer in zip(batch, engine.sample(batch), strict=True):
                tokens += answer.n_tokens
                row: dict[str, Any] = {"source": config.source, "prompt_id": request.prompt_id, "prompt": request.prompt}
                row |= {"policy": policy.name, "sample_id": request.sample_id, "text": answer.text}
                row |= policy.decoding.model_dump(include={"temperature", "top_p", "top_k"})
                row |= {"seed": request.seed, "finish_reason": answer.finish_reason, "n_tokens": answer.n_tokens}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            progress(policy.name, len(done) + start + len(batch), len(requests), tokens)


def _stored(path: Path) -> Iterator[tuple[str, int]]:
    """Samples that have arrived; a last line that an interruption cut is removed."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(end)
                break
            end += len(line)
            row = json.loads(line)
            yield row["prompt_id"], row["sample_id"]


def _in_order(config: SamplingConfig, plan: SamplingPlan, store: Path) -> Iterator[Trajectory]:
    """By prompt, then policy, then sample, whatever order they arrived in."""
    rows = {
        (row.prompt_id, row.policy, row.sample_id): row
        for policy in config.policies
        for row in read_trajectories(store / f"{policy.name}.jsonl")
    }
    for prompt_id, _ in plan.prompts:
        for policy in config.policies:
            yield from (rows[prompt_id, policy.name, sample_id] for sample_id in range(policy.samples))


def _identity(config: SamplingConfig) -> dict[str, Any]:
    """What the samples depend on."""
    return {"prompts": sha256(config.prompts), **config.model_dump(mode="json", exclude={"output", "prompts", "batch_size"})}


def _claim(config: SamplingConfig) -> None:
    """Refuses a folder that holds samples of other settings: they would be mixed without a trace."""
    path, identity = config.output / "settings.json", _identity(config)
    if not path.exists():
        write_json(path, identity)
        return
    saved = json.loads(path.read_text())
    changed = [key for key in identity if saved.get(key) != identity[key]]
    if changed:
        differences = "; ".join(f"{key}: {_short(saved.get(key))} there, {_short(identity[key])} now" for key in changed)
        raise PolarError(f"{config.output} holds samples of other settings ({differences}); use another output folder")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _manifest(config: SamplingConfig, plan: SamplingPlan, target: Path, count: int) -> dict[str, Any]:
    return {
        "settings": _identity(config),
        "versions": versions(),
        "n_prompts": len(plan.prompts),
        "n_trajectories": count,
        "sha256": sha256(target),
    }

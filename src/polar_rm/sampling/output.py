"""Writes the Parquet files and the manifest from a store."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from polar_rm.common.files import sha256, sync, write_json
from polar_rm.common.manifests import DataFile, describe_data_file
from polar_rm.common.provenance import versions
from polar_rm.records import Trajectory, write_records
from polar_rm.sampling.base import Policy
from polar_rm.sampling.config import SamplingConfig
from polar_rm.sampling.plan import SamplingPlan
from polar_rm.sampling.prompts import Prompt, input_files
from polar_rm.sampling.store import Store

SCHEMA = "polar-rm/trajectories/1"


class TrajectoryFile(DataFile):
    """An entry of the manifest. file: relative to the output folder."""

    file: str


def trajectories_path(config: SamplingConfig) -> Path:
    """The Parquet file, or a folder of Parquet files for several buckets."""
    return config.output / ("trajectories.parquet" if config.buckets == 1 else "trajectories")


def write_trajectories(config: SamplingConfig, plan: SamplingPlan, store: Store) -> list[TrajectoryFile]:
    """Write all planned samples that are in the store; returns {file, rows, bytes, sha256} of each file.

    Rows are sorted by prompt, policy and sample, in whatever order they arrived. A prompt's bucket is a hash of its id: one file
    holds all samples of a prompt, so the files can be read in parallel. An empty bucket has no file.

    Files of an earlier run stay until all new ones are written under hidden names, which are then renamed. If the process is
    killed between these steps, ``manifest.json`` lists other files than those in the folder, so a reader notices.
    """
    planned = _planned(config, plan)
    target, n = trajectories_path(config), config.buckets
    members: list[list[Prompt]] = [[] for _ in range(n)]
    for prompt in plan.prompts:
        members[int.from_bytes(hashlib.sha256(prompt.prompt_id.encode()).digest()[:8]) % n].append(prompt)
    staging = config.output / ".trajectories.partial"
    shutil.rmtree(staging, ignore_errors=True)
    files: list[TrajectoryFile] = []
    for number, prompts in enumerate(members):
        rows = _trajectories(config, store, prompts, planned)
        if (first := next(rows, None)) is None:
            continue
        path = target if n == 1 else target / f"{number:05d}-of-{n:05d}.parquet"
        written = staging / path.name
        count = write_records(written, chain([first], rows))
        files.append({"file": str(path.relative_to(config.output)), **describe_data_file(written, count)})
    for each in files:
        path = config.output / each["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        (staging / path.name).replace(path)
    shutil.rmtree(staging, ignore_errors=True)
    for folder in {(config.output / each["file"]).parent for each in files}:
        sync(folder)
    return files


def remove_stale(config: SamplingConfig, files: list[TrajectoryFile]) -> None:
    """Remove trajectories of an earlier run, such as one with another number of buckets. Call it once the manifest lists the new
    files."""
    kept = {config.output / each["file"] for each in files}
    folder = config.output / "trajectories"
    old = [config.output / "trajectories.parquet", *folder.glob(f"[0-9]*-of-{'[0-9]' * 5}.parquet")]
    for path in old:
        if path not in kept:
            path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def write_manifest(
    config: SamplingConfig, plan: SamplingPlan, files: list[TrajectoryFile], policies: list[dict[str, Any]]
) -> None:
    """Write ``manifest.json``: the contents, settings and inputs of the files."""
    settings = config.model_dump(mode="json")
    content = {
        "schema": SCHEMA,
        "settings": settings,
        "inputs": {str(file): sha256(file) for source in config.prompts for file in input_files(source).files},
        **versions(),
        "n_prompts": len(plan.prompts),
        "n_trajectories": sum(file["rows"] for file in files),
        "prefixes": plan.counts,
        "bad_rows": plan.bad_rows,
        "policies": policies,
        "files": files,
    }
    write_json(config.output / "manifest.json", content)


def _planned(config: SamplingConfig, plan: SamplingPlan) -> dict[str, list[tuple[Policy, int]]]:
    """By prompt id: the policies in the order of the config, with their numbers of samples."""
    planned: dict[str, list[tuple[Policy, int]]] = {prompt.prompt_id: [] for prompt in plan.prompts}
    for policy in config.policies:
        for index, count in plan.shares[policy.name]:
            planned[plan.prompts[index].prompt_id].append((policy, count))
    return planned


def _trajectories(
    config: SamplingConfig, store: Store, prompts: list[Prompt], planned: dict[str, list[tuple[Policy, int]]]
) -> Iterator[Trajectory]:
    for prompt in prompts:
        samples = store.samples_of(prompt.prompt_id)
        for policy, count in planned[prompt.prompt_id]:
            for sample_id in range(count):
                if (policy.name, sample_id) not in samples:
                    continue
                seed, sample = samples[policy.name, sample_id]
                yield Trajectory(
                    source=config.source,
                    prompt_id=prompt.prompt_id,
                    prompt=prompt.prompt,
                    policy=policy.name,
                    sample_id=sample_id,
                    text=sample.text,
                    temperature=policy.decoding.temperature,
                    top_p=policy.decoding.top_p,
                    top_k=policy.decoding.top_k,
                    seed=seed if policy.is_seeded() else None,
                    finish_reason=sample.finish_reason,
                    n_tokens=sample.n_tokens,
                    metadata=_metadata(policy),
                )


def _metadata(policy: Policy) -> dict[str, Any]:
    """The policy's relations to others, and how its text joins the prompt (see ``wrapper`` of a comparison)."""
    metadata: dict[str, Any] = {"family": policy.family, "wrapper": "pretrain" if policy.continues() else "sft"}
    if policy.checkpoint_of is not None:
        metadata["checkpoint_of"] = policy.checkpoint_of
    if policy.step is not None:
        metadata["step"] = policy.step
    return metadata

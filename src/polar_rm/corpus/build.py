"""Runs a build: parts, buckets, caps, report. An interrupted build continues with its missing tasks.

All files are written under ``work/`` in the output folder and moved from there. The manifest is written last: a folder without
one is not finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.common.files import claim_folder, is_claimed, read_json, sha256, write_file, write_json
from polar_rm.common.locks import owned
from polar_rm.common.manifests import DataFile, check_content, check_manifest
from polar_rm.common.outputs import FOUND, output_line
from polar_rm.common.progress import Progress, silent
from polar_rm.common.provenance import versions
from polar_rm.corpus.buckets import build_bucket
from polar_rm.corpus.card import CARD, data_card
from polar_rm.corpus.config import Continuations, CorpusConfig
from polar_rm.corpus.contamination import index_evaluations
from polar_rm.corpus.counts import TextCounter, merge_examples, sum_counts
from polar_rm.corpus.job import Job
from polar_rm.corpus.lineage import lineage
from polar_rm.corpus.partition import partition
from polar_rm.corpus.plan import SCHEMA, CorpusPlan, make_plan
from polar_rm.corpus.report import make_report, write_html
from polar_rm.corpus.results import BucketResult, PartResult, ThinnedResult
from polar_rm.corpus.splits import SPLITS, held_out_policies
from polar_rm.corpus.stages import lines_before, refused_rows, run_stage, write_lines
from polar_rm.corpus.text_build import pair_texts
from polar_rm.corpus.text_report import make_text_report
from polar_rm.corpus.thinning import kept_rows, thin_bucket
from polar_rm.errors import MachineFailure, PolarError
from polar_rm.records import find_files

_HOLDS = "a corpus"
_NOT_IN_IDENTITY = {"output", "inputs", "verify", "engine", "workers", "report", "decontamination"}


def build(config: CorpusConfig, *, progress: Progress = silent) -> dict[str, Any]:
    """Build the corpus, or its missing parts, and return its report.

    Raises:
        MachineFailure: the disk is full or workers were killed; the same call continues.
        Damaged: the finished corpus, or an input that polar wrote, differs from its manifest.
        PolarError: the input is bad, the output folder has other settings or is in use, or there is nothing to compare.
    """
    plan = make_plan(config)
    job = Job(config, config.on_bad_row == "skip", plan.parts, plan.n_buckets)
    with owned(config.output, "corpus"):
        inputs = _facts(plan)
        for file, facts in zip(plan.files, inputs, strict=True):
            check_content(file, str(facts["sha256"]))
        claim_folder(config.output, _identity(job, inputs), _HOLDS)
        if (config.output / "manifest.json").exists():
            check_manifest(config.output, full=config.verify)
            shutil.rmtree(job.work, ignore_errors=True)  # left by a kill after the manifest was written
            return read_json(config.output / "report.json")
        try:
            return _run(job, plan, inputs, progress)
        except MachineFailure:
            raise
        except PolarError:
            # The input or a setting is at fault. The next attempt will have others, so the folder must not stay claimed.
            shutil.rmtree(job.work, ignore_errors=True)
            (config.output / "settings.json").unlink()
            raise


def describe_output(config: CorpusConfig, plan: CorpusPlan) -> str:
    """A plan's line about the output folder. The inputs are hashed only where the folder holds a corpus to compare them with.

    Raises:
        PolarError: the folder holds something else, or a corpus of other settings.
    """
    job = Job(config, config.on_bad_row == "skip", plan.parts, plan.n_buckets)
    if not is_claimed(config.output, lambda: _identity(job, _facts(plan)), _HOLDS):
        return output_line(config.output, FOUND["new"])
    return output_line(config.output, FOUND["finished" if (config.output / "manifest.json").exists() else "unfinished"])


def _facts(plan: CorpusPlan) -> list[dict[str, Any]]:
    return [{"name": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)} for file in plan.files]


@dataclass(frozen=True, slots=True)
class _Built:
    """What a kind of pairing has built.

    folder: of the shards, in ``work/``. shards: split -> file, for every bucket. dropped: rows of ``contaminated.jsonl``. report:
    makes the report when the shards are in the output folder.
    """

    job: Job
    folder: str
    buckets: list[BucketResult]
    shards: list[dict[str, DataFile]]
    dropped: Iterable[Mapping[str, Any]]
    report: Callable[[], dict[str, Any]]


def _run(job: Job, plan: CorpusPlan, inputs: list[dict[str, Any]], progress: Progress) -> dict[str, Any]:
    output = job.config.output
    built = (_build_texts if isinstance(job.config.pairing, Continuations) else _build_policies)(job, plan, progress)
    progress("report", 0, 1)
    _publish(built)
    write_lines(output / "refused.jsonl", refused_rows(built.job, built.buckets))
    write_lines(output / "contaminated.jsonl", built.dropped)
    report = {"schema": SCHEMA, **built.report()}
    write_json(output / "report.json", report)
    write_html(output / "report.html", report)
    manifest = _manifest(built.job, inputs, report, built.shards)
    write_file(output / CARD, data_card(manifest, report))
    write_json(output / "manifest.json", manifest)
    shutil.rmtree(job.work)
    progress("report", 1, 1)
    return report


def _build_policies(job: Job, plan: CorpusPlan, progress: Progress) -> _Built:
    parts = run_stage(job, "parts", partition, PartResult, len(plan.parts), progress)
    job = _with_policies(job, plan, parts)
    buckets = run_stage(job, "buckets", build_bucket, BucketResult, plan.n_buckets, progress)
    shards = [bucket.shards for bucket in buckets]
    if not any(shards):
        raise PolarError(f"there is nothing to compare: {_reason(parts, buckets)}")
    folder = "shards"
    if job.config.of_policies.per_policy is not None:
        folder = "thin"
        job = replace(job, thresholds=_thresholds(job))
        shards = [thinned.shards for thinned in run_stage(job, "thinned", thin_bucket, ThinnedResult, plan.n_buckets, progress)]
    dropped = (row for bucket in buckets for row in bucket.contaminated)
    return _Built(job, folder, buckets, shards, dropped, lambda: _report(job, parts, buckets, shards))


def _build_texts(job: Job, plan: CorpusPlan, progress: Progress) -> _Built:
    texts = pair_texts(job, progress)
    shards = [bucket.shards for bucket in texts.buckets]
    ledgers = (pq.read_table(texts.job.path("ledgers", number, ".parquet")) for number in range(plan.n_buckets))
    return _Built(
        texts.job,
        "shards",
        texts.buckets,
        shards,
        texts.dropped,
        lambda: make_text_report(texts.job, texts.counts, texts.examples, enumerate(ledgers), shards),
    )


def _identity(job: Job, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings and inputs that the shards depend on."""
    config = job.config
    settings = config.model_dump(mode="json", exclude=_NOT_IN_IDENTITY)
    evaluations = sorted(sha256(file) for source in config.decontamination.files for file in find_files(source))
    hashes: dict[str, list[str]] = {}
    for each in inputs:
        hashes.setdefault(each["name"], []).append(each["sha256"])
    identity = {
        "inputs": hashes,
        **settings,
        "decontamination": {"n": config.decontamination.n, "files": evaluations},
        "report": config.report.model_dump(mode="json"),
        "n_buckets": job.n_buckets,
    }
    if isinstance(config.pairing, Continuations) and config.pairing.beginning.tokenizer:
        identity["tokenizer"] = sha256(config.pairing.beginning.tokenizer / "tokenizer.json")
    return identity


def _with_policies(job: Job, plan: CorpusPlan, parts: list[PartResult]) -> Job:
    """The job with the policies that the first pass found, and everything that depends on them."""
    config = job.config
    policies = tuple(sorted({policy for part in parts for policy in part.policies}))
    if len(policies) < 2:
        raise PolarError(f"there is nothing to compare: {_reason(parts, [])}")
    evaluations = config.decontamination.files
    job = replace(
        job,
        lines_before=tuple(lines_before(job.parts, parts)),
        policies=policies,
        lineage=lineage(config, plan.files, policies, [part.lineage for part in parts]),
        unseen=held_out_policies(policies, config.splits, seed=config.seed),
        evaluations=index_evaluations(evaluations, config.decontamination.n) if evaluations else None,
    )
    # Both raise for bad settings, before the second pass starts.
    job.comparable()
    TextCounter.load(config.report.tokenizer)
    return job


def _reason(parts: list[PartResult], buckets: list[BucketResult]) -> str:
    policies = sorted({policy for part in parts for policy in part.policies})
    if not policies:
        return "no row of the inputs is a trajectory"
    if len(policies) == 1:
        return f"all trajectories are of one policy, {policies[0]!r}"
    counts = sum_counts(bucket.counts for bucket in buckets)
    if counts["prompts"]["contaminated"] and counts["prompts"]["contaminated"] == counts["prompts"].get("with_texts"):
        return f"all {counts['prompts']['contaminated']:,} prompts are in the evaluation files"
    return "no prompt has two different texts of one policy and a text of another policy that the settings allow"


def _thresholds(job: Job) -> dict[str, dict[str, int]]:
    """Split -> policy -> its largest key that is kept; only for policies with more comparisons than ``per_policy``."""
    keys: dict[tuple[str, int], list[int]] = {}
    for number in range(job.n_buckets):
        ledger = pq.read_table(job.path("ledgers", number, ".parquet"), columns=["split", "policy", "key"])
        for split, policy, key in zip(*(ledger[name].to_pylist() for name in ("split", "policy", "key")), strict=True):
            keys.setdefault((split, policy), []).append(key)
    cap = job.config.of_policies.per_policy or 0
    thresholds: dict[str, dict[str, int]] = {}
    for (split, policy), each in keys.items():
        if len(each) > cap:
            thresholds.setdefault(split, {})[job.policies[policy]] = sorted(each)[cap - 1]
    return thresholds


def _publish(built: _Built) -> None:
    """Move the finished shards to the output folder, one split at a time."""
    shards = built.job.work / built.folder
    for split in SPLITS:
        if (shards / split).exists():
            (shards / split).replace(built.job.config.output / split)


def _report(job: Job, parts: list[PartResult], buckets: list[BucketResult], shards: list[dict[str, DataFile]]) -> dict[str, Any]:
    counts = sum_counts(bucket.counts for bucket in buckets)
    counts["trajectories"]["read"] = sum(part.rows + part.refused + part.unselected for part in parts)
    counts["trajectories"]["unselected"] = sum(part.unselected for part in parts)
    counts["trajectories"]["refused"] = sum(part.refused for part in parts) + sum(len(bucket.refused) for bucket in buckets)
    examples = merge_examples(bucket.examples for bucket in buckets)
    return make_report(job, counts, examples, _ledgers(job), shards)


def _ledgers(job: Job) -> Iterator[tuple[int, pa.Table]]:
    for number in range(job.n_buckets):
        ledger = pq.read_table(job.path("ledgers", number, ".parquet"))
        yield number, ledger.filter(pa.array(kept_rows(job, ledger))) if job.thresholds else ledger


def _manifest(
    job: Job, inputs: list[dict[str, Any]], report: dict[str, Any], shards: list[dict[str, DataFile]]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "settings": _identity(job, inputs),
        "inputs": inputs,
        "licences": job.config.licences,
        "counts": report["counts"],
        "policies": report["policies"],
        "shards": {
            f"{split}/{number:05d}.parquet": each[split]
            for split in SPLITS
            for number, each in enumerate(shards)
            if split in each
        },
        **versions(),
    }

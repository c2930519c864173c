"""Caps: the third pass of a build, which removes comparisons of policies that have too many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.common.manifests import describe_data_file
from polar_rm.corpus.job import Job
from polar_rm.corpus.results import ThinnedResult, save_result


def thin_bucket(job: Job, number: int) -> None:
    """Keep the comparisons of capped policies with the smallest keys; writes ``thinned/NUMBER.json``."""
    files = {}
    ledger = pq.read_table(job.path("ledgers", number, ".parquet"))
    keep = kept_rows(job, ledger)
    splits = np.array(ledger["split"].to_pylist(), object)
    for split in sorted(set(splits)):
        table = pq.read_table(job.path(f"shards/{split}", number, ".parquet"))
        if (mask := keep[splits == split]).any():
            target = job.path(f"thin/{split}", number, ".parquet")
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.filter(pa.array(mask)), target, compression="zstd")
            files[split] = describe_data_file(target, int(mask.sum()))
    save_result(job.path("thinned", number, ".json"), ThinnedResult(files))


def kept_rows(job: Job, ledger: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool [rows]: the comparisons whose keys are within the job's thresholds."""
    keep = np.ones(len(ledger), bool)
    keys, policies = ledger["key"].to_numpy(), ledger["policy"].to_numpy()
    splits = np.array(ledger["split"].to_pylist(), object)
    for split, thresholds in job.thresholds.items():
        for policy, largest in thresholds.items():
            keep &= ~((splits == split) & (policies == job.policies.index(policy)) & (keys > np.uint64(largest)))
    return keep

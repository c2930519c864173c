"""The second pass of a build: it turns the rows of one bucket's prompts into shards of comparisons."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.common.manifests import DataFile, describe_data_file
from polar_rm.corpus.cleaning import clean_all
from polar_rm.corpus.counts import Tally, TextCounter
from polar_rm.corpus.job import Job
from polar_rm.corpus.pairing import Comparable, ComparisonTexts, TextsByPolicy, draw_comparisons, generator
from polar_rm.corpus.partition import SCHEMA
from polar_rm.corpus.parts import read_bucket
from polar_rm.corpus.results import LEDGER, BucketResult, Contaminated, LedgerRow, Refusal, save_result
from polar_rm.corpus.splits import SPLITS, assign_splits
from polar_rm.errors import PolarError
from polar_rm.records import Comparison, Text, flatten, from_cell, is_held_out, write_records


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """The distinct texts of one prompt after cleaning. source: the alphabetically first source of its rows."""

    prompt_id: str
    prompt: Text
    source: str
    texts_by_policy: TextsByPolicy


def build_bucket(job: Job, number: int) -> None:
    """Write a shard for every split, ``ledgers/NUMBER.parquet`` and, when both are complete, ``buckets/NUMBER.json``.

    Raises:
        PolarError: rows with one prompt_id have different prompts, and bad rows are not skipped.
    """
    tally, refused = Tally(), list[Refusal]()
    count_text = TextCounter.load(job.config.report.tokenizer)
    shards: dict[str, list[Comparison]] = {split: [] for split in SPLITS}
    ledger: list[LedgerRow] = []
    contaminated: list[Contaminated] = []
    comparable = job.comparable()
    for prompt in _prompts(job, number, tally, refused, count_text):
        if job.evaluations and (match := job.evaluations.match(prompt.prompt)):
            contaminated.append({"prompt_id": prompt.prompt_id, "prompt": prompt.prompt, "match": match})
            continue
        for split, drawn in _draw(job, prompt, comparable):
            shards[split].append(_comparison(job, prompt, drawn))
            ledger.append(_entry(job, split, prompt, drawn, count_text))
    files = {split: _write_shard(job, split, number, rows) for split, rows in shards.items() if rows}
    ledger.sort(key=lambda row: SPLITS.index(row["split"]))
    path = job.path("ledgers", number, ".parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(ledger, LEDGER), path)
    tally.add("prompts", "contaminated", len(contaminated))
    result = BucketResult(tally.counts, tally.examples, contaminated, refused, files)
    save_result(job.path("buckets", number, ".json"), result)


def _write_shard(job: Job, split: str, number: int, comparisons: list[Comparison]) -> DataFile:
    path = job.path(f"shards/{split}", number, ".parquet")
    return describe_data_file(path, write_records(path, comparisons))


def _draw(job: Job, prompt: PromptTexts, comparable: Comparable) -> Iterator[tuple[str, ComparisonTexts]]:
    splits, seed, pairing = job.config.splits, job.config.seed, job.config.of_policies
    held_out = is_held_out(prompt.prompt, splits.prompts, seed=seed)
    for split, (references, members) in assign_splits(held_out, prompt.texts_by_policy, job.unseen, splits).items():
        texts_by_policy = {policy: texts for policy, texts in prompt.texts_by_policy.items() if policy in members}
        rng = generator(seed, prompt.prompt_id)
        for drawn in draw_comparisons(texts_by_policy, pairing, rng, references=references, comparable=comparable):
            yield split, drawn


def _comparison(job: Job, prompt: PromptTexts, drawn: ComparisonTexts) -> Comparison:
    policy, *others = drawn.policies
    distances = {job.lineage.distance(policy, other) for other in others}
    metadata: dict[str, object] = {"source": prompt.source, "prompt_id": prompt.prompt_id}
    if distances != {"unknown"}:
        metadata["distance"] = distances.pop() if len(distances) == 1 else "mixed"
    return drawn.comparison(prompt.prompt, metadata, job.wrapper(policy))


def _entry(job: Job, split: str, prompt: PromptTexts, drawn: ComparisonTexts, count_text: TextCounter) -> LedgerRow:
    codes = [bisect_left(job.policies, policy) for policy in drawn.policies]
    digest = hashlib.blake2b(json.dumps([job.config.seed, prompt.prompt_id, drawn.policies[0]]).encode(), digest_size=8)
    sizes = [count_text(text) for text in (flatten(prompt.prompt), drawn.reference, *drawn.positives, *drawn.negatives)]
    characters, words, tokens = map(sum, zip(*sizes, strict=True))
    return {
        "split": split,
        "key": int.from_bytes(digest.digest()),
        "policy": codes[0],
        "positives": len(drawn.positives),
        "negatives": codes[1:],
        "characters": characters,
        "words": words,
        "tokens": tokens,
    }


Rows = dict[str, list[Any]]
"""Column -> values of the bucket's rows; a row is identified by its index."""


def _prompts(job: Job, number: int, tally: Tally, refused: list[Refusal], count_text: TextCounter) -> Iterator[PromptTexts]:
    """The bucket's prompts in the order of their hashes, with cleaned texts."""
    rows = _read(job, number)
    kept: list[int] = []
    for _, indices in groupby(range(len(rows["row"])), rows["prompt_id"].__getitem__):
        kept += _with_most_common_prompt(job, rows, list(indices), refused)
    kept = _distinct(rows, kept, tally)
    cleaned = clean_all([rows["text"][i] for i in kept], [rows["finish_reason"][i] for i in kept], job.config.cleaning)
    for prompt_id, texts_of_prompt in groupby(zip(kept, cleaned, strict=True), lambda pair: rows["prompt_id"][pair[0]]):
        texts_by_policy: dict[str, set[str]] = defaultdict(set)
        sources = set()
        for index, result in texts_of_prompt:
            policy = rows["policy"][index]
            sources.add(rows["source"][index])
            if result.removed:
                tally.add_policy(policy, "cleaned")
                tally.add_cleaning(rows["text"][index], result.text, result.removed, prompt_id, policy)
            text = result.text.rstrip()  # a trailing newline would show that cleaning removed a last line
            if text in texts_by_policy[policy]:
                tally.add("trajectories", "equal_after_cleaning")
            else:
                texts_by_policy[policy].add(text)
                tally.add_text(policy, count_text(text), rows["n_tokens"][index])
        tally.add("prompts", "with_texts")
        texts = {policy: sorted(each) for policy, each in sorted(texts_by_policy.items())}
        yield PromptTexts(prompt_id, from_cell(rows["prompt"][index]), min(sources), texts)


def _read(job: Job, number: int) -> Rows:
    """Read the bucket's batches from all parts, sorted by prompt; a prompt's rows keep the order of the input."""
    table = read_bucket(job, number, SCHEMA)
    names = list(zip(table["hash"].to_pylist(), table["prompt_id"].to_pylist(), strict=True))
    order = sorted(range(len(names)), key=names.__getitem__)
    return {name: values for name, values in table.take(pa.array(order, pa.int64())).to_pydict().items() if name != "hash"}


def _with_most_common_prompt(job: Job, rows: Rows, indices: list[int], refused: list[Refusal]) -> list[int]:
    """The rows of one prompt_id, without those that have another prompt than most rows have."""
    prompts = Counter(rows["prompt"][index] for index in indices)
    if len(prompts) == 1:
        return indices
    prompt_id = rows["prompt_id"][indices[0]]
    chosen = min(prompts, key=lambda prompt: (-prompts[prompt], prompt))
    same, others = ([i for i in indices if (rows["prompt"][i] == chosen) == is_same] for is_same in (True, False))
    paths = [str(part.path) for part in job.parts]
    if not job.skip_bad_rows:
        bad, good = (f"{paths[rows['part'][i]]}: row {job.row(rows['part'][i], rows['row'][i])}" for i in (others[0], same[0]))
        raise PolarError(f"{bad}: prompt_id {prompt_id!r} has another prompt than in {good}")
    for i in others:
        content = {name: rows[name][i] for name in ("source", "prompt_id", "prompt", "policy", "text")}
        expected = f"the prompt that most rows of {prompt_id!r} have"
        path, row = paths[rows["part"][i]], job.row(rows["part"][i], rows["row"][i])
        refused.append({"path": path, "row": row, "field": "prompt", "expected": expected, "content": content})
    return same


def _distinct(rows: Rows, indices: list[int], tally: Tally) -> list[int]:
    """The rows without empty texts, which no comparison can use, and without exact duplicates; both are counted."""
    distinct: dict[tuple[str, str, str], int] = {}
    tally.add("trajectories", "rows", len(indices))
    tally.add("trajectories", "samples", sum(rows["dup_count"][index] or 1 for index in indices))
    for index in indices:
        policy, text = rows["policy"][index], rows["text"][index]
        if not text or text.isspace():
            tally.add("trajectories", "empty")
            tally.add_policy(policy, "empty")
            continue
        key = rows["prompt_id"][index], policy, text
        other = distinct.setdefault(key, index)
        if other != index:
            tally.add("trajectories", "duplicates")
            # Cleaning depends on the finish_reason, so the kept copy must not depend on the order of rows.
            if (rows["finish_reason"][index] or "") < (rows["finish_reason"][other] or ""):
                distinct[key] = index
    return list(distinct.values())

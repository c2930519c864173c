"""Second pass: the prompts of one bucket, from their rows to comparisons in shards."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.common.manifests import DataFile, describe_data_file
from polar_rm.corpus.cleaning import Cleaned, clean_all
from polar_rm.corpus.counts import Tally, TextCounter, excerpts
from polar_rm.corpus.job import Job
from polar_rm.corpus.pairing import ComparisonTexts, MayMeet, TextsByPolicy, draw_comparisons, generator
from polar_rm.corpus.partition import SCHEMA
from polar_rm.corpus.results import LEDGER, BucketResult, Contaminated, LedgerRow, Refusal, save_result
from polar_rm.corpus.splits import SPLITS, is_held_out, layout
from polar_rm.errors import PolarError
from polar_rm.records import Comparison, Text, flatten, from_cell, write_records


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """One prompt's different texts. texts_by_policy: after cleaning. source: the first of them that its rows name."""

    prompt_id: str
    prompt: Text
    source: str
    texts_by_policy: TextsByPolicy


def build_bucket(job: Job, number: int) -> None:
    """Write a shard for every split, ``ledgers/NUMBER.parquet`` and, when all is complete, ``buckets/NUMBER.json``.

    Raises:
        PolarError: a prompt_id names two prompts, and bad rows are not skipped.
    """
    tally, refused = Tally(), list[Refusal]()
    count_text = TextCounter.load(job.config.report.tokenizer)
    shards: dict[str, list[Comparison]] = {split: [] for split in SPLITS}
    ledger: list[LedgerRow] = []
    contaminated: list[Contaminated] = []
    may_meet = job.may_meet()
    for prompt in _prompts(job, number, tally, refused, count_text):
        if job.evaluations and (match := job.evaluations.match(prompt.prompt)):
            contaminated.append({"prompt_id": prompt.prompt_id, "prompt": prompt.prompt, "match": match})
            continue
        for split, drawn in _pairs(job, prompt, may_meet):
            shards[split].append(_comparison(job, prompt, drawn))
            ledger.append(_entry(job, split, prompt, drawn, count_text))
    written = {split: _write_shard(job, split, number, rows) for split, rows in shards.items() if rows}
    ledger.sort(key=lambda row: SPLITS.index(row["split"]))
    path = job.path("ledgers", number, ".parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(ledger, LEDGER), path)
    tally.add("prompts", "contaminated", len(contaminated))
    result = BucketResult(tally.counts, tally.examples, contaminated, refused, written)
    save_result(job.path("buckets", number, ".json"), result)


def _write_shard(job: Job, split: str, number: int, comparisons: list[Comparison]) -> DataFile:
    path = job.path(f"shards/{split}", number, ".parquet")
    return describe_data_file(path, write_records(path, comparisons))


def _pairs(job: Job, prompt: PromptTexts, may_meet: MayMeet) -> Iterator[tuple[str, ComparisonTexts]]:
    splits, seed = job.config.splits, job.config.seed
    held = is_held_out(prompt.prompt, splits.prompts, seed=seed)
    for split, (references, members) in layout(held, prompt.texts_by_policy, job.unseen, splits).items():
        texts_by_policy = {policy: texts for policy, texts in prompt.texts_by_policy.items() if policy in members}
        rng = generator(seed, prompt.prompt_id)
        for drawn in draw_comparisons(texts_by_policy, job.config.pairing, rng, references=references, may_meet=may_meet):
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
"""The bucket's rows, column by column; a row is known by its index."""


def _prompts(job: Job, number: int, tally: Tally, refused: list[Refusal], count_text: TextCounter) -> Iterator[PromptTexts]:
    """The bucket's prompts in the order of their hashes, with cleaned texts."""
    rows = _read(job, number)
    kept: list[int] = []
    for _, indices in groupby(range(len(rows["row"])), rows["prompt_id"].__getitem__):
        kept += _of_one_prompt(job, rows, list(indices), refused)
    kept = _distinct(rows, kept, tally)
    cleaned = clean_all([rows["text"][i] for i in kept], [rows["finish_reason"][i] for i in kept], job.config.cleaning)
    for prompt_id, texts_of_prompt in groupby(zip(kept, cleaned, strict=True), lambda pair: rows["prompt_id"][pair[0]]):
        texts_by_policy: dict[str, set[str]] = defaultdict(set)
        sources = set()
        for index, result in texts_of_prompt:
            policy = rows["policy"][index]
            sources.add(rows["source"][index])
            _note_cleaning(tally, rows["text"][index], result, prompt_id, policy)
            text = result.text.rstrip()  # the newline before a last line that was cut off would tell of the cut
            if text in texts_by_policy[policy]:
                tally.add("trajectories", "equal_after_cleaning")
            else:
                texts_by_policy[policy].add(text)
                tally.add_text(policy, count_text(text), rows["n_tokens"][index])
        tally.add("prompts", "with_texts")
        texts = {policy: sorted(cell) for policy, cell in sorted(texts_by_policy.items())}
        yield PromptTexts(prompt_id, from_cell(rows["prompt"][index]), min(sources), texts)


def _read(job: Job, number: int) -> Rows:
    """The bucket's batches out of every part, sorted by prompt; the order of a prompt's rows is that of the input."""
    batches = []
    for part in range(len(job.parts)):
        path = job.path("parts", part, ".json")
        wanted = np.flatnonzero(np.load(path.with_suffix(".npy")) == number).tolist()
        if wanted:
            with pa.OSFile(str(path.with_suffix(".arrow"))) as file, pa.ipc.open_file(file) as reader:
                batches += [reader.get_batch(batch) for batch in wanted]
    table = pa.Table.from_batches(batches, SCHEMA)
    names = list(zip(table["hash"].to_pylist(), table["prompt_id"].to_pylist(), strict=True))
    order = sorted(range(len(names)), key=names.__getitem__)
    return {name: values for name, values in table.take(pa.array(order, pa.int64())).to_pydict().items() if name != "hash"}


def _of_one_prompt(job: Job, rows: Rows, indices: list[int], refused: list[Refusal]) -> list[int]:
    """The rows of one prompt_id, less those that mean another prompt by it than most do."""
    prompts = Counter(rows["prompt"][index] for index in indices)
    if len(prompts) == 1:
        return indices
    prompt_id = rows["prompt_id"][indices[0]]
    chosen = min(prompts, key=lambda prompt: (-prompts[prompt], prompt))
    same, others = ([i for i in indices if (rows["prompt"][i] == chosen) == wanted] for wanted in (True, False))
    paths = [str(part.path) for part in job.parts]
    if not job.skip_bad_rows:
        here, there = (f"{paths[rows['part'][i]]}: row {job.row(rows['part'][i], rows['row'][i])}" for i in (others[0], same[0]))
        raise PolarError(f"{here}: prompt_id {prompt_id!r} names another prompt than in {there}")
    for i in others:
        content = {name: rows[name][i] for name in ("source", "prompt_id", "prompt", "policy", "text")}
        expected = f"the prompt that most rows of {prompt_id!r} have"
        path, row = paths[rows["part"][i]], job.row(rows["part"][i], rows["row"][i])
        refused.append({"path": path, "row": row, "field": "prompt", "expected": expected, "content": content})
    return same


def _distinct(rows: Rows, indices: list[int], tally: Tally) -> list[int]:
    """Without empty texts, which no comparison can use, and without exact duplicates; both are counted."""
    seen: dict[tuple[str, str, str], int] = {}
    tally.add("trajectories", "rows", len(indices))
    tally.add("trajectories", "samples", sum(rows["dup_count"][index] or 1 for index in indices))
    for index in indices:
        policy, text = rows["policy"][index], rows["text"][index]
        if not text or text.isspace():
            tally.add("trajectories", "empty")
            tally.add_policy(policy, "empty")
            continue
        name = rows["prompt_id"][index], policy, text
        other = seen.setdefault(name, index)
        if other != index:
            tally.add("trajectories", "duplicates")
            # Which copy stays must not depend on the order of rows, and why it ended decides how it is cleaned.
            if (rows["finish_reason"][index] or "") < (rows["finish_reason"][other] or ""):
                seen[name] = index
    return list(seen.values())


def _note_cleaning(tally: Tally, before: str, cleaned: Cleaned, prompt_id: str, policy: str) -> None:
    if cleaned.removed:
        tally.add_policy(policy, "cleaned")
    for rule, characters in cleaned.removed.items():
        tally.add("cleaning", f"{rule}.texts")
        tally.add("cleaning", f"{rule}.characters", characters)
        if len(cleaned.removed) == 1:
            tally.add_example(rule, prompt_id, policy, *excerpts(before, cleaned.text))

"""The later passes over texts: they divide a bucket's texts, drop those near held-out ones, and write comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from polar_rm.common.manifests import describe_data_file
from polar_rm.corpus.contamination import EvaluationIndex, index_texts
from polar_rm.corpus.continuations import Candidate, Divider, copy_key, draw_negatives
from polar_rm.corpus.counts import Tally, TextCounter
from polar_rm.corpus.job import Job
from polar_rm.corpus.parts import read_bucket
from polar_rm.corpus.results import TEXT_LEDGER, BucketResult, DroppedText, Match, TextsResult, save_result
from polar_rm.corpus.splits import SPLITS, TRAIN, UNSEEN_TEXTS
from polar_rm.corpus.texts import SCHEMA
from polar_rm.records import Comparison, write_records

TEXTS = pa.schema(
    {
        "hash": pa.uint64(),
        "id": pa.string(),
        "source": pa.string(),
        "held_out": pa.bool_(),
        "part": pa.int32(),
        "row": pa.int64(),
        "copy": pa.int64(),
        "length": pa.int64(),
        "beginning": pa.large_string(),
        "continuation": pa.large_string(),
    }
)
"""The divided texts of a bucket, in the order of the ring. length: of the continuation, in characters."""

_EXCERPT = 200  # characters of a dropped text in contaminated.jsonl
_BUFFERED = 1 << 16  # drawn negatives that are held before they are written


def divide_bucket(job: Job, number: int) -> None:
    """Write the divided texts of a bucket, ``texts/NUMBER.arrow``, and, when it is complete, ``texts/NUMBER.json``."""
    tally, dropped = Tally(), list[DroppedText]()
    divide = Divider(job.config.of_continuations, job.config.seed)
    rows: list[dict[str, Any]] = []
    for text in _distinct(job, number, tally):
        if job.evaluations and (match := job.evaluations.match(text["text"])):
            tally.add("texts", "contaminated")
            dropped.append(_dropped(job, text, text["text"], match))
            continue
        divided = divide(text["text"], text["id"])
        if isinstance(divided, str):
            tally.add("texts", divided)
            continue
        beginning, continuation = divided
        rows.append(
            {**text, "copy": copy_key(continuation), "length": len(continuation)}
            | {"beginning": beginning, "continuation": continuation}
        )
    path = job.path("texts", number, ".arrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    # It is not compressed, so that single texts can be read from a memory map.
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, TEXTS) as writer:
        writer.write_table(pa.Table.from_pylist(rows, TEXTS))
    save_result(path.with_suffix(".json"), TextsResult(tally.counts, dropped))


def _distinct(job: Job, number: int, tally: Tally) -> Iterator[dict[str, Any]]:
    """The texts of a bucket in the order of the ring, without copies.

    Of several copies the alphabetically first one is kept. It is held out if one of them is, and has their first source.
    """
    rows = read_bucket(job, number, SCHEMA).to_pylist()
    rows.sort(key=lambda row: (row["hash"], row["id"], row["text"], row["part"], row["row"]))
    for _, group in groupby(rows, lambda row: row["id"]):
        copies = list(group)
        tally.add("texts", "copies", len(copies) - 1)
        sources = [row["source"] for row in copies if row["source"] is not None]
        held_out = any(row["held_out"] for row in copies)
        yield {**copies[0], "source": min(sources, default=None), "held_out": held_out}


def _dropped(job: Job, row: dict[str, Any], text: str, match: Match) -> DroppedText:
    path, number = str(job.parts[row["part"]].path), job.row(row["part"], row["row"])
    return {"id": row["id"], "path": path, "row": number, "start": text[:_EXCERPT], "match": match}


def index_held_out(job: Job) -> EvaluationIndex | None:
    """The index of the held-out texts of all buckets; None if no text is held out."""
    if not job.config.splits.prompts:
        return None
    index = index_texts(_held_out_texts(job), [part.path for part in job.parts], job.config.decontamination.n)
    return index if len(index.hashes) or index.short else None


def _held_out_texts(job: Job) -> Iterator[tuple[int, int, str]]:
    for number in range(job.n_buckets):
        with _texts(job, number) as reader:
            table = reader.read_all()
            for row in table.filter(table["held_out"]).to_pylist():
                yield row["part"], job.row(row["part"], row["row"]), row["beginning"] + row["continuation"]


def keep_bucket(job: Job, number: int) -> None:
    """Find the texts of a bucket that are near no held-out text: ``kept/NUMBER.npy``, bool [texts], and ``kept/NUMBER.json``.

    Held-out texts are kept.
    """
    tally, dropped = Tally(), list[DroppedText]()
    with _texts(job, number) as reader:
        rows = reader.read_all().to_pylist()
    kept = np.ones(len(rows), bool)
    for index, row in enumerate(rows):
        text = row["beginning"] + row["continuation"]
        if job.held_out_texts and not row["held_out"] and (match := job.held_out_texts.match(text)):
            kept[index] = False
            tally.add("texts", "near_held_out")
            dropped.append(_dropped(job, row, text, match))
    path = job.path("kept", number, ".npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, kept)
    save_result(path.with_suffix(".json"), TextsResult(tally.counts, dropped))


def draw_all(job: Job) -> None:
    """Draw the negatives of all texts: ``drawn/NUMBER.bin``, int32 [pairs, 3] with (row, bucket of the negative, its row).

    The walk goes along all buckets and holds a few hundred texts of each pool. It is fast and not divided into tasks.
    """
    folder = job.path("drawn", 0, ".bin").parent
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(job.n_buckets):
        job.path("drawn", number, ".bin").write_bytes(b"")  # perhaps of an interrupted build
    buffered: dict[int, list[tuple[int, int, int]]] = {}
    n_buffered = 0
    for text, negatives in draw_negatives(_ring(job), job.config.of_continuations):
        buffered.setdefault(text.bucket, []).extend((text.row, other.bucket, other.row) for other in negatives)
        n_buffered += len(negatives)
        if n_buffered >= _BUFFERED:
            _append(job, buffered)
            buffered, n_buffered = {}, 0
    _append(job, buffered)


def _append(job: Job, buffered: dict[int, list[tuple[int, int, int]]]) -> None:
    for number, rows in buffered.items():
        with job.path("drawn", number, ".bin").open("ab") as file:
            file.write(np.array(rows, np.int32).tobytes())


def _ring(job: Job) -> Iterator[Candidate]:
    hard = job.config.of_continuations.hard
    for number in range(job.n_buckets):
        with _texts(job, number) as reader:
            table = reader.read_all().select(["source", "held_out", "copy", "length"])
        kept = _kept(job, number)
        columns = (table[name].to_pylist() for name in table.column_names)
        for row, (source, held_out, copy, length) in enumerate(zip(*columns, strict=True)):
            if kept is None or kept[row]:
                yield Candidate(number, row, f"{held_out} {source}" if hard else f"{held_out}", copy, length)


def _kept(job: Job, number: int) -> NDArray[np.bool_] | None:
    path = job.path("kept", number, ".npy")
    return np.load(path) if path.exists() else None


def pair_bucket(job: Job, number: int) -> None:
    """Write a shard for every split, ``ledgers/NUMBER.parquet`` and, when both are complete, ``buckets/NUMBER.json``."""
    tally = Tally()
    count_text = TextCounter.load(job.config.report.tokenizer)
    with _texts(job, number) as reader:
        rows = reader.read_all().to_pylist()
    negatives = _negatives(job, number)
    kept = _kept(job, number)
    shards: dict[str, list[Comparison]] = {split: [] for split in SPLITS}
    ledger: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        if kept is not None and not kept[index]:
            continue
        tally.add("texts", "texts")
        tally.add("sources", row["source"] or "")
        for name in ("beginning", "continuation"):
            tally.add_text(name, count_text(row[name]), None)
        if index not in negatives:
            tally.add("texts", "alone")
            continue
        split = UNSEEN_TEXTS if row["held_out"] else TRAIN
        comparison = _comparison(row, negatives[index])
        shards[split].append(comparison)
        ledger.append(_entry(split, row["hash"], comparison, count_text))
    files = {}
    for split, comparisons in shards.items():
        if comparisons:
            path = job.path(f"shards/{split}", number, ".parquet")
            files[split] = describe_data_file(path, write_records(path, comparisons))
    ledger.sort(key=lambda entry: SPLITS.index(entry["split"]))
    path = job.path("ledgers", number, ".parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(ledger, TEXT_LEDGER), path)
    save_result(job.path("buckets", number, ".json"), BucketResult(tally.counts, tally.examples, [], [], files))


def _negatives(job: Job, number: int) -> dict[int, list[str]]:
    """Row -> its negatives' continuations, in the order in which they were drawn. Only their texts are read."""
    drawn = np.frombuffer(job.path("drawn", number, ".bin").read_bytes(), np.int32).reshape(-1, 3)
    texts: dict[tuple[int, int], str] = {}
    for bucket in np.unique(drawn[:, 1]).tolist():
        rows = np.unique(drawn[drawn[:, 1] == bucket, 2])
        with _texts(job, bucket) as reader:
            column = reader.read_all()["continuation"].take(pa.array(rows)).to_pylist()
        texts |= {(bucket, row): text for row, text in zip(rows.tolist(), column, strict=True)}
    negatives: dict[int, list[str]] = {}
    for row, bucket, other in drawn.tolist():
        negatives.setdefault(row, []).append(texts[bucket, other])
    return negatives


def _comparison(row: dict[str, Any], negatives: list[str]) -> Comparison:
    metadata = {"text_id": row["id"]} | ({"source": row["source"]} if row["source"] else {})
    ranks = (0, *(1 for _ in negatives))
    return Comparison(row["beginning"], None, (row["continuation"], *negatives), ranks, "pretrain", metadata)


def _entry(split: str, key: int, comparison: Comparison, count_text: TextCounter) -> dict[str, Any]:
    texts: Iterable[Any] = (comparison.prompt, *comparison.candidates)
    characters, words, tokens = map(sum, zip(*map(count_text, texts), strict=True))
    sizes = {"characters": characters, "words": words, "tokens": tokens}
    return {"split": split, "key": key, "negatives": len(comparison.candidates) - 1, **sizes}


def _texts(job: Job, number: int) -> pa.RecordBatchFileReader:
    """The divided texts of a bucket, as a memory map."""
    return pa.ipc.open_file(pa.memory_map(str(_path(job, number))))


def _path(job: Job, number: int) -> Path:
    return job.path("texts", number, ".arrow")

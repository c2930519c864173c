"""Encoded corpora: encoding against the tokenizer alone on the same texts, opening of 10^9 comparisons, an epoch's order.

Encoding takes turns with ``tokenizer.encode_batch``, which uses all cores. CPU seconds are those of this process and its workers.
Opening reads a made index of 15,625 shards; its file of numbers is sparse.

    python benchmarks/encoding.py --json benchmarks/results/encoding.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from common import LANGUAGE_MODEL, comparisons, origin, report

from polar_rm.common.checksums import write_sealed
from polar_rm.encoded.build import Encoding, encode_folder, survey_input
from polar_rm.encoded.corpus import CorpusStats, EncodedCorpus
from polar_rm.encoded.format import NUMBERS, NUMBERS_FILE, SCHEMA_NAME, shard_name
from polar_rm.encoded.order import EpochOrder
from polar_rm.model.blueprint import language_model_blueprint
from polar_rm.records import write_records


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """The (wall, CPU) seconds of a call, with those of the processes that it started."""
    before, start = os.times(), time.perf_counter()
    work()
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def encoding_row(folder: Path, n: int, rounds: int, workers: int | None) -> dict[str, Any]:
    """The median of the ratios. workers: None is a process for every core, whose start is included; 1 is this process alone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers is None else "false"
    encoder = language_model_blueprint(LANGUAGE_MODEL).encoder
    rows = comparisons(n, 2, 300)
    write_records(folder / "rows.jsonl", rows)
    texts = [f"{row.prompt}\n{text}" for row in rows for text in (row.reference, *row.candidates)]
    tokens = sum(len(each.ids) for each in encoder.tokenizer.encode_batch(texts, add_special_tokens=False))
    numbers = iter(range(10**6))

    def ours() -> None:
        target = folder / f"encoded{next(numbers)}"
        encode_folder(Encoding(survey_input([folder / "rows.jsonl"], 1), encoder, target, folder / "rejected", workers=workers))

    def alone() -> None:
        encoder.tokenizer.encode_batch(texts, add_special_tokens=False)

    measured = [(timed(ours), timed(alone)) if number % 2 else (timed(alone), timed(ours))[::-1] for number in range(rounds)]
    return {
        "what": "encoding, with the start of a process for every core" if workers is None else "encoding, in one process",
        "comparisons": n,
        "tokenised": tokens,
        "speed_of_tokenizer_alone": statistics.median(theirs[0] / us[0] for us, theirs in measured),
        "cpu_of_tokenizer_alone": statistics.median(theirs[1] / us[1] for us, theirs in measured),
        "tokens_per_cpu_second": statistics.median(tokens / us[1] for us, _ in measured),
        "seconds": statistics.median(us[0] for us, _ in measured),
        "tokenizer_seconds": statistics.median(theirs[0] for _, theirs in measured),
        "load": os.getloadavg()[0],
    }


def opening_row(folder: Path, n: int, n_shards: int) -> dict[str, Any]:
    """Seconds to open a made corpus."""
    each = n // n_shards
    n_bytes = 4 * len(NUMBERS) * n
    with (folder / NUMBERS_FILE).open("wb") as file:
        file.truncate(n_bytes)
    facts = {"bytes": 1, "sha256": "0" * 64, "comparisons": each, "pairs": each, "tokens": each, "longest": 9}
    stats = {field.name: n for field in fields(CorpusStats)}
    index = {
        "schema": SCHEMA_NAME,
        "digest": "made",
        "settings": {"encoder": "made", "reference": "given"},
        "inputs": {},
        "sources": [["made", n]],
        "stats": stats,
        "lengths": [[length, 1] for length in range(60_000)],
        "rejected": 0,
        "side_file": None,
        "notes": {},
        "files": [
            {"file": NUMBERS_FILE, "bytes": n_bytes, "sha256": "0" * 64},
            *({"file": shard_name(number), **facts} for number in range(n_shards)),
        ],
    }
    write_sealed(folder / "manifest.json", index)
    seconds = [timed(lambda: EncodedCorpus(folder)) for _ in range(5)]
    return {
        "what": "opening",
        "comparisons": n,
        "shards": n_shards,
        "seconds": statistics.median(wall for wall, _ in seconds),
        "cpu_seconds": statistics.median(cpu for _, cpu in seconds),
        "load": os.getloadavg()[0],
    }


def order_row(n: int, batch: int) -> dict[str, Any]:
    """Seconds for the comparisons of one step, with the set-up of the epoch."""
    seconds = [timed(lambda: EpochOrder(n, 0, 1)(np.arange(batch))) for _ in range(9)]
    return {
        "what": "order",
        "comparisons": n,
        "batch": batch,
        "seconds": statistics.median(wall for wall, _ in seconds),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = [opening_row(Path(name), 10**9, 15_625), order_row(10**9, 4343)]
    for workers in (1, None):
        with tempfile.TemporaryDirectory() as name:
            rows.append(encoding_row(Path(name), arguments.comparisons, arguments.rounds, workers))
    report([{**row, **origin()} for row in rows], arguments.json)


if __name__ == "__main__":
    main()

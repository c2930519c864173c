"""Encoded corpora: encoding against the tokenizer alone on the same texts, opening of 10^9 comparisons, an epoch's order.

Encoding takes turns with ``tokenizer.encode_batch_fast`` on as many cores. CPU seconds are those of this process and its workers.
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import LANGUAGE_MODEL, comparisons, origin, report

from polar_rm.common.checksums import write_sealed
from polar_rm.common.files import write_json
from polar_rm.encoded.build import Encoding, encode_folder, survey_input
from polar_rm.encoded.corpus import CorpusStats, EncodedCorpus
from polar_rm.encoded.format import NUMBERS, NUMBERS_FILE, SCHEMA_NAME, shard_name
from polar_rm.encoded.order import EpochOrder
from polar_rm.records import write_records

_DISTINCT = 1000  # comparisons
_TEXTS = 1024  # that the tokenizer alone gets at once


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """The (wall, CPU) seconds of a call, with those of the processes that it started."""
    before, start = os.times(), time.perf_counter()
    work()
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def encoding_rows(folder: Path, n: int, rounds: int) -> list[dict[str, Any]]:
    """Encoding by this process alone and by a process for every core, whose start is included, and the tokenizer alone on one
    core and on all. The four take turns; ratios are medians over rounds."""
    # Not above: the workers import this file, as they import the command, which imports no torch either.
    from polar_rm.model.blueprint import language_model_blueprint

    encoder = language_model_blueprint(LANGUAGE_MODEL).encoder
    # The same ones again and again: a heap full of texts slows this process down, but not the workers.
    rows = comparisons(min(n, _DISTINCT), 2, 300)
    write_records(folder / "rows.jsonl", (rows[i % len(rows)] for i in range(n)))
    texts = [f"{row.prompt}\n{text}" for row in rows for text in (row.reference, *row.candidates)]
    survey, numbers = survey_input([folder / "rows.jsonl"], 1), iter(range(10**6))

    def encode(workers: int | None) -> None:
        target = folder / f"encoded{next(numbers)}"
        encode_folder(Encoding(survey, encoder, target, folder / "rejected", workers=workers))

    def tokenise(on_all_cores: bool) -> int:
        """The number of tokens. In batches: the results of all texts at once take gigabytes."""
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if on_all_cores else "false"
        batches = [texts[start : start + _TEXTS] for start in range(0, len(texts), _TEXTS)] * (n // len(rows))
        tokenizer = encoder.tokenizer
        return sum(len(each.ids) for batch in batches for each in tokenizer.encode_batch_fast(batch, add_special_tokens=False))

    cores = len(os.sched_getaffinity(0))
    sides: list[Callable[[], Any]] = [
        partial(encode, 1),
        partial(encode, cores),
        partial(tokenise, False),
        partial(tokenise, True),
    ]
    measured: list[list[tuple[float, float]]] = [[] for _ in sides]
    for number in range(rounds):
        for side in range(len(sides)):
            turn = (side + number) % len(sides)
            measured[turn].append(timed(sides[turn]))
    n_tokens = tokenise(True)

    def ratio(above: int, below: int, kind: int) -> float:
        return statistics.median(a[kind] / b[kind] for a, b in zip(measured[above], measured[below], strict=True))

    return [
        {
            "what": "encoding",
            "workers": workers,
            "comparisons": n,
            "tokenised": n_tokens,
            "speed_of_tokenizer_alone": ratio(2 + side, side, 0),
            "cpu_of_tokenizer_alone": ratio(2 + side, side, 1),
            "speed_of_one_worker": ratio(0, side, 0),
            "tokens_per_second": n_tokens / statistics.median(wall for wall, _ in measured[side]),
            "seconds": statistics.median(wall for wall, _ in measured[side]),
            "rounds": rounds,
            "load": os.getloadavg()[0],
        }
        for side, workers in enumerate((1, cores))
    ]


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
    parser.add_argument("--comparisons", type=int, default=20_000, help="a thousand, or a multiple of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = [opening_row(Path(name), 10**9, 15_625), order_row(10**9, 4343)]
        rows += encoding_rows(Path(name), arguments.comparisons, arguments.rounds)
    rows = [{**row, **origin()} for row in rows]
    report(rows, None)
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()

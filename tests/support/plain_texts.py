"""Ordinary texts of invented words, and builds of their continuations."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq

from polar_rm.corpus.config import CorpusConfig

WORDS = ["".join(random.Random(n).choice("abcdefghijklm") for _ in range(2 + n % 7)) for n in range(400)]


def texts(count, *, seed=0, shortest=30, longest=120):
    """Rows {text, source} whose texts share no five consecutive words."""
    rng = random.Random(seed)
    return [
        {"text": " ".join(rng.choices(WORDS, k=rng.randint(shortest, longest))) + ".", "source": rng.choice("xyz")}
        for _ in range(count)
    ]


def write(path, rows):
    """Write rows of any fields as JSON lines or Parquet, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text_config(folder, rows=None, name="rows.jsonl", *, pairing=None, **changes):
    """The config of a build into ``folder/out`` from a file with these rows."""
    if rows is not None:
        write(folder / name, rows)
    values = {"inputs": [str(folder / name)], "output": folder / "out", "workers": 1, "buckets": 3, "report": {"pairs": 50}}
    return CorpusConfig.model_validate(values | {"pairing": {"kind": "continuations", **(pairing or {})}} | changes)

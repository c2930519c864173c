"""How fast `polar corpus` is, how much memory it takes, and what its report says of real data.

    python benchmarks/corpus.py --rows 125000 500000 2000000 --output runs/corpus-speed
    python benchmarks/corpus.py --data traj_*.parquet --output runs/corpus-data

The first makes trajectories (always the same ones) and builds them in a process of its own, whose whole tree is watched. The
second builds each file as it is, and sets the report's baselines beside those of random triples: two samples of one policy on one
prompt and one of another policy, any row as often as its `dup_count` says, equal texts and all. `distinct_length` is of triples
in which every row counts once: in how many the policy's own text is nearer in characters, a tie being none.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import report

from polar_rm.corpus.build import build
from polar_rm.corpus.config import CorpusConfig
from polar_rm.errors import PolarError
from polar_rm.evaluation.contenders.baselines import make_baselines
from polar_rm.evaluation.pairs import score_pairs
from polar_rm.records import Comparison

POLICIES = 20
SAMPLES = 2
WORDS = "time year people way day man thing woman life child world school state family student group country problem".split()
FILE_ROWS = 250_000


def make(folder: Path, rows: int) -> float:
    """Trajectories of about 700 characters: 20 policies, two samples each a prompt; 2% of them loop. Returns MB of text."""
    schema = pa.schema([(name, pa.string()) for name in ("source", "prompt_id", "prompt", "policy", "text")])
    schema = schema.append(pa.field("sample_id", pa.int64()))
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randint(6, 16))).capitalize() + "." for _ in range(5000)]
    size = 0
    for start in range(0, rows, FILE_ROWS):
        columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        for row in range(start, min(start + FILE_ROWS, rows)):
            prompt, cell = divmod(row, POLICIES * SAMPLES)
            policy, sample = divmod(cell, SAMPLES)
            text = " ".join(rng.choices(sentences, k=rng.randint(1 + policy // 4, 15)))
            text += " and so on" * 150 if rng.random() < 0.02 else ""
            values = ("made", f"p{prompt}", f"Write about {sentences[prompt % 5000]}", f"policy-{policy:02d}", text, sample)
            for name, value in zip(schema.names, values, strict=True):
                columns[name].append(value)
            size += len(text)
        pq.write_table(pa.table(columns, schema), folder / f"{start:09d}.parquet", compression="zstd")
    return size / 1e6


def watched(command: list[str]) -> dict[str, float]:
    """Seconds of a command, CPU seconds, and peak memory of it and all its descendants together, in MiB (proportional shares)."""
    began, peak = time.perf_counter(), 0.0
    before = os.times()
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, sum(map(_memory, _tree(process.pid))))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": time.perf_counter() - began, "cpu_seconds": cpu, "peak_mib": peak / 2**10}


def _tree(root: int) -> list[int]:
    try:
        children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
    except OSError:
        return []
    return [root, *(each for child in children for each in _tree(int(child)))]


def _memory(pid: int) -> float:
    """KiB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("Pss:")), 0.0)


def speed(sizes: list[int], output: Path, options: list[str]) -> list[dict[str, Any]]:
    """One build of each size; the report's baselines, a constant, are left small."""
    results = []
    for rows in sizes:
        folder, target = output / f"data-{rows}", output / f"corpus-{rows}"
        shutil.rmtree(target, ignore_errors=True)
        size = make(folder, rows)
        found = watched(_command([str(folder)], target, options))
        results.append({"rows": rows, "text_mb": size, **_rates(found, rows, size)})
        print(results[-1], flush=True)
        shutil.rmtree(folder)
    return results


def _command(inputs: list[str], target: Path, options: list[str]) -> list[str]:
    settings = [f"inputs=[{', '.join(inputs)}]", f"output={target}", "pairing.negatives=3", "report.pairs=200", *options]
    return [sys.executable, "-m", "polar_rm", "corpus", *settings]


def _rates(found: dict[str, float], rows: int, size: float) -> dict[str, float]:
    return {
        **found,
        "rows_per_s": rows / found["seconds"],
        "rows_per_cpu_s": rows / found["cpu_seconds"],
        "mb_per_cpu_s": size / found["cpu_seconds"],
    }


def real(files: list[Path], output: Path, options: list[str], triples: int) -> list[dict[str, Any]]:
    """Speed and baselines of each file, or why nothing in it can be compared."""
    results = []
    for file in files:
        table = pq.read_table(file, columns=["text"])
        row: dict[str, Any] = {"file": file.stem, "rows": len(table)}
        target, folder = output / file.stem, output / f"{file.stem}-report"
        for old in (target, folder):
            shutil.rmtree(old, ignore_errors=True)
        values = {"inputs": [str(file)], "output": folder, "report": {"pairs": triples}}
        try:
            found = build(CorpusConfig.model_validate(values))["baselines"]["overall"]
        except PolarError as error:
            row["refused"] = str(error)
        else:
            size = sum(map(len, table["text"].to_pylist())) / 1e6
            row |= _rates(watched(_command([str(file)], target, options)), len(table), size)
            row |= {f"report_{key}": round(value["accuracy"], 3) for key, value in found.items()}
            row |= {key: round(value, 3) for key, value in random_triples(file, triples).items()}
        results.append(row)
        print(row, flush=True)
    return results


def random_triples(file: Path, count: int) -> dict[str, float]:
    """Accuracy of the baselines on random triples of all samples, ties half; of length also on triples of rows, ties wrong."""
    drawn = _triples(file, count, copies=True)
    fitted = make_baselines(["length", "tfidf"])
    for baseline in fitted.values():
        for _ in baseline.fit(drawn):
            pass
    scores = score_pairs(fitted, drawn)
    found = {f"triples_{name}": float(scores.correct(name).mean()) for name in fitted}
    nearer = [
        abs(len(own) - len(each.reference)) < abs(len(other) - len(each.reference))
        for each in _triples(file, count, copies=False)
        for own, other in [each.candidates]
    ]
    return found | {"distinct_length": sum(nearer) / count}


def _triples(file: Path, count: int, *, copies: bool) -> list[Comparison]:
    names = ["prompt_id", "policy", "text"]
    table = pq.read_table(file)
    repeats = table["dup_count"].to_pylist() if copies and "dup_count" in table.column_names else [1] * len(table)
    cells: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for prompt, policy, text, times in zip(*(table[name].to_pylist() for name in names), repeats, strict=True):
        cells[prompt][policy] += [text] * times
    places = [(prompt, policy) for prompt, each in sorted(cells.items()) for policy in sorted(each) if len(each[policy]) > 1]
    places = [(prompt, policy) for prompt, policy in places if len(cells[prompt]) > 1]
    rng = random.Random(0)
    drawn = []
    for prompt, policy in rng.choices(places, k=count):
        other = rng.choice([each for each in sorted(cells[prompt]) if each != policy])
        reference, positive = rng.sample(cells[prompt][policy], 2)
        drawn.append(Comparison(prompt, reference, (positive, rng.choice(cells[prompt][other])), (0, 1)))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="sizes to make and build")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="files of real trajectories")
    parser.add_argument("--triples", type=int, default=2000, help="pairs for the baselines of real files")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--options", nargs="*", default=[], help="further settings, such as engine=ray")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = speed(arguments.rows, arguments.output, arguments.options)
    results += real(arguments.data, arguments.output, arguments.options, arguments.triples)
    report(results, arguments.output / "result.jsonl")


if __name__ == "__main__":
    main()

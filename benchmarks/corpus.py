"""Speed and memory of `polar corpus`, and the baselines in its report on real data.

    python benchmarks/corpus.py --rows 125000 500000 2000000 --output runs/corpus-speed
    python benchmarks/corpus.py --data traj_*.parquet --output runs/corpus-data

The first command generates trajectories (always the same ones) and builds them in a separate process; it measures the memory of
that process and all its descendants. The second command builds each file unchanged, and compares the report's baselines with
those of random triples: two samples of one policy for one prompt and one of another policy. Each row counts `dup_count` times,
and equal texts are allowed. For `distinct_length` every row counts once: it is the share of triples in which the text of the same
policy has the smaller difference in length; a tie counts as wrong.
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


def generate(folder: Path, rows: int) -> float:
    """Write trajectories of about 700 characters: 20 policies, two samples per prompt; 2% contain loops. Returns MB of text."""
    schema = pa.schema([(name, pa.string()) for name in ("source", "prompt_id", "prompt", "policy", "text")])
    schema = schema.append(pa.field("sample_id", pa.int64()))
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randint(6, 16))).capitalize() + "." for _ in range(5000)]
    size = 0
    for start in range(0, rows, FILE_ROWS):
        columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        for row in range(start, min(start + FILE_ROWS, rows)):
            prompt, number = divmod(row, POLICIES * SAMPLES)
            policy, sample = divmod(number, SAMPLES)
            text = " ".join(rng.choices(sentences, k=rng.randint(1 + policy // 4, 15)))
            text += " and so on" * 150 if rng.random() < 0.02 else ""
            values = ("made", f"p{prompt}", f"Write about {sentences[prompt % 5000]}", f"policy-{policy:02d}", text, sample)
            for name, value in zip(schema.names, values, strict=True):
                columns[name].append(value)
            size += len(text)
        pq.write_table(pa.table(columns, schema), folder / f"{start:09d}.parquet", compression="zstd")
    return size / 1e6


def measured(command: list[str]) -> dict[str, float]:
    """Seconds and CPU seconds of a command, and the peak memory of it and all its descendants together in MiB (PSS)."""
    start, peak = time.perf_counter(), 0.0
    before = os.times()
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, sum(map(_memory, _tree(process.pid))))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": time.perf_counter() - start, "cpu_seconds": cpu, "peak_mib": peak / 2**10}


def _tree(root: int) -> list[int]:
    try:
        children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
    except OSError:
        return []
    return [root, *(each for child in children for each in _tree(int(child)))]


def _memory(pid: int) -> float:
    """The proportional set size of a process in KiB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("Pss:")), 0.0)


def speed(sizes: list[int], output: Path, options: list[str]) -> list[dict[str, Any]]:
    """Build once for each size, with few pairs for the report's baselines, whose cost is constant."""
    results = []
    for rows in sizes:
        folder, target = output / f"data-{rows}", output / f"corpus-{rows}"
        shutil.rmtree(target, ignore_errors=True)
        size = generate(folder, rows)
        costs = measured(_command([str(folder)], target, options))
        results.append({"rows": rows, "text_mb": size, **_rates(costs, rows, size)})
        print(results[-1], flush=True)
        shutil.rmtree(folder)
    return results


def _command(inputs: list[str], target: Path, options: list[str]) -> list[str]:
    settings = [f"inputs=[{', '.join(inputs)}]", f"output={target}", "pairing.negatives=3", "report.pairs=200", *options]
    return [sys.executable, "-m", "polar_rm", "corpus", *settings]


def _rates(costs: dict[str, float], rows: int, size: float) -> dict[str, float]:
    return {
        **costs,
        "rows_per_s": rows / costs["seconds"],
        "rows_per_cpu_s": rows / costs["cpu_seconds"],
        "mb_per_cpu_s": size / costs["cpu_seconds"],
    }


def real(files: list[Path], output: Path, options: list[str], triples: int) -> list[dict[str, Any]]:
    """Speed and baselines of each file, or the reason why nothing in it can be compared."""
    results = []
    for file in files:
        table = pq.read_table(file, columns=["text"])
        row: dict[str, Any] = {"file": file.stem, "rows": len(table)}
        target, folder = output / file.stem, output / f"{file.stem}-report"
        for old in (target, folder):
            shutil.rmtree(old, ignore_errors=True)
        values = {"inputs": [str(file)], "output": folder, "report": {"pairs": triples}}
        try:
            baselines = build(CorpusConfig.model_validate(values))["baselines"]["overall"]
        except PolarError as error:
            row["refused"] = str(error)
        else:
            size = sum(map(len, table["text"].to_pylist())) / 1e6
            row |= _rates(measured(_command([str(file)], target, options)), len(table), size)
            row |= {f"report_{key}": round(value["accuracy"], 3) for key, value in baselines.items()}
            row |= {key: round(value, 3) for key, value in random_triples(file, triples).items()}
        results.append(row)
        print(row, flush=True)
    return results


def random_triples(file: Path, count: int) -> dict[str, float]:
    """Accuracy of the baselines on random triples of all samples, ties half; for length also on triples of rows, ties wrong."""
    drawn = _triples(file, count, copies=True)
    fitted = make_baselines(["length", "tfidf"])
    for baseline in fitted.values():
        for _ in baseline.fit(drawn):
            pass
    scores = score_pairs(fitted, drawn)
    accuracies = {f"triples_{name}": float(scores.correct(name).mean()) for name in fitted}
    nearer = [
        abs(len(same) - len(triple.reference)) < abs(len(other) - len(triple.reference))
        for triple in _triples(file, count, copies=False)
        for same, other in [triple.candidates]
    ]
    return accuracies | {"distinct_length": sum(nearer) / count}


def _triples(file: Path, count: int, *, copies: bool) -> list[Comparison]:
    names = ["prompt_id", "policy", "text"]
    table = pq.read_table(file)
    repeats = table["dup_count"].to_pylist() if copies and "dup_count" in table.column_names else [1] * len(table)
    texts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for prompt, policy, text, times in zip(*(table[name].to_pylist() for name in names), repeats, strict=True):
        texts[prompt][policy] += [text] * times
    keys = [
        (prompt, policy)
        for prompt, by_policy in sorted(texts.items())
        for policy in sorted(by_policy)
        if len(by_policy) > 1 and len(by_policy[policy]) > 1
    ]
    rng = random.Random(0)
    drawn = []
    for prompt, policy in rng.choices(keys, k=count):
        other = rng.choice([name for name in sorted(texts[prompt]) if name != policy])
        reference, positive = rng.sample(texts[prompt][policy], 2)
        drawn.append(Comparison(prompt, reference, (positive, rng.choice(texts[prompt][other])), (0, 1)))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[], help="sizes to generate and build")
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

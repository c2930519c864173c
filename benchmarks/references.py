"""What several references of a prompt gain and cost, from trajectories: K = 1, 2, 4 references, combined by mean or by best.

Two tasks. *quality*: trajectories with a gold value (column ``correct``); of each prompt half of the samples, drawn by seed,
are a pool whose K best are the references, and the pairs of the other half are ordered by gold. *policy*: the references are K
samples of one policy, and another sample of it should win over a sample of another policy. Pairs are the same for every K.

    python benchmarks/references.py quality samples.parquet --model NAME=CONTENDER --output benchmarks/results/references.json
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from common import origin
from rich.console import Console

from polar_rm.common.files import write_json
from polar_rm.common.progress import show_progress
from polar_rm.evaluation import evaluate, find_contenders
from polar_rm.evaluation.contenders import ModelOptions
from polar_rm.evaluation.statistics import listed, paired_difference
from polar_rm.model.devices import claim_device
from polar_rm.records import Comparison

COUNTS = (1, 2, 4)

# A prompt with its references, best first, and candidates with their ranks.
Row = tuple[str, list[str], tuple[str, ...], tuple[int, ...]]


def by_prompt(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of plain prompts by prompt, without repeated texts."""
    groups: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in pq.read_table(path, columns=["prompt", "policy", "text", "correct"]).to_pylist():
        if not row["prompt"].startswith('[{"role"') and row["text"].strip():
            groups[row["prompt"]].setdefault(row["text"], row)
    return {prompt: list(rows.values()) for prompt, rows in groups.items()}


def quality(path: Path, n_candidates: int, rng: random.Random) -> Iterator[Row]:
    """Pools of references and candidates with gold values; equal golds have equal ranks."""
    for prompt, rows in by_prompt(path).items():
        rows = [row for row in rows if row["correct"] is not None]
        if len(rows) < max(COUNTS) + 4:
            continue
        rng.shuffle(rows)
        half = len(rows) // 2
        pool = sorted(rows[:half], key=lambda row: -row["correct"])[: max(COUNTS)]
        candidates = rows[half : half + n_candidates]
        golds = sorted({row["correct"] for row in candidates}, reverse=True)
        if len(pool) == max(COUNTS) and len(golds) > 1:
            ranks = tuple(golds.index(row["correct"]) for row in candidates)
            yield prompt, [row["text"] for row in pool], tuple(row["text"] for row in candidates), ranks


def policy(path: Path, n_candidates: int, rng: random.Random) -> Iterator[Row]:
    """Samples of one policy as references and as the better candidate; one sample each of other policies as the worse ones."""
    for prompt, rows in by_prompt(path).items():
        policies: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            policies[row["policy"]].append(row["text"])
        own = sorted(name for name, texts in policies.items() if len(texts) > max(COUNTS))
        if not own or len(policies) < n_candidates:
            continue
        chosen = rng.choice(own)
        others = rng.sample(sorted(set(policies) - {chosen}), n_candidates - 1)
        texts = rng.sample(policies[chosen], max(COUNTS) + 1)
        rivals = [rng.choice(policies[name]) for name in others]
        yield prompt, texts[1:], (texts[0], *rivals), (0, *[1] * len(rivals))


def comparisons(rows: list[Row], count: int) -> list[Comparison]:
    """The rows with this many references."""
    return [
        Comparison(prompt, tuple(references[:count]) if count > 1 else references[0], candidates, ranks)
        for prompt, references, candidates, ranks in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["quality", "policy"])
    parser.add_argument("trajectories", type=Path)
    parser.add_argument("--model", action="append", required=True, help="as --model of polar evaluate, with a name")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="rows are added to this file")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    drawn = list({"quality": quality, "policy": policy}[arguments.task](arguments.trajectories, arguments.candidates, rng))
    drawn = rng.sample(drawn, min(arguments.prompts, len(drawn)))
    options = ModelOptions("auto", claim_device("auto"))
    correct: dict[tuple[str, str], Any] = {}
    rows: list[dict[str, Any]] = []
    with show_progress(Console(stderr=True)) as progress:
        for count, combine in [(1, "mean"), *((k, way) for k in COUNTS[1:] for way in ("mean", "best"))]:
            started = time.process_time()
            result = evaluate(
                find_contenders(arguments.model, options), comparisons(drawn, count), combine=combine, progress=progress
            )
            seconds = time.process_time() - started
            label = f"{count} {combine}" if count > 1 else "1"
            about = {"task": arguments.task, "data": arguments.trajectories.stem, "references": count, "combine": combine}
            for name, measure in result.report["contenders"].items():
                correct[name, label] = result.scores.correct(name)
                gain = paired_difference(correct[name, label], correct[name, "1"], result.scores.pairs.prompts)
                row = {
                    **about,
                    "contender": name,
                    "n": result.report["n_pairs"],
                    "prompts": result.report["n_prompts"],
                    **measure,
                }
                rows.append({**row, "gain": gain.difference, "gain_ci95": listed(gain.ci95), "cpu_seconds_of_all": seconds})
    write_rows(arguments, rows)


def write_rows(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Add rows to the file, in place of those of the same task and data."""
    import json

    stored = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    new = {(row["task"], row["data"]) for row in rows}
    kept = [row for row in stored if (row["task"], row["data"]) not in new]
    write_json(arguments.output, {**origin(), "rows": [*kept, *rows]})
    for row in rows:
        print(
            row["contender"],
            row["references"],
            row["combine"],
            f"{row['accuracy']:.3f}",
            np.round(row["gain"], 3),
            row["gain_ci95"],
        )


if __name__ == "__main__":
    main()

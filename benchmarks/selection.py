"""Speed and memory of `polar select` on a generated million of scored rows.

    python benchmarks/selection.py --rows 1000000 --files 2 --output runs/select --results benchmarks/results/select.json

The rows are always the same: eight answers of about 1,200 characters to every prompt, of four sources; one in twenty answers is a
near copy of another answer to its prompt. Each case runs in a process of its own; the memory is that of this process and all its
descendants together. `check` recounts the result from the generated rows: the best of every prompt, and the dropped copies.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from common import origin
from corpus import WORDS, measured

from polar_rm.common.files import write_json

SAMPLES = 8
CASES = {
    "best of n, top quarter": ["best_of_n=1", "top_share=0.25"],
    "pairs": ["kind=pairs", "pairs.rejected=random", "pairs.margin=0.1"],
    "near duplicates, best of n, quotas": [
        "near_duplicates={similarity: 0.8, within: prompt}",
        "best_of_n=1",
        "group_by=source",
        "quotas.at_most=10000",
    ],
    "near duplicates within all": ["near_duplicates={similarity: 0.8, within: all}", "best_of_n=1"],
}


def generate(folder: Path, rows: int, files: int) -> tuple[float, int]:
    """Write JSON lines; returns MB of text and the number of near copies."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    # Sentences of words with numbers, so that two answers share few of them.
    sentences = [" ".join(f"{rng.choice(WORDS)}{rng.randrange(50)}" for _ in range(rng.randint(6, 14))) for _ in range(50_000)]
    size = copies = 0
    for number in range(files):
        with (folder / f"{number:03d}.jsonl").open("w") as file:
            answer = ""
            for row in range(number * rows // files, (number + 1) * rows // files):
                prompt, sample = divmod(row, SAMPLES)
                if sample and rng.random() < 0.05:
                    answer = f"{answer} So it is {row}."
                    copies += 1
                else:
                    answer = ". ".join(rng.choices(sentences, k=rng.randint(8, 24)))
                text = f"Question {prompt}: {sentences[prompt % len(sentences)]}?"
                values = {"prompt_id": f"p{prompt}", "prompt": text, "output": answer, "score": round(rng.gauss(0, 1), 6)}
                file.write(json.dumps(values | {"source": f"source-{prompt % 4}", "sample_id": sample}) + "\n")
                size += len(text) + len(answer)
    return size / 1e6, copies


def check(folder: Path, output: Path, copies: int, case: str) -> dict[str, Any]:
    """Facts of the report, and whether the selected scores are those that a recount of the input gives."""
    report = json.loads((output / "report.json").read_text())
    dropped = {rule["rule"]: rule["dropped"] for rule in report["rules"]}
    facts: dict[str, Any] = {"selected": report["counts"]["selected"]}
    if "near_duplicates" in dropped:
        facts |= {"copies_made": copies, "near_duplicates_dropped": dropped["near_duplicates"]}
    if case == "best of n, top quarter":
        best: dict[str, float] = {}
        for path in sorted(folder.iterdir()):
            for line in path.open():
                row = json.loads(line)
                best[row["prompt_id"]] = max(best.get(row["prompt_id"], -9.0), row["score"])
        expected = sorted(best.values(), reverse=True)[: -(-len(best) // 4)]
        selected = [json.loads(line)["score"] for line in (output / "selected.jsonl").open()]
        facts["as_recounted"] = sorted(selected, reverse=True) == expected
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=2, help="input files, which are read by a process each")
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: all")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    data = arguments.output / "data"
    size, copies = generate(data, arguments.rows, arguments.files)
    rows = []
    for case in arguments.case or CASES:
        target = arguments.output / "selected"
        shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-m", "polar_rm", "select", f"inputs=[{data}]", f"output={target}", *CASES[case]]
        costs = measured(command)
        shape = {"case": case, "rows": arguments.rows, "files": arguments.files, "text_mb": size}
        rows.append({**shape, **costs, "rows_per_s": arguments.rows / costs["seconds"], **check(data, target, copies, case)})
        print(rows[-1], flush=True)
    if arguments.results:
        write_json(arguments.results, {"what": "polar select", **origin(), "rows": rows})
    shutil.rmtree(data)


if __name__ == "__main__":
    main()

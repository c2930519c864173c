"""What an evaluation costs beside scoring: the same pairs through `evaluate_files`, and as items through `Scorer`.

Both go from a file to numbers and load the model, on the same machine in turns. The evaluation checks the data first, measures
the baselines length and TF-IDF and resamples; the second row writes rows of pairs and the page besides. Memory is measured in a
process for each number of pairs.

    python benchmarks/evaluate.py --preset 15m --pairs 300 --memory 2000 8000 --output benchmarks/results/evaluate.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import comparisons, origin, paired, peak_rss_mib, report
from models import build_model, device_name, model_options

from polar_rm.evaluation import ModelOptions, evaluate_files
from polar_rm.evaluation.page import write_page
from polar_rm.evaluation.rows import write_pairs
from polar_rm.evaluation.tables import summarise
from polar_rm.model.devices import claim_device, dtype_name
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import ScoreItem, read_items, write_records
from polar_rm.scoring.scorer import Scorer


def write_data(folder: Path, pairs: int, length: int) -> tuple[Path, Path]:
    """The same texts as comparisons and as items."""
    rows = comparisons(pairs, 2, length)
    write_records(folder / "pairs.jsonl", rows)
    write_records(
        folder / "items.jsonl",
        (ScoreItem(row.prompt, row.reference or "", text) for row in rows for text in row.candidates),
    )
    return folder / "pairs.jsonl", folder / "items.jsonl"


def evaluation(model: Path, pairs: Path, options: ModelOptions, outputs: Path | None) -> None:
    result = evaluate_files([model], [pairs], options=options)
    if outputs:
        write_pairs(outputs / "rows.parquet", result)
        write_page(outputs / "page.html", result, summarise(result.report))


def scoring(model: Path, items: Path, options: ModelOptions) -> None:
    placement = options.placement()
    scorer = Scorer(RewardModel.from_pretrained(model, dtype=placement["dtype"], device=placement["device"]))
    for _ in scorer.score(read_items(items)):
        pass


def memory(arguments: argparse.Namespace, pairs: int) -> float:
    """Peak MiB of an evaluation with all outputs, in a process of its own."""
    command = [sys.executable, __file__, "--child", str(pairs), "--preset", arguments.preset or "1m"]
    command += ["--length", str(arguments.length), "--tokenizer", arguments.tokenizer]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def child(arguments: argparse.Namespace) -> None:
    """Print this process's peak: a model that costs little, so that many pairs can be asked for."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs, _ = write_data(folder, arguments.child, arguments.length)
        options = ModelOptions(arguments.precision, claim_device(arguments.device))
        model = save_model(folder, arguments)
        evaluation(model, pairs, options, folder)
        print(peak_rss_mib())


def save_model(folder: Path, arguments: argparse.Namespace) -> Path:
    model = build_model(arguments)
    torch.nn.init.normal_(model.backbone.score.weight)
    model.mark_trained()
    model.save(folder / "model")
    return folder / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_options(parser)
    parser.add_argument("--precision", default="fp32", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="*", default=[], help="numbers of pairs whose peak memory is measured")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs, items = write_data(folder, arguments.pairs, arguments.length)
        options = ModelOptions(arguments.precision, claim_device(arguments.device))
        model = save_model(folder, arguments)
        for what, outputs in (("evaluate", None), ("evaluate, with rows and page", folder)):
            found = paired(
                lambda o=outputs: evaluation(model, pairs, options, o), lambda: scoring(model, items, options), arguments.rounds
            )
            # Peer over ours is what `paired` gives; the cost is the other way round.
            cost = {"cost": 1 / found["ratio"], "cost_low": 1 / found["ratio_high"], "cost_high": 1 / found["ratio_low"]}
            cost |= {"cost_cpu": 1 / found["cpu_ratio"], "evaluate_s": found["ours_s"], "score_s": found["peer_s"]}
            rows.append({"what": what, "pairs": arguments.pairs, **cost})
            report(rows[-1:], None)
    for count in arguments.memory:
        rows.append({"what": "peak memory", "pairs": count, "mib": memory(arguments, count)})
        report(rows[-1:], None)
    where = {
        "model": arguments.preset or f"SmolLM2-135M, {arguments.layers} layers",
        "length": arguments.length,
        "dtype": dtype_name(arguments.precision, arguments.device),
        "device": device_name(torch.device(arguments.device)),
        "threads": torch.get_num_threads(),
        **origin(),
    }
    if arguments.output:
        arguments.output.write_text(json.dumps([row | where for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()

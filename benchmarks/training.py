"""Training speed and memory next to TRL's RewardTrainer: same model, same token ids, same machine.

TRL gets its best setting, found here by trying batch sizes and precisions (no gradient checkpointing, batches added up to the
same pairs a step), and a padded batch of 8 besides. Both take turns; the ratio of a round is TRL's seconds a pair over ours.

    python benchmarks/training.py --layers 6 --k 2 8 --rounds 5 --output training.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from common import LANGUAGE_MODEL, comparisons, peak_rss_mib, report

from polar_rm.config import load_config
from polar_rm.encoding import PrefixTree
from polar_rm.modeling import RewardModel
from polar_rm.records import write_records
from polar_rm.training.config import TrainConfig
from polar_rm.training.parallel import World
from polar_rm.training.trainer import Trainer

PAIRS_PER_STEP = 8
PRECISIONS = ["fp32", "bf16 autocast", "bf16 weights"]
Seconds = tuple[float, float]  # wall, CPU


class Ours:
    """The loop of ``polar pretrain``; a block is some optimiser steps."""

    def __init__(self, work: Path, k: int, row_tokens: int, compiled: bool) -> None:
        overrides = [
            f"model.resume_from={work / 'model'}",
            f"data.train=[{work / f'k{k}.jsonl'}]",
            f"output={work / f'ours{k}'}",
            f"batch_size={PAIRS_PER_STEP}",
            f"row_tokens={row_tokens}",
            "optim.lr=1e-6",
            f"compile={compiled}",
            "log.tensorboard=false",
            "device=cpu",
        ]
        config = load_config(TrainConfig, [], overrides)
        self.trainer = Trainer(config, World(0, 1, torch.device("cpu")))
        self.trainer.model.train()
        self.pairs_per_tree = self.trainer.train_set.stats.pairs / len(self.trainer.train_set)

    def block(self, indices: list[int]) -> Seconds:
        """Seconds a pair."""
        wall, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(indices), PAIRS_PER_STEP):
            self.trainer.optimize(indices[start : start + PAIRS_PER_STEP])
        pairs = len(indices) * self.pairs_per_tree
        return (time.perf_counter() - wall) / pairs, (time.process_time() - cpu) / pairs


class Peer:
    """TRL's RewardTrainer in one setting."""

    def __init__(self, work: Path, batch: int, precision: str) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        dtype = torch.bfloat16 if precision == "bf16 weights" else torch.float32
        self.model = AutoModelForSequenceClassification.from_pretrained(work / "model", dtype=dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(work / "model")
        self.work, self.batch, self.precision = work, batch, precision

    def block(self, trees: list[PrefixTree]) -> Seconds:
        """Seconds a pair, for the best and the second candidate of every tree."""
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import RewardConfig, RewardTrainer

        class Clock(TrainerCallback):
            began: Seconds
            ended: Seconds

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                self.began = time.perf_counter(), time.process_time()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                self.ended = time.perf_counter(), time.process_time()

        clock = Clock()
        trainer = RewardTrainer(
            model=self.model,
            processing_class=self.tokenizer,
            train_dataset=Dataset.from_list([{"chosen_ids": t.sequence(0), "rejected_ids": t.sequence(1)} for t in trees]),
            args=RewardConfig(
                output_dir=str(self.work / "trl"),
                per_device_train_batch_size=self.batch,
                gradient_accumulation_steps=PAIRS_PER_STEP // self.batch,
                num_train_epochs=1,
                max_length=None,
                use_cpu=True,
                bf16=self.precision == "bf16 autocast",
                gradient_checkpointing=False,
                learning_rate=1e-6,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            callbacks=[clock],
        )
        trainer.train()
        return tuple((end - start) / len(trees) for end, start in zip(clock.ended, clock.began, strict=True))  # type: ignore[return-value]


def prepare(work: Path, layers: int, length: int, ks: list[int], count: int) -> None:
    """The model both sides load, and the comparisons."""
    RewardModel.from_causal_lm(LANGUAGE_MODEL, n_layers=layers).save(work / "model")
    for k in ks:
        write_records(work / f"k{k}.jsonl", comparisons(count, k, length, seed=k))


def measure(work: Path, k: int, arguments: argparse.Namespace) -> dict[str, Any]:
    ours = Ours(work, k, arguments.row_tokens, arguments.compile)
    data = ours.trainer.train_set
    first = [(tree.prefix, tree.branches, tree.ranks) for tree in map(data.__getitem__, range(2 * PAIRS_PER_STEP))]
    (work / f"k{k}.trees.json").write_text(json.dumps(first))  # what memory() gives the peer
    block = 2 * PAIRS_PER_STEP
    trees = [data[i] for i in range(len(data))]
    peers = {(b, precision): Peer(work, b, precision) for b in arguments.batches for precision in arguments.precisions}
    trials = {}
    for setting, peer in peers.items():
        trials[setting] = min(peer.block(trees[:PAIRS_PER_STEP])[0] for _ in range(2))
    best = min(trials, key=lambda setting: trials[setting])
    padded = min((s for s in trials if s[0] == 8), key=lambda setting: trials[setting])
    ours.block(list(range(block)))
    ratios: dict[str, list[float]] = {"best": [], "best_cpu": [], "padded": [], "padded_cpu": []}
    speed = []
    for number in range(arguments.rounds):
        start = number * block % (len(data) - block + 1)
        indices = list(range(start, start + block))
        mine = ours.block(indices)
        speed.append(1 / mine[0])
        for name, setting in (("best", best), ("padded", padded)):
            theirs = peers[setting].block([trees[i] for i in indices])
            ratios[name].append(theirs[0] / mine[0])
            ratios[f"{name}_cpu"].append(theirs[1] / mine[1])
    stats = data.stats
    pair_tokens = statistics.mean(len(t.sequence(0)) + len(t.sequence(1)) for t in trees)
    return {
        "k": k,
        "compile": arguments.compile,
        "best_setting": f"batch {best[0]}, {best[1]}",
        "ratio_best": statistics.median(ratios["best"]),
        "ratio_best_range": [min(ratios["best"]), max(ratios["best"])],
        "ratio_best_cpu": statistics.median(ratios["best_cpu"]),
        "padded_setting": f"batch 8, {padded[1]}",
        "ratio_padded": statistics.median(ratios["padded"]),
        "ratio_padded_cpu": statistics.median(ratios["padded_cpu"]),
        "token_count_prediction": pair_tokens / (stats.tokens / stats.pairs),
        "our_pairs_per_second": statistics.median(speed),
        "trials_pairs_per_second": {f"{b}, {p}": round(1 / seconds, 3) for (b, p), seconds in trials.items()},
    }


def memory(work: Path, k: int, row: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """Peak resident memory (MiB) of a process of its own, for ours at two row budgets and TRL at two settings."""
    sides = {f"rows of {n}": f"rows {n}" for n in (arguments.row_tokens, 2048)}
    sides |= {"TRL best": row["best_setting"], "TRL padded 8": row["padded_setting"]}
    peaks = {}
    for name, setting in sides.items():
        command = [sys.executable, __file__, "--work", str(work), "--k", str(k), "--side", setting]
        command += ["--compile"] if arguments.compile else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[name] = round(float(done.stdout.splitlines()[-1]))
    return peaks


def one_side(work: Path, k: int, setting: str, compiled: bool) -> None:
    """What :func:`memory` starts: one block of one side, then the peak."""
    if setting.startswith("rows "):
        Ours(work, k, int(setting.removeprefix("rows ")), compiled).block(list(range(16)))
    else:
        batch, precision = setting.removeprefix("batch ").split(", ")
        trees = [PrefixTree(*row) for row in json.loads((work / f"k{k}.trees.json").read_text())]
        Peer(work, int(batch), precision).block(trees)
    print(peak_rss_mib())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--length", type=int, default=200, help="mean tokens of prompt, reference and candidate")
    parser.add_argument("--k", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="of TRL; 8 must be among them")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="of TRL")
    parser.add_argument("--compile", action="store_true", help="our side with compile=true")
    parser.add_argument("--row-tokens", type=int, default=8192)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        one_side(arguments.work, arguments.k[0], arguments.side, arguments.compile)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), arguments.layers, arguments.length, arguments.k, 3 * 2 * PAIRS_PER_STEP)
        for k in arguments.k:
            row = measure(Path(folder), k, arguments)
            rows.append(row | {"peak_mib": memory(Path(folder), k, row, arguments)})
            report(rows[-1:], None)
    if arguments.output:
        report(rows, arguments.output)


if __name__ == "__main__":
    main()

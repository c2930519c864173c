"""Training speed and memory compared with TRL's RewardTrainer: same model, same token ids, same machine.

TRL runs with its best setting, which is chosen by trying batch sizes, precisions and, on a GPU, activation checkpointing
(gradients are accumulated to the same number of pairs per step), and also with a padded batch of 8. Both sides take turns; the
ratio of a round is TRL's seconds per pair over ours. On a GPU our side is also measured with FlexAttention and compiled.

    python benchmarks/training.py --layers 6 --k 2 8 --rounds 5 --output training.jsonl
    python benchmarks/training.py --device cuda --preset 1b --length 1000 --k 2 8 --precisions "bf16 weights"
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from common import comparisons, peak_rss_mib, report
from models import build_model, device_name, model_options, wait

from polar_rm.common.config import load_config
from polar_rm.encoding.tree import PrefixTree
from polar_rm.model.devices import claim_device
from polar_rm.records import write_records
from polar_rm.training.config import TrainConfig
from polar_rm.training.metrics import peak_flops
from polar_rm.training.parallel import World
from polar_rm.training.trainer import Trainer

PAIRS_PER_STEP = 8
PRECISIONS = ["fp32", "bf16 autocast", "bf16 weights"]
Seconds = tuple[float, float]  # wall, CPU


class Setting(NamedTuple):
    """A setting of TRL. checkpointed: with activation checkpointing."""

    batch: int
    precision: str
    checkpointed: bool = False

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.precision}" + (", checkpointed" if self.checkpointed else "")


class Ours:
    """The training loop of ``polar pretrain``; a block is a number of optimiser steps."""

    def __init__(self, work: Path, k: int, device: str, *overrides: str) -> None:
        common = [
            f"model.resume_from={work / 'model'}",
            f"data.train=[{work / f'k{k}.jsonl'}]",
            f"output={work / f'ours{k}'}",
            f"batch_size={PAIRS_PER_STEP}",
            "optim.lr=1e-6",
            "log.tensorboard=false",
            f"device={device}",
        ]
        config = load_config(TrainConfig, [], [*common, *overrides])
        self.device = torch.device(device)
        self.trainer = Trainer(config, World(0, 1, self.device))
        self.trainer.model.train()
        self.pairs_per_tree = self.trainer.train_set.stats.pairs / len(self.trainer.train_set)
        self.flops = 0.0  # per second, in the last block

    def block(self, indices: list[int]) -> Seconds:
        """Train on a block; returns seconds per pair."""
        wall, cpu, flops = time.perf_counter(), time.process_time(), 0.0
        for start in range(0, len(indices), PAIRS_PER_STEP):
            flops += self.trainer.optimize(indices[start : start + PAIRS_PER_STEP])["flops"]
        wait(self.device)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.flops = flops / wall
        pairs = len(indices) * self.pairs_per_tree
        return wall / pairs, cpu / pairs


class Peer:
    """TRL's RewardTrainer. Settings with the same type of weights share a model."""

    def __init__(self, work: Path, device: str) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(work / "model")
        self.work, self.device = work, torch.device(device)
        self.models: dict[torch.dtype, Any] = {}

    def model(self, precision: str) -> Any:
        from transformers import AutoModelForSequenceClassification

        dtype = torch.bfloat16 if precision == "bf16 weights" else torch.float32
        if dtype not in self.models:
            model = AutoModelForSequenceClassification.from_pretrained(self.work / "model", dtype=dtype)
            self.models[dtype] = model.to(self.device)
        return self.models[dtype]

    def block(self, setting: Setting, trees: list[PrefixTree]) -> Seconds:
        """Train on the best and the second candidate of every tree; returns seconds per pair, infinite if memory is exhausted."""
        try:
            return self._block(setting, trees)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return math.inf, math.inf
        finally:
            gc.collect()  # trainers contain reference cycles

    def _block(self, setting: Setting, trees: list[PrefixTree]) -> Seconds:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import RewardConfig, RewardTrainer

        device = self.device
        model = self.model(setting.precision)
        model.gradient_checkpointing_disable()  # an earlier setting may have enabled it

        class Clock(TrainerCallback):
            began: Seconds
            ended: Seconds

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                wait(device)
                self.began = time.perf_counter(), time.process_time()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                wait(device)
                self.ended = time.perf_counter(), time.process_time()

        clock = Clock()
        trainer = RewardTrainer(
            model=model,
            processing_class=self.tokenizer,
            train_dataset=Dataset.from_list([{"chosen_ids": t.sequence(0), "rejected_ids": t.sequence(1)} for t in trees]),
            args=RewardConfig(
                output_dir=str(self.work / "trl"),
                per_device_train_batch_size=setting.batch,
                gradient_accumulation_steps=PAIRS_PER_STEP // setting.batch,
                num_train_epochs=1,
                max_length=None,
                use_cpu=device.type == "cpu",
                bf16=setting.precision == "bf16 autocast",
                gradient_checkpointing=setting.checkpointed,
                gradient_checkpointing_kwargs={"use_reentrant": False},
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


def prepare(work: Path, arguments: argparse.Namespace, count: int) -> None:
    """Write the model, which both sides load, and the comparisons."""
    build_model(arguments).save(work / "model")
    for k in arguments.k:
        write_records(work / f"k{k}.jsonl", comparisons(count, k, arguments.length, seed=k))


def our_options(arguments: argparse.Namespace) -> list[str]:
    return [f"row_tokens={arguments.row_tokens}", f"compile={arguments.compile}"]


def measure(work: Path, k: int, arguments: argparse.Namespace) -> dict[str, Any]:
    block = 2 * PAIRS_PER_STEP
    ours = Ours(work, k, arguments.device, *our_options(arguments))
    ours.block(list(range(block)))
    our_share = allocated(ours.device)
    data = ours.trainer.train_set
    trees = [data[i] for i in range(len(data))]
    first = [(tree.prefix, tree.branches, tree.ranks) for tree in trees[:block]]
    (work / f"k{k}.trees.json").write_text(json.dumps(first))  # memory() passes them to the peer
    peer = Peer(work, arguments.device)
    checkpointed = (False, True) if arguments.device == "cuda" else (False,)
    settings = [Setting(b, p, c) for p in arguments.precisions for b in arguments.batches for c in checkpointed]
    trials = {setting: min(peer.block(setting, trees[:PAIRS_PER_STEP])[0] for _ in range(2)) for setting in settings}
    best = min(settings, key=trials.__getitem__)
    padded = min((setting for setting in settings if setting.batch == 8), key=trials.__getitem__)
    ratios: dict[str, list[float]] = {"best": [], "best_cpu": [], "padded": [], "padded_cpu": []}
    speed, utilisation = [], []
    for number in range(arguments.rounds):
        start = number * block % (len(data) - block + 1)
        indices = list(range(start, start + block))
        our_seconds = ours.block(indices)
        speed.append(1 / our_seconds[0])
        utilisation.append(ours.flops)
        for name, setting in (("best", best), ("padded", padded)):
            peer_seconds = peer.block(setting, [trees[i] for i in indices])
            ratios[name].append(peer_seconds[0] / our_seconds[0])
            ratios[f"{name}_cpu"].append(peer_seconds[1] / our_seconds[1])
    stats = data.stats
    pair_tokens = statistics.mean(len(t.sequence(0)) + len(t.sequence(1)) for t in trees)
    peak = peak_flops(ours.device, ours.trainer.compute)
    row = {
        "device": device_name(ours.device),
        "k": k,
        "compile": arguments.compile,
        "best_setting": str(best),
        "ratio_best": statistics.median(ratios["best"]),
        "ratio_best_range": [min(ratios["best"]), max(ratios["best"])],
        "ratio_best_cpu": statistics.median(ratios["best_cpu"]),
        "padded_setting": str(padded),
        "ratio_padded": statistics.median(ratios["padded"]),
        "ratio_padded_cpu": statistics.median(ratios["padded_cpu"]),
        "token_count_prediction": pair_tokens / (stats.tokens / stats.pairs),
        "our_pairs_per_second": statistics.median(speed),
        "our_mfu": statistics.median(utilisation) / peak,
        "trials_pairs_per_second": {str(setting): round(1 / seconds, 3) for setting, seconds in trials.items()},
    }
    if ours.device.type == "cpu":
        return row | {"peak_mib": memory(work, k, row, arguments)}
    peer_share = allocated(ours.device) - our_share
    peaks = {"rows": peak_allocated(lambda: ours.block(list(range(block)))) - peer_share}
    for name, setting in (("TRL best", best), ("TRL padded 8", padded)):
        peaks[name] = peak_allocated(lambda setting=setting: peer.block(setting, trees[:block])) - our_share  # type: ignore[misc]
    return row | {"peak_mib": peaks}


def allocated(device: torch.device) -> int:
    """Allocated memory in MiB."""
    return torch.cuda.memory_allocated() >> 20 if device.type == "cuda" else 0


def peak_allocated(run: Callable[[], Any]) -> int:
    """Peak of the allocated memory in MiB."""
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() >> 20


def other_settings(work: Path, k: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds with other settings over seconds with the default. They run one after another, because they don't fit in memory
    together."""
    indices = list(range(2 * PAIRS_PER_STEP))

    def seconds(*setting: str) -> float:
        gc.collect()
        ours = Ours(work, k, arguments.device, *our_options(arguments), *setting)
        ours.block(indices)
        return statistics.median(ours.block(indices)[0] for _ in range(arguments.rounds))

    default = seconds()
    return {setting: seconds(setting) / default for setting in ("attention=tree_flex", "compile=true")}


def memory(work: Path, k: int, row: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """Peak resident memory (MiB) in separate processes: ours with two row budgets, TRL with its best setting and padded."""
    sides = {f"rows of {n}": f"rows {n}" for n in (arguments.row_tokens, 2048)}
    sides |= {"TRL best": row["best_setting"], "TRL padded 8": row["padded_setting"]}
    if "bf16 weights" in row["best_setting"]:  # ours keeps float32 weights
        sides["TRL best, float32 weights"] = row["best_setting"].replace("bf16 weights", "bf16 autocast")
    peaks = {}
    for name, setting in sides.items():
        command = [sys.executable, __file__, "--work", str(work), "--k", str(k), "--side", setting]
        command += ["--compile"] if arguments.compile else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[name] = round(float(done.stdout.splitlines()[-1]))
    return peaks


def one_side(work: Path, k: int, side: str, arguments: argparse.Namespace) -> None:
    """Run one block of one side and print the peak; :func:`memory` starts it."""
    if side.startswith("rows "):
        arguments.row_tokens = int(side.removeprefix("rows "))
        claim_device(arguments.device)  # as the commands do
        Ours(work, k, arguments.device, *our_options(arguments)).block(list(range(16)))
    else:
        batch, precision = side.removeprefix("batch ").split(", ")
        trees = [PrefixTree(*row) for row in json.loads((work / f"k{k}.trees.json").read_text())]
        Peer(work, arguments.device).block(Setting(int(batch), precision), trees)
    print(peak_rss_mib())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_options(parser)
    parser.add_argument("--k", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="batch sizes of TRL; must include 8")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="precisions of TRL")
    parser.add_argument("--compile", action="store_true", help="our side with compile=true")
    parser.add_argument("--row-tokens", type=int, default=8192)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if 8 not in arguments.batches:  # checked before the measurements; the padded peer needs it
        parser.error("argument --batches: must include 8")
    if arguments.side:
        one_side(arguments.work, arguments.k[0], arguments.side, arguments)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), arguments, 3 * 2 * PAIRS_PER_STEP)
        for k in arguments.k:
            rows.append(measure(Path(folder), k, arguments))
            report(rows[-1:], None)
            if arguments.device == "cuda":
                rows.append({"k": k, "seconds_over_ours": other_settings(Path(folder), k, arguments)})
                report(rows[-1:], None)
    if arguments.output:
        report(rows, arguments.output)


if __name__ == "__main__":
    main()

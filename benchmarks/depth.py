"""Training and scoring by depth: rows of prefix trees against rows without sharing and against plain transformers.

*Packed* is what trainers with packed rows of variable length compute (OpenRLHF, xtuner, ms-swift): whole sequences one behind the
other, each attending to itself only, without padding and without sharing. It runs in our own loop with our own attention, so that
the ratio is that of sharing alone. *Plain* is transformers with one sequence at a time, which needs no padding either. *TRL*,
where it is installed, is its ``RewardTrainer`` on the pairs of the best candidate with each other one, in batches of one, which
need no padding, with the gradients accumulated to one step.

Sides take turns on the same work; ratios are of CPU seconds, the median over rounds. ``counted`` is the ratio of the tokens.
``product_gflops`` is the rate of the model's own matrix products alone, measured in every round; ``share`` is what part of it a
side reaches, with the FLOPs that it has to do.

    python benchmarks/depth.py --layers 2 6 30 --score 2 8 16 --train 2 --rounds 1 --output results/depth.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import LANGUAGE_MODEL, comparisons, origin
from torch import nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from polar_rm.common.config import load_config
from polar_rm.encoding.tree import PrefixTree
from polar_rm.model.devices import claim_device
from polar_rm.model.packing import pack
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import write_records
from polar_rm.scoring.scorer import Scorer
from polar_rm.training.config import TrainConfig
from polar_rm.training.metrics import training_flops
from polar_rm.training.parallel import World
from polar_rm.training.trainer import Trainer

Seconds = tuple[float, float]  # wall, CPU
# A side may return its own seconds; of the others the whole call counts.
Sides = dict[str, Callable[[], Seconds | None]]
_PRODUCT_TOKENS = 512


def unshared(tree: PrefixTree) -> PrefixTree:
    """The same sequences with nothing shared but their first token, so that they remain one comparison of one loss."""
    return PrefixTree(tree.prefix[:1], [tree.prefix[1:] + branch for branch in tree.branches], tree.ranks)


def begun(tree: PrefixTree) -> PrefixTree:
    """The first tokens of everything, for a first round that warms up."""
    return PrefixTree(tree.prefix[:8], [branch[:8] for branch in tree.branches], tree.ranks)


def counted(trees: Sequence[PrefixTree]) -> float:
    """Tokens of whole sequences over tokens of trees."""
    return sum(tree.length(i) for tree in trees for i in range(len(tree.branches))) / sum(tree.n_tokens for tree in trees)


def product_gflops(model: nn.Module) -> float:
    """The rate of the products of one layer of the model, GFLOP/s of CPU time; the best of three."""
    weights = [module.weight for module in model.base_model.layers[0].modules() if isinstance(module, nn.Linear)]
    inputs = [torch.randn(_PRODUCT_TOKENS, weight.shape[1]) for weight in weights]
    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            start = time.process_time()
            for _ in range(4):
                for weight, given in zip(weights, inputs, strict=True):
                    functional.linear(given, weight)
            seconds.append(time.process_time() - start)
    return 4 * 2 * _PRODUCT_TOKENS * sum(weight.numel() for weight in weights) / min(seconds[1:]) / 1e9


def compare(sides: Sides, flops: dict[str, float], model: nn.Module, rounds: int) -> dict[str, Any]:
    """CPU and wall seconds of every side, ratios to ours, and shares of the measured rate."""
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    rates = []
    for number in range(rounds):
        rates.append(product_gflops(model))
        names = list(sides)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start, start_cpu = time.perf_counter(), time.process_time()
            own = sides[name]()
            wall_s, cpu_s = own or (time.perf_counter() - start, time.process_time() - start_cpu)
            cpu[name].append(cpu_s)
            wall[name].append(wall_s)
    rate = statistics.median(rates)
    ratios = {name: [peer / ours for peer, ours in zip(cpu[name], cpu["ours"], strict=True)] for name in sides if name != "ours"}
    return {
        "cpu_s": {name: statistics.median(values) for name, values in cpu.items()},
        "wall_s": {name: statistics.median(values) for name, values in wall.items()},
        "cpu_ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "cpu_ratio_range": {name: [min(values), max(values)] for name, values in ratios.items()},
        "product_gflops": rate,
        "share": {name: flops[name] / statistics.median(cpu[name]) / 1e9 / rate for name in flops},
        "rounds": rounds,
        "load": os.getloadavg()[0],
    }


def scoring(folder: Path, n_candidates: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row of scoring: one comparison of ``n_candidates``."""
    model = RewardModel.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scorer = Scorer(model)
    trees = model.encoder.encode_many(comparisons(1, n_candidates, arguments.length, seed=n_candidates))
    whole = [unshared(tree) for tree in trees]
    results: dict[str, list[float]] = {}

    def score(name: str, of: list[PrefixTree]) -> None:
        results[name] = [value for scores in scorer.score_trees(of) for value in scores]

    @torch.inference_mode()
    def one_by_one() -> None:
        sequences = [tree.sequence(i) for tree in trees for i in range(len(tree.branches))]
        results["plain"] = [float(plain(torch.tensor([ids]), use_cache=False).logits) for ids in sequences]

    scorer.score_trees([begun(tree) for tree in trees])
    sides: Sides = {"ours": lambda: score("ours", trees), "packed": lambda: score("packed", whole), "plain": one_by_one}
    flops = {
        name: training_flops(model.backbone.config, pack(of).layout) / 3 for name, of in (("ours", trees), ("packed", whole))
    }
    row = compare(sides, flops, model.backbone, arguments.rounds)
    difference = max(abs(a - b) for name in ("packed", "plain") for a, b in zip(results["ours"], results[name], strict=True))
    return {"work": "scoring", "candidates": n_candidates, "counted": counted(trees), **row, "largest_difference": difference}


def training(folder: Path, n_candidates: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row of training: one optimiser step on one comparison of ``n_candidates``."""
    work = folder.parent
    data = work / f"k{n_candidates}.jsonl"
    write_records(data, comparisons(1, n_candidates, arguments.length, seed=n_candidates))
    overrides = [f"model.resume_from={folder}", f"data.train=[{data}]", f"output={work / f'run{n_candidates}'}", "batch_size=1"]
    overrides += ["optim.lr=1e-9", "log.tensorboard=false", "device=cpu", "precision=fp32", f"row_tokens={1 << 15}"]
    trainer = Trainer(load_config(TrainConfig, [], overrides), World(0, 1, torch.device("cpu")))
    trainer.model.train()
    tree, rows_of = trainer.train_set[0], trainer.rows.row
    flops: dict[str, float] = {}
    losses: dict[str, float] = {}

    def step(name: str, make: Callable[[Sequence[PrefixTree]], Any]) -> None:
        trainer.rows.row = make  # type: ignore[method-assign]
        values = trainer.optimize([0])
        flops[name], losses[name] = values["flops"], values["loss"]

    sides: Sides = {
        "ours": lambda: step("ours", rows_of),
        "packed": lambda: step("packed", lambda trees: pack([unshared(each) for each in trees])),
    }
    step("ours", lambda trees: pack([begun(each) for each in trees]))
    if n_candidates == 2:
        sides["plain"] = _plain_step(folder, tree, losses)
    if find_spec("trl"):
        sides["trl"] = _trl_step(work, tree)
    row = compare(sides, flops, trainer.model.backbone, arguments.rounds)
    difference = max(losses.values()) - min(losses.values())
    return {"work": "training", "candidates": n_candidates, "counted": counted([tree]), **row, "largest_difference": difference}


def _plain_step(folder: Path, tree: PrefixTree, losses: dict[str, float]) -> Callable[[], None]:
    """A step of transformers on a pair, one sequence after the other, with the optimiser of ours."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(end: int | None = None) -> None:
        better, worse = (model(torch.tensor([tree.sequence(i)[:end]]), use_cache=False).logits[0, 0] for i in range(2))
        loss = -functional.logsigmoid(better - worse)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses["plain"] = loss.item()

    step(8)
    return step


def _trl_step(work: Path, tree: PrefixTree) -> Callable[[], Seconds]:
    """A step of TRL on all pairs of a comparison; it returns its seconds, without those of preparing the data."""
    from training import Peer, Setting

    peer = Peer(work, "cpu")
    pairs = [PrefixTree(tree.prefix, [tree.branches[0], worse], (0, 1)) for worse in tree.branches[1:]]

    def step(pairs: list[PrefixTree] = pairs) -> Seconds:
        wall, cpu = peer.block(Setting(1, "fp32"), pairs)
        return wall * len(pairs), cpu * len(pairs)

    step([begun(pairs[0])])
    return step


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 6, 30], help="number of first layers of SmolLM2-135M")
    parser.add_argument("--score", type=int, nargs="*", default=[2, 8, 16], help="candidates to score")
    parser.add_argument("--train", type=int, nargs="*", default=[2, 8], help="candidates of a comparison to train on")
    parser.add_argument("--length", type=int, default=200, help="mean number of tokens of prompt, reference and candidate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a JSON file, to whose rows these are added")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    claim_device("cpu")
    work: list[tuple[Callable[..., dict[str, Any]], int]] = [(scoring, k) for k in arguments.score]
    work += [(training, k) for k in arguments.train]
    for layers in arguments.layers:
        with tempfile.TemporaryDirectory() as folder:
            built = RewardModel.from_causal_lm(LANGUAGE_MODEL, n_layers=layers)
            nn.init.normal_(built.backbone.score.weight, std=0.02)
            built.save(Path(folder) / "model")
            del built
            for measure, n_candidates in work:
                row = {"layers": layers, "length": arguments.length, **measure(Path(folder) / "model", n_candidates, arguments)}
                row |= {"threads": arguments.threads, **origin()}
                print(json.dumps(row), flush=True)
                if arguments.output:
                    rows = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
                    arguments.output.write_text(json.dumps([*rows, row], indent=1) + "\n")


if __name__ == "__main__":
    main()

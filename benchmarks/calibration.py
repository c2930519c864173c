"""Are calibrated probabilities right on held-out pairs, and does abstaining raise accuracy there?

    python benchmarks/calibration.py --data pref_train_verifiable.parquet pref_train_rmb.parquet pref_train_chat_judge.parquet \
        --output runs/calibration

Without --model, a small reward model is fine-tuned first. Prompts are split three ways: to train on, to calibrate with, to test
on. A row of ``benchmarks/results/calibration.json`` holds what came out of the test pairs, of which the card has seen none.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import LANGUAGE_MODEL, origin
from rich.console import Console

from polar_rm.calibration import calibrate_files
from polar_rm.calibration.abstention import abstention_curve, certainty
from polar_rm.calibration.data import score_pairs
from polar_rm.calibration.temperature import reliability
from polar_rm.common.config import load_config
from polar_rm.common.files import write_json
from polar_rm.common.progress import show_progress
from polar_rm.corpus import is_held_out
from polar_rm.evaluation.pairs import bradley_terry_loss
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import Comparison, read_comparisons, write_records
from polar_rm.rewards.scale import Scale
from polar_rm.scoring.scorer import Scorer
from polar_rm.training.config import TrainConfig
from polar_rm.training.trainer import train

PARTS = ("train", "calibrate", "test")
TEST, NOT_TRAIN = 0.4, 0.75  # shares of the prompts


def build(files: list[Path], output: Path, most: dict[str, int]) -> None:
    """Write pairs with a reference, split by prompt; pairs of one prompt stay together, so that they share a tree."""
    by_prompt: dict[str, list[Comparison]] = {}
    for file in files:
        for row in read_comparisons(file):
            if row.reference:
                by_prompt.setdefault(json.dumps(row.prompt), []).append(row)
    prompts = sorted(by_prompt)
    random.Random(0).shuffle(prompts)
    parts: dict[str, list[Comparison]] = {name: [] for name in PARTS}
    for prompt in prompts:
        rows = by_prompt[prompt]
        held = is_held_out(rows[0].prompt, TEST), is_held_out(rows[0].prompt, NOT_TRAIN)
        name = "test" if held[0] else "calibrate" if held[1] else "train"
        if len(parts[name]) < most[name]:
            parts[name] += rows
    for name, rows in parts.items():
        print(f"{name}: {write_records(output / f'{name}.jsonl', rows):,} pairs")


def fine_tune(output: Path, overrides: list[str]) -> Path:
    """A small model: the first layers of a language model, fine-tuned on the training pairs for one epoch."""
    settings = [
        *(f"model.init={LANGUAGE_MODEL}", "model.n_layers=2", "model.encoder.max_length=384"),
        *("model.encoder.max_response_length=96", "batch_size=32", "epochs=1", "row_tokens=4096", "optim.lr=3e-4"),
        *("log.tensorboard=false", f"data.train=[{output / 'train.jsonl'}]", f"output={output / 'rm'}", *overrides),
    ]
    train(load_config(TrainConfig, [], settings), console=Console(stderr=True))
    return output / "rm/model"


def on_test_pairs(model: Path, file: Path, *, dtype: str = "float32", device: str = "cpu") -> dict[str, Any]:
    """Calibration error and abstention on pairs that the card has never seen, with the card's temperature and posterior."""
    scale = Scale.load(model)
    assert scale.calibration is not None
    assert scale.calibration.temperature is not None
    assert scale.uncertainty is not None
    temperature = scale.calibration.temperature
    comparisons = list(read_comparisons(file))
    scorer = Scorer(RewardModel.from_pretrained(model, dtype=dtype, device=device))
    with show_progress(Console(stderr=True)) as progress:
        pairs = score_pairs(scorer, comparisons, total=len(comparisons), progress=progress)
    differences = pairs.differences
    features, better, worse = pairs.features.values, pairs.features.better, pairs.features.worse
    deviations = scale.uncertainty.deviations(features[better] - features[worse]).astype(np.float64)
    before, after = reliability(differences), reliability(differences / temperature)
    certain = certainty(differences, np.full(len(differences), temperature), deviations)
    curve = abstention_curve(differences, certain, pairs.prompts)
    return {
        "n_pairs": len(differences),
        "n_prompts": int(pairs.prompts.max()) + 1,
        "accuracy": curve[0]["accuracy"],
        "ci95": curve[0]["ci95"],
        "loss_before": bradley_terry_loss(differences),
        "loss_after": bradley_terry_loss(differences / temperature),
        "ece_before": before.error,
        "ece_after": after.error,
        "ece_of_exact_probabilities": after.noise,
        "median_deviation": float(np.median(deviations)),
        "abstention": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a reward model that was not trained on these data; default: a small one is")
    parser.add_argument("--train-pairs", type=int, default=4000)
    parser.add_argument("--calibrate-pairs", type=int, default=6000)
    parser.add_argument("--test-pairs", type=int, default=8000)
    parser.add_argument("--results", type=Path, help="JSON file with a list of rows, to which one is added")
    parser.add_argument("overrides", nargs="*", help="of the training config")
    arguments = parser.parse_args()
    began = time.perf_counter()
    sizes = dict(zip(PARTS, (arguments.train_pairs, arguments.calibrate_pairs, arguments.test_pairs), strict=True))
    build(arguments.data, arguments.output, sizes)
    model = arguments.model or fine_tune(arguments.output, arguments.overrides)
    with show_progress(Console(stderr=True)) as progress:
        card = calibrate_files(model, [arguments.output / "calibrate.jsonl"], progress=progress)
    row = {
        "what": "calibration on held-out pairs",
        **origin(),
        "data": [file.name for file in arguments.data],
        "calibrated_on": {key: card[key] for key in ("n_pairs", "n_prompts", "temperature", "head")}  # type: ignore[literal-required]
        | {"ece_before": card["before"]["error"], "ece_after_out_of_fold": card["after"]["error"]},
        "test": on_test_pairs(model, arguments.output / "test.jsonl"),
        "seconds": time.perf_counter() - began,
    }
    print(json.dumps(row, indent=1))
    if arguments.results:
        rows = json.loads(arguments.results.read_text()) if arguments.results.exists() else []
        write_json(arguments.results, [*rows, row])


if __name__ == "__main__":
    main()

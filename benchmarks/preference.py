"""Does pre-training help? The same fine-tuning on preference data, from a pre-trained model and from its language model.

    python benchmarks/preference.py --data pref_train_verifiable.parquet pref_train_rmb.parquet pref_train_chat_judge.parquet \
        --model runs/oasst/rm/model --layers 6 --output runs/preference
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from common import LANGUAGE_MODEL, report
from rich.console import Console

from polar_rm.common.config import load_config
from polar_rm.corpus import is_held_out
from polar_rm.encoding.encoder import Encoder
from polar_rm.evaluation import EvaluationResult, ModelOptions, evaluate_files
from polar_rm.records import Comparison, read_comparisons, write_records
from polar_rm.training.config import TrainConfig
from polar_rm.training.trainer import train

HELD_OUT = 0.2


def build(files: list[Path], output: Path, train_pairs: int, test_pairs: int) -> None:
    """Write pairs with a reference, in equal shares of every file and split by prompt."""
    parts: dict[str, list[Comparison]] = {"train": [], "test": []}
    for file in files:
        rows = [row for row in read_comparisons(file) if row.reference]
        random.Random(0).shuffle(rows)
        for name, count in (("train", train_pairs), ("test", test_pairs)):
            chosen = [row for row in rows if is_held_out(row.prompt, HELD_OUT) == (name == "test")]
            parts[name] += chosen[: count // len(files)]
    for name, rows in parts.items():
        random.Random(0).shuffle(rows)
        print(f"{name}: {write_records(output / f'{name}.jsonl', rows):,} pairs")


def run(name: str, start: list[str], output: Path) -> None:
    common = ["batch_size=32", "epochs=2", "row_tokens=8192", "log.tensorboard=false", "optim.lr=1e-4", "checkpoint_every=50"]
    files = [f"data.train=[{output / 'train.jsonl'}]", f"output={output / name}"]
    train(load_config(TrainConfig, [], [*start, *common, *files]), console=Console(stderr=True))


def line(name: str, result: EvaluationResult) -> dict[str, Any]:
    values = result.report
    by = {source: round(group["contenders"][name]["accuracy"], 3) for source, group in values["by"].items()}
    baselines = {key: round(values["contenders"][key]["accuracy"], 3) for key in ("length", "tfidf")}
    model = values["contenders"][name]
    return {"run": name, "pairs": values["n_pairs"], "accuracy": model["accuracy"], "ci95": model["ci95"], "by": by, **baselines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", type=Path, required=True, help="pre-trained reward model")
    parser.add_argument("--layers", type=int, required=True, help="its number of layers, for the run without pre-training")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train-pairs", type=int, default=2400)
    parser.add_argument("--test-pairs", type=int, default=900)
    arguments = parser.parse_args()
    build(arguments.data, arguments.output, arguments.train_pairs, arguments.test_pairs)
    limits = Encoder.from_pretrained(arguments.model).settings
    language_model = [f"model.init={LANGUAGE_MODEL}", f"model.n_layers={arguments.layers}"]
    language_model += [f"model.encoder.{key}={getattr(limits, key)}" for key in ("max_length", "max_response_length")]
    run("with", [f"model.resume_from={arguments.model}"], arguments.output)
    run("without", language_model, arguments.output)
    models = [f"{name}={arguments.output / name / 'model'}" for name in ("with", "without")]
    result = evaluate_files(models, [arguments.output / "test.jsonl"], by="source", options=ModelOptions(precision="auto"))
    rows = [line("with", result), line("without", result), {"difference": str(result.difference("with", "without"))}]
    report(rows, arguments.output / "result.jsonl")


if __name__ == "__main__":
    main()

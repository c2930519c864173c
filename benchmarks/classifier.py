"""Train a stock reward model with TRL's RewardTrainer: the contender that reads no references.

The first layers of a language model with a one-label head (``AutoModelForSequenceClassification``), trained for one epoch on the
pairs of a file of comparisons: the first candidate of the best rank against the first of the worst. `polar evaluate` takes the
folder as ``hf:FOLDER``. Answers are cut to their first ``--max-answer`` tokens, as those of the models beside it. TRL leaves out
pairs that are longer than ``--max-length`` with their prompt; evaluation cuts nothing.

    python benchmarks/classifier.py runs/calibration/train.jsonl --output runs/classifier
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from common import LANGUAGE_MODEL, origin
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from polar_rm.common.files import write_json
from polar_rm.model.language_models import unpack_gguf
from polar_rm.records import read_comparisons


def conversations(file: Path, tokenizer: Any, max_answer: int | None) -> list[dict[str, Any]]:
    """TRL's conversational form of the pairs, the answers cut to their first ``max_answer`` tokens."""
    rows = []

    def cut(text: str) -> str:
        ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if max_answer is None or len(ends) <= max_answer else text[: ends[max_answer - 1][1]]

    for row in read_comparisons(file):
        prompt = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else row.prompt
        best, worst = (cut(row.candidates[row.ranks.index(rank)]) for rank in (min(row.ranks), max(row.ranks)))
        if best != worst:
            answers = ([{"role": "assistant", "content": text}] for text in (best, worst))
            rows.append({"prompt": prompt} | dict(zip(("chosen", "rejected"), answers, strict=True)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="comparisons to train on")
    parser.add_argument("--init", default=LANGUAGE_MODEL, help="a causal language model: a folder, or package:NAME")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--max-answer", type=int, help="tokens of an answer; default: all")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    folder = unpack_gguf(arguments.init, arguments.output.with_name(arguments.output.name + "-init"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, num_hidden_layers=arguments.layers, pad_token_id=tokenizer.pad_token_id, dtype="float32"
    )
    rows = conversations(arguments.pairs, tokenizer, arguments.max_answer)
    began = time.perf_counter()
    trainer = RewardTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        args=RewardConfig(
            output_dir=str(arguments.output.with_name(arguments.output.name + "-run")),
            per_device_train_batch_size=arguments.batch,
            gradient_accumulation_steps=arguments.accumulate,
            num_train_epochs=1,
            max_length=arguments.max_length,
            learning_rate=arguments.lr,
            warmup_steps=0.1,
            lr_scheduler_type="cosine",
            gradient_checkpointing=False,
            bf16=False,
            save_strategy="no",
            logging_steps=10,
            report_to="none",
        ),
    )
    trained = trainer.train()
    trainer.save_model(str(arguments.output))
    tokenizer.save_pretrained(arguments.output)
    row = {"pairs": len(rows), "pairs_used": len(trainer.train_dataset), "loss": trained.training_loss}
    write_json(arguments.output / "origin.json", row | {"seconds": time.perf_counter() - began} | origin())


if __name__ == "__main__":
    main()

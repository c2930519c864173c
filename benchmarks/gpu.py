"""Training on an accelerator: trees against padded whole sequences on a random Llama in bfloat16, and which attention is faster.

On one GPU with 80 GB: a 1B model, p = r = c = 1000, K = 2 and 8. Without a GPU a tiny model at p = r = c = 60 runs the same
code, and the result says so: its numbers are no claim about GPUs.

    python benchmarks/gpu.py --output gpu.jsonl
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import paired, report
from transformers import AutoModelForSequenceClassification, LlamaConfig

from polar_rm import attention
from polar_rm.encoding import PrefixTree
from polar_rm.losses import LossConfig, loss_sum
from polar_rm.modeling import PRESETS
from polar_rm.packing import pack
from polar_rm.training.metrics import peak_flops, training_flops

VOCABULARY = 32000


def build(preset: str, implementation: str, device: torch.device) -> Any:
    hidden, layers, heads, kv_heads, feed_forward = PRESETS[preset]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=feed_forward,
        max_position_embeddings=16384,
        num_labels=1,
        pad_token_id=0,
        attn_implementation=implementation,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16).to(device)
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def trees(n: int, k: int, length: int) -> list[PrefixTree]:
    """Random ids; lengths jittered by half. The first candidate is the best."""
    rng = random.Random(k)

    def ids(times: int = 1) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(times * rng.randint(length // 2, length * 3 // 2))]

    return [PrefixTree(ids(2) + ids(), [ids() for _ in range(k)], (0, *[1] * (k - 1))) for _ in range(n)]


def tree_step(model: Any, data: list[PrefixTree], device: torch.device) -> Callable[[], None]:
    """One row a tree."""
    rows = [pack([tree]).to(device) for tree in data]

    def run() -> None:
        for row in rows:
            positions = row.layout.position_ids().to(device)[None]
            hidden = model.model(row.ids, position_ids=positions, use_cache=False, tree=row.layout).last_hidden_state[0]
            scores = model.score(hidden[row.layout.score_positions().to(device)]).squeeze(-1).float()
            loss_sum(scores, row.ranks, LossConfig()).backward()
        model.zero_grad(set_to_none=True)
        _wait(device)

    return run


def padded_step(model: Any, data: list[PrefixTree], device: torch.device) -> Callable[[], None]:
    """All candidates of a comparison as one padded batch, as trainers without shared prefixes do it."""
    batches = []
    for tree in data:
        sequences = [torch.tensor(tree.sequence(i)) for i in range(len(tree.branches))]
        ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=0).to(device)
        batches.append((ids, (ids != 0).long(), (tree.ranks,)))

    def run() -> None:
        for ids, mask, ranks in batches:
            scores = model(ids, attention_mask=mask, use_cache=False).logits.squeeze(-1).float()
            loss_sum(scores, ranks, LossConfig()).backward()
        model.zero_grad(set_to_none=True)
        _wait(device)

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(preset: str, k: int, length: int, rounds: int, device: torch.device) -> dict[str, Any]:
    attention.register()
    data = trees(4, k, length)
    fast = attention.default_attention(device)
    ours = build(preset, fast, device)
    peer = build(preset, "sdpa", device)
    found = paired(tree_step(ours, data, device), padded_step(peer, data, device), rounds)
    kernels = paired(tree_step(ours, data, device), tree_step(build(preset, "tree_dense", device), data, device), rounds)
    flops = sum(training_flops(ours.config, pack([tree]).layout) for tree in data)
    sequences = sum(len(tree.sequence(i)) for tree in data for i in range(k))
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU: a trial of the code, no claim about GPUs",
        "preset": preset,
        "k": k,
        "length": length,
        "attention": fast,
        "ratio_padded": found["ratio"],
        "token_count_prediction": sequences / sum(tree.n_tokens for tree in data),
        "ratio_dense_attention": kernels["ratio"],
        "mfu": flops / found["ours_s"] / peak_flops(device, torch.bfloat16),
        "tokens_per_second": sum(tree.n_tokens for tree in data) / found["ours_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset, length = ("1b", 1000) if device.type == "cuda" else ("1m", 60)
    report([measure(preset, k, length, arguments.rounds, device) for k in arguments.k], arguments.output)


if __name__ == "__main__":
    main()

"""Profiles a training step: the trainer's own step on random comparisons, with one JSON row per setting.

A row holds tokens per second, model FLOPs utilisation (``metrics.training_flops`` over the data sheet's peak), the median time of
a step, the time of one step by kind of kernel under ``torch.profiler`` (products, attention, element-wise, gathers, copies,
optimiser), and how often the program waits for the device. Weights and texts are random; every word is one token.

    python benchmarks/profile_step.py --output profile.jsonl                     # on a GPU: preset 1b
    python benchmarks/profile_step.py --preset 1m --length 60 --row-tokens 512   # on a CPU: only a trial of the code
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from models import device_name, wait
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from polar_rm.common.config import load_config
from polar_rm.model.presets import PRESETS
from polar_rm.records import Comparison, write_records
from polar_rm.training.config import TrainConfig
from polar_rm.training.metrics import peak_flops
from polar_rm.training.parallel import World
from polar_rm.training.trainer import Trainer

VOCABULARY = 49_152  # as SmolLM2
SPECIALS = ("<s>", "</s>", "<pad>", "<|reward|>", "[UNUSED_TOKEN_130]")
SMOLLM2_135M = (576, 30, 9, 3, 1536)  # as in PRESETS

N_EXPENSIVE = 24  # number of kernels to report by name

# Parts of the names of kernels (or, on a CPU, operators); the first kind that matches counts.
KINDS: list[tuple[str, tuple[str, ...]]] = [
    ("attention", ("flash", "fmha", "flex_attention", "polar::", "_treeattention", "_varlenattention")),
    ("product", ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk", "::mm", "addmm", "bmm", "gemv")),
    ("optimizer", ("multi_tensor", "adam", "foreach", "lpnorm")),
    ("gather", ("index", "gather", "scatter", "embedding")),
    ("copy", ("memcpy", "memset", "copy", "catarray", "::cat", "fill", "::zero")),
]
SYNCHRONISING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def words_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one token per word: ``w7`` is token 7."""
    vocabulary = {f"w{i}": i for i in range(VOCABULARY - len(SPECIALS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **specials}))


def comparisons(n: int, k: int, length: int) -> list[Comparison]:
    """Comparisons whose texts have about ``length`` tokens each, plus or minus half."""
    rng = random.Random(k)

    def text() -> str:
        return " ".join(f"w{rng.randrange(VOCABULARY - len(SPECIALS))}" for _ in range(rng.randint(length // 2, length * 3 // 2)))

    return [Comparison(text(), text(), tuple(text() for _ in range(k)), (0, *[1] * (k - 1))) for _ in range(n)]


def build(work: Path, k: int, row_tokens: int, compiled: bool, arguments: argparse.Namespace) -> Trainer:
    settings = {
        "model.preset": arguments.preset,
        "model.tokenizer": work / "tokenizer",
        "data.train": f"[{work / f'k{k}.jsonl'}]",
        "output": work / f"run{k}",
        "batch_size": arguments.batch,
        "row_tokens": row_tokens,
        "compile": str(compiled).lower(),
        "optim.lr": 1e-6,
        "precision": arguments.precision,
        "log.tensorboard": "false",
        "device": arguments.device,
    }
    device = torch.device(arguments.device)
    with device:  # creates the random weights on the device
        trainer = Trainer(
            load_config(TrainConfig, [], [f"{key}={value}" for key, value in settings.items()]), World(0, 1, device)
        )
    torch.nn.init.normal_(trainer.model.backbone.score.weight, std=0.02)  # a zero head makes all other gradients zero
    trainer.model.train()
    return trainer


def batches(trainer: Trainer, size: int) -> Iterator[list[int]]:
    while True:
        for start in range(0, len(trainer.train_set), size):
            yield list(range(start, start + size))


def measure(trainer: Trainer, arguments: argparse.Namespace) -> dict[str, Any]:
    device = trainer.world.device
    upcoming = batches(trainer, arguments.batch)
    start = time.perf_counter()
    for _ in range(arguments.warmup):
        trainer.optimize(next(upcoming))
    wait(device)
    warmup_seconds = time.perf_counter() - start
    seconds, tokens, flops = [], 0.0, 0.0
    for _ in range(arguments.steps):
        start = time.perf_counter()
        values = trainer.optimize(next(upcoming))
        wait(device)
        seconds.append(time.perf_counter() - start)
        tokens, flops = tokens + values["tokens"], flops + values["flops"]
    row = {
        "tokens_per_second": tokens / sum(seconds),
        "mfu": flops / sum(seconds) / peak_flops(device, trainer.compute),
        "step_seconds": statistics.median(seconds),
        "step_seconds_all": seconds,
        "tokens_per_step": tokens / arguments.steps,
        "warmup_seconds": warmup_seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }
    return row | profiled(trainer, next(upcoming))


def profiled(trainer: Trainer, indices: list[int]) -> dict[str, Any]:
    """Profile one step: seconds by kind, the most expensive kernels, and waits for the device."""
    device = trainer.world.device
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])) as recorded:
        start = time.perf_counter()
        trainer.optimize(indices)
        wait(device)
        wall = time.perf_counter() - start
    device_type = DeviceType.CUDA if on_gpu else DeviceType.CPU
    by_name: Counter[str] = Counter()
    waits: Counter[str] = Counter()
    for event in recorded.key_averages():
        if event.key in SYNCHRONISING or "DtoH" in event.key:
            waits[event.key] += event.count
        if event.device_type == device_type and not event.key.startswith(("ProfilerStep", "Activity Buffer", "## Call Compiled")):
            by_name[event.key] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
    kinds: Counter[str] = Counter()
    for name, seconds in by_name.items():
        kinds[kind(name)] += seconds
    return {
        "profiled_step_seconds": wall,
        "kinds_seconds": dict(kinds.most_common()),
        "idle_seconds": wall - sum(kinds.values()),
        "waits": dict(waits),
        "most_expensive": [[name[:110], round(seconds, 5)] for name, seconds in by_name.most_common(N_EXPENSIVE)],
    }


def kind(name: str) -> str:
    lowered = name.lower()
    return next((kind for kind, parts in KINDS if any(part in lowered for part in parts)), "element-wise")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--preset", default="1b" if on_gpu else "1m", choices=[*PRESETS, "smollm2-135m"])
    parser.add_argument("--precision", default="bf16" if on_gpu else "fp32")
    parser.add_argument("--k", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--length", type=int, default=1000 if on_gpu else 60)
    parser.add_argument("--row-tokens", type=int, nargs="+", default=[8192, 16384] if on_gpu else [512])
    parser.add_argument("--compile", type=int, nargs="+", default=[0, 1], choices=[0, 1])
    parser.add_argument("--batch", type=int, default=8, help="comparisons per step")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--label", default="", help="copied into every row")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    PRESETS["smollm2-135m"] = SMOLLM2_135M
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        words_tokenizer(work / "tokenizer")
        for k in arguments.k:
            write_records(work / f"k{k}.jsonl", comparisons(3 * arguments.batch, k, arguments.length))
        for k in arguments.k:
            for row_tokens in arguments.row_tokens:
                for compiled in map(bool, arguments.compile):
                    setting = {"label": arguments.label, "preset": arguments.preset, "k": k, "row_tokens": row_tokens}
                    setting |= {"compile": compiled, "device": device_name(torch.device(arguments.device))}
                    trainer = build(work, k, row_tokens, compiled, arguments)
                    row = setting | measure(trainer, arguments)
                    del trainer
                    gc.collect()
                    if on_gpu:
                        torch.cuda.empty_cache()
                        torch.cuda.reset_peak_memory_stats()
                    print("  ".join(f"{key} {value}" for key, value in row.items() if key != "most_expensive"), flush=True)
                    if arguments.output:
                        with arguments.output.open("a") as file:
                            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

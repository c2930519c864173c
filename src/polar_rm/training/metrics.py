"""Logging of metrics, once a step, to ``metrics.jsonl``, TensorBoard and trackers; FLOPs and memory of a run."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PretrainedConfig

from polar_rm.attention.layout import TreeLayout
from polar_rm.common.extras import needs
from polar_rm.common.files import full_disk_named, sync, write_file
from polar_rm.common.json import dump_json
from polar_rm.training.config import LoraConfig, TrainConfig
from polar_rm.training.trackers import open_trackers

# Dense bf16 and fp16 peaks of common accelerators in FLOP/s (vendors' data sheets, without sparsity). The first matching name is
# used, so longer names come first.
_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "4090": 165e12,
}


class Sink(Protocol):
    """A destination of the metrics of each step."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the metrics of a step."""

    def sync(self) -> None:
        """Flush everything logged so far to the disk, before a checkpoint of this step is written."""

    def close(self) -> None:
        """Finish logging at the end of the run."""


class JsonlSink:
    """``metrics.jsonl``: one JSON object a step.

    On resume the lines of steps that will run again are dropped, and damage from a crash is repaired as far as possible.
    last: the line of ``first_step`` from its checkpoint. report: called with a message about damaged and missing lines.
    """

    def __init__(
        self,
        path: Path,
        first_step: int,
        last: Mapping[str, Any] | None = None,
        report: Callable[[str], None] = lambda message: None,
    ) -> None:
        if path.exists() or first_step:
            lines, damaged = _read_steps(path, first_step)
            if first_step and first_step not in lines and last:
                lines[first_step] = dump_json(dict(last))
            missing = [step for step in range(1, first_step + 1) if step not in lines]
            if damaged or missing:
                report(
                    f"{path}: damaged lines: {_listed(damaged)}; steps without a line: {_listed(missing)}; the file was repaired"
                )
            write_file(path, "".join(f"{lines[step]}\n" for step in sorted(lines)))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._append("")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one line."""
        self._append(dump_json({"step": step, **values}) + "\n")

    def _append(self, text: str) -> None:
        # The file is opened anew for every line: after an error a file that stays open would write its buffer once more.
        with full_disk_named(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def sync(self) -> None:
        """Flush the lines to the disk."""
        with full_disk_named(self._path):
            sync(self._path)

    def close(self) -> None:
        """Do nothing: every line is in the file."""


def _read_steps(path: Path, first_step: int) -> tuple[dict[int, str], list[int]]:
    """The lines of the steps up to ``first_step``, by step, and the numbers of damaged lines.

    An unfinished last line is not damage: a kill leaves it, and its step runs again.
    """
    by_step: dict[int, str] = {}
    damaged = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines[:-1], 1):
        try:
            values = json.loads(line)
            step = values["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged.append(number)
            continue
        if not isinstance(step, int) or step < 1:
            damaged.append(number)
        elif step <= first_step:
            by_step[step] = line.decode()
    return by_step, damaged


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return f"{shown} and {len(numbers) - 10} more" if len(numbers) > 10 else shown or "none"


class TensorBoardSink:
    """TensorBoard event files in the run folder; a resumed run purges the steps that it repeats."""

    def __init__(self, folder: Path, first_step: int) -> None:
        with needs("train", "log.tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write each value as a scalar."""
        with full_disk_named(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        """Flush the events to the file."""
        with full_disk_named(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Write the remaining events and close the file."""
        with full_disk_named(self._folder):
            self._writer.close()


def open_sinks(
    config: TrainConfig,
    first_step: int,
    last: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> list[Sink]:
    """Open all sinks that the config asks for.

    first_step: the last step that an earlier run has finished. last, report: see :class:`JsonlSink`.
    """
    sinks: list[Sink] = [JsonlSink(config.output / "metrics.jsonl", first_step, last, report)]
    if config.log.tensorboard:
        sinks.append(TensorBoardSink(config.output / "tensorboard", first_step))
    return [*sinks, *open_trackers(config)]


def training_flops(config: PretrainedConfig, layout: TreeLayout, lora: LoraConfig | None = None) -> float:
    """Model FLOPs of one forward and backward: 6 per weight and token, plus 12 per attended pair, head dimension and layer.

    Only the work that the tree needs is counted: no recomputation, no padding, shared prefixes once, and in the last layer
    everything but keys and values only at score positions. The embedding is a look-up. With ``lora`` frozen weights count 4,
    because they get no gradient.
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    hidden, feed_forward = config.hidden_size, config.intermediate_size
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads  # families without grouped queries
    queries, keys = head_dim * n_heads, head_dim * n_kv_heads  # widths of the projections
    n_full_layers = config.num_hidden_layers - 1  # all but the last
    rank = lora.rank if lora else 0

    def per_token(weights: int, adapters: int) -> int:
        return (4 if lora else 6) * weights + 6 * rank * adapters

    keys_and_values = per_token(2 * hidden * keys, 2 * (hidden + keys))
    rest = per_token(2 * hidden * queries + 3 * hidden * feed_forward, 2 * (hidden + queries) + 3 * (hidden + feed_forward))
    candidates = sum(len(span.branches) for span in layout.spans)
    flops = keys_and_values * (n_full_layers + 1) * layout.n_tokens + rest * (n_full_layers * layout.n_tokens + candidates)
    if lora:  # nothing before the first layer is trained, so its projections need no gradient of their input
        n_queries = layout.n_tokens if n_full_layers else candidates
        flops -= 2 * hidden * (2 * (keys + rank) * layout.n_tokens + (queries + rank) * n_queries)
    pairs = layout.attention_pairs * n_full_layers + layout.score_pairs
    return float(flops + 12 * pairs * queries)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak FLOP/s of a device: by the data sheet of a known accelerator in half precision, else by a measured matrix product."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        if known := next((peak for key, peak in _PEAKS.items() if key in name), None):
            return known
    size = 4096 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    best, until = float("inf"), time.perf_counter() + 1
    while (start := time.perf_counter()) < until:  # a second of repetitions, because on a busy machine few run undisturbed
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> float:
    """Peak memory so far in GiB: allocated on the accelerator, or resident in the process; NaN where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":  # what the driver holds, which hardly ever shrinks: torch keeps no peak there
        return torch.mps.driver_allocated_memory() / 2**30
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts bytes, Linux KiB

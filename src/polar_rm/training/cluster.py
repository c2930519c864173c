"""The plan of a run on several GPUs: memory of a rank by kind, time, network and disk, from the rates in ``rates.yaml``.

Nothing is measured here. Which rates were measured, which stand in a data sheet and which are assumed is said beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from transformers import PretrainedConfig

from polar_rm.attention.layout import TreeLayout, TreeSpan
from polar_rm.common.yaml import parse_yaml
from polar_rm.errors import ConfigError
from polar_rm.model.packing import first_fit
from polar_rm.training.config import TrainConfig
from polar_rm.training.metrics import training_flops

_GIB = 2**30
_ID_BYTES = 4  # of an encoded token


@cache
def rates() -> dict[str, Any]:
    """The content of ``rates.yaml``."""
    values: dict[str, Any] = parse_yaml((files("polar_rm.training") / "rates.yaml").read_text(encoding="utf-8"))
    return values


@dataclass(frozen=True, slots=True)
class Work:
    """What a run computes.

    parameters, trained: as in :class:`~polar_rm.training.plan.Plan`. tree: the mean comparison. lengths: tokens of the trees of a
    typical step. tokens: that are encoded, with shared prefixes counted once.
    """

    parameters: int
    trained: int
    tree: TreeSpan
    lengths: Sequence[int]
    steps: int
    tokens: float


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """The plan of a run on ``gpus`` GPUs. Sizes are in bytes, times in seconds.

    memory: of a rank, by kind. rows: of a step. busy: share of its time in which a rank has a row. compute, network: of a
    step; they overlap, so that a step takes the longer one. checkpoint, encoded: sizes on the disk.
    """

    device: str
    gpus: int
    shard_ranks: int
    memory: dict[str, float]
    memory_limit: float
    rows: int
    busy: float
    utilisation: float
    tokens_per_step: float
    compute: float
    network: float
    steps: int
    checkpoint: float
    checkpoints: int
    encoded: float
    encode_core_hours: float
    notes: tuple[str, ...]

    @property
    def step_seconds(self) -> float:
        """Time of a step."""
        return max(self.compute, self.network)

    @property
    def hours(self) -> float:
        """Time of all steps, without evaluations and checkpoints."""
        return self.steps * self.step_seconds / 3600

    def describe(self) -> Iterator[tuple[str, str]]:
        """The lines (name, value) of the plan for a user."""
        copies = self.gpus // self.shard_ranks
        copy = "one copy of the weights" if copies == 1 else f"{copies} copies of the weights, each"
        yield "cluster", f"{self.gpus} x {self.device}, {copy} shared by {self.shard_ranks} ranks"
        kinds = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in self.memory.items())
        total = sum(self.memory.values()) / _GIB
        yield "memory a GPU", f"{total:.1f} of {self.memory_limit / _GIB:.1f} GiB: {kinds}"
        speed = self.tokens_per_step / self.step_seconds
        yield "speed", f"{speed:,.0f} tokens/s, {speed / self.gpus:,.0f} a GPU ({self.utilisation:.2f} of its peak)"
        yield (
            "step",
            f"{self.step_seconds:.3g} s for {self.rows:,} rows: computing {self.compute:.3g}, network {self.network:.3g}",
        )
        yield "time", f"{self.hours:,.3g} hours, {self.hours * self.gpus:,.3g} GPU hours, besides evaluations and checkpoints"
        kept = self.checkpoint * self.checkpoints
        yield "disk", f"{self.encoded / 1e9:,.3g} GB of encoded data, {kept / 1e9:,.3g} GB for {self.checkpoints} checkpoints"
        yield "encoding", f"{self.encode_core_hours:,.3g} hours of one core"
        for note in self.notes:
            yield "note", note


def mean_tree(comparisons: int, candidates: int, tokens: int, separate_tokens: int) -> TreeSpan:
    """The tree of mean size; its prefix follows from how many tokens sharing saves."""
    k = max(1, round(candidates / comparisons))
    saved = (separate_tokens - tokens) / comparisons
    prefix = max(1, round(saved / (k - 1))) if k > 1 else 1
    branch = max(1, round((tokens / comparisons - prefix) / k))
    return TreeSpan(0, prefix, (branch,) * k)


def check_cluster(config: TrainConfig, gpus: int, device: str) -> None:
    """Check what the user asks about, before data are encoded.

    Raises:
        ConfigError: the device is unknown, there is no GPU, or ``shard_ranks`` does not divide their number.
    """
    known = rates()["devices"]
    if device not in known:
        raise ConfigError(f"--device: no rates for {device!r}; known: {', '.join(known)}")
    if gpus < 1:
        raise ConfigError(f"--gpus: at least 1, not {gpus}")
    if gpus % (config.shard_ranks or gpus):
        raise ConfigError(f"shard_ranks: {config.shard_ranks} does not divide {gpus} GPUs")


def plan_cluster(config: TrainConfig, backbone: PretrainedConfig, work: Work, *, gpus: int, device: str) -> ClusterPlan:
    """Plan a run.

    backbone: the model's config. device: a name of ``rates.yaml``.

    Raises:
        ConfigError: see :func:`check_cluster`.
    """
    check_cluster(config, gpus, device)
    table, shard_ranks = rates(), config.shard_ranks or gpus
    rate = table["devices"][device]
    rows = len(first_fit(work.lengths, config.row_tokens))
    micro_steps = math.ceil(rows / gpus)
    tokens = float(sum(work.lengths))
    layout = TreeLayout((work.tree,))
    flops = training_flops(backbone, layout, config.lora) / layout.n_tokens * tokens
    share = _utilisation(work.parameters, config.compile) * (0.75 if config.activation_checkpointing is True else 1)
    busy = rows / (micro_steps * gpus)
    memory = _memory(config, backbone, work, gpus, shard_ranks)
    plan = ClusterPlan(
        device=device,
        gpus=gpus,
        shard_ranks=shard_ranks,
        memory=memory,
        memory_limit=rate["memory_gib"] * _GIB,
        rows=rows,
        busy=busy,
        utilisation=share * busy,
        tokens_per_step=tokens,
        compute=flops / (rate["flops"] * share * busy * gpus),
        network=_network(work, rate, gpus, shard_ranks, micro_steps),
        steps=work.steps,
        checkpoint=12.0 * work.trained,  # weights and two moments in float32
        checkpoints=config.keep_checkpoints,
        encoded=work.tokens * _ID_BYTES,
        encode_core_hours=work.tokens / table["encode_tokens_per_core"] / 3600,
        notes=(),
    )
    return replace(plan, notes=tuple(_notes(plan, work, table)))


def _utilisation(parameters: int, compiled: bool) -> float:
    points = [(math.log(each["parameters"]), each["compiled" if compiled else "plain"]) for each in rates()["utilisation"]]
    x = min(max(math.log(parameters), points[0][0]), points[-1][0])
    (x0, y0), (x1, y1) = next((a, b) for a, b in pairwise(points) if x <= b[0])
    return float(y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def _memory(config: TrainConfig, backbone: PretrainedConfig, work: Work, gpus: int, shard_ranks: int) -> dict[str, float]:
    """Bytes of a rank by kind, computing in bfloat16."""
    hidden, layers = backbone.hidden_size, backbone.num_hidden_layers
    head_dim = getattr(backbone, "head_dim", None) or hidden // backbone.num_attention_heads
    keys = head_dim * (getattr(backbone, "num_key_value_heads", None) or backbone.num_attention_heads)
    elements = 4 * hidden + head_dim * backbone.num_attention_heads + 2 * keys + 3 * backbone.intermediate_size
    per_layer = rates()["bytes_per_element"]["compiled" if config.compile else "plain"] * elements
    recomputed = layers if config.activation_checkpointing is True else int(config.activation_checkpointing)
    recomputed = min(recomputed, layers)
    tokens = max(min(config.row_tokens, sum(work.lengths)), _shortest_part(work, config.row_tokens))
    # Of a layer that is recomputed its input is kept in bfloat16; one such layer at a time is whole.
    activations = (layers - recomputed + bool(recomputed)) * per_layer + recomputed * 2 * hidden
    frozen = work.parameters if config.lora else 0
    if gpus == 1:
        gathered = 2.0 * (frozen or work.parameters)  # the copy that computes
    else:
        embedding = backbone.vocab_size * hidden
        gathered = 2.0 * (embedding + 2 * (work.parameters - embedding) / layers)  # this layer and the next
    return {
        "weights": (4.0 * work.trained + (0 if gpus == 1 else 4.0 * frozen)) / shard_ranks,
        "gradients": 4.0 * work.trained / shard_ranks,
        "moments": 8.0 * work.trained / shard_ranks,
        "gathered": gathered,
        "activations": float(activations * tokens),
        "other": rates()["overhead_gib"] * _GIB,
    }


def _shortest_part(work: Work, row_tokens: int) -> int:
    """The tokens of a comparison's prefix with one candidate, below which no row can be split; 0 if all fit into rows."""
    return work.tree.prefix + max(work.tree.branches) if max(work.lengths) > row_tokens else 0


def _network(work: Work, rate: dict[str, float], gpus: int, shard_ranks: int, micro_steps: int) -> float:
    """Seconds that a rank sends in a step: weights in bfloat16 twice a row, gradients in float32 once."""
    if gpus == 1:
        return 0.0
    within = rate["in_node_gb_s"] if shard_ranks <= rate["gpus_per_node"] else rate["between_nodes_gb_s"]
    sharded = (2 * 2 * work.parameters + 4 * work.trained) * (shard_ranks - 1) / shard_ranks
    copies = gpus // shard_ranks
    across = rate["in_node_gb_s"] if gpus <= rate["gpus_per_node"] else rate["between_nodes_gb_s"]
    between = 2 * 4 * work.trained / shard_ranks * (copies - 1) / copies
    return micro_steps * (sharded / within + between / across) / 1e9


def _notes(plan: ClusterPlan, work: Work, table: dict[str, Any]) -> Iterator[str]:
    used = sum(plan.memory.values())
    if used > plan.memory_limit:
        yield (
            f"a rank needs {used / _GIB:.1f} GiB and has {plan.memory_limit / _GIB:.1f}: use activation_checkpointing, smaller "
            "row_tokens, or more ranks in a copy"
        )
    if plan.busy < 0.9:
        yield (
            f"a step has {plan.rows:,} rows for {plan.gpus} GPUs, so they wait for {1 - plan.busy:.0%} of the time: take a "
            "larger batch, fewer GPUs or smaller row_tokens"
        )
    if plan.network > plan.compute:
        yield "the network bounds a step: take longer rows, or shard_ranks within a node"
    known = [each["parameters"] for each in table["utilisation"]]
    if not min(known) <= work.parameters <= max(known):
        yield (
            f"utilisation was measured from {min(known) / 1e6:,.0f}M to {max(known) / 1e6:,.0f}M parameters only; that of the "
            "nearest size is taken"
        )
    if plan.gpus > 1:
        yield "no run of several GPUs was measured: the network's rates stand in data sheets or are assumed (rates.yaml)"

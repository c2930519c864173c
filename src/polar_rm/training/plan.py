"""The plan of a run: steps, batch, learning rate and cost, computed before the weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from polar_rm.common.memory import check_memory, gib
from polar_rm.encoded.corpus import EncodedCorpus
from polar_rm.encoded.order import steps_per_epoch
from polar_rm.errors import ConfigError
from polar_rm.model.devices import compute_dtype, memory_of
from polar_rm.training.cluster import ClusterPlan
from polar_rm.training.config import TrainConfig
from polar_rm.training.schedule import paper_batch_size, paper_learning_rate

_STATE = "weights, gradients and optimiser"


@dataclass(frozen=True)
class Plan:
    """The plan of a run, which ``--dry-run`` prints.

    tokens: computed tokens, with shared prefixes counted once; separate_tokens: without sharing. longest: tokens of the longest
    tree. larger_than_row: comparisons that are longer than ``row_tokens``. parameters: of the backbone. trained: parameters that
    are trained: the backbone or LoRA's adapters, and the head. state_bytes: weights, gradients and optimiser state in one
    process. cluster: the plan for the GPUs that the user asks about. output: what the run finds in its output folder; None where
    nobody has looked.
    """

    comparisons: int
    pairs: int
    tokens: int
    separate_tokens: int
    truncated: int
    longest: int
    larger_than_row: int
    batch_size: int
    epochs: float
    steps: int
    peak_lr: float
    parameters: int
    trained: int
    state_bytes: int
    flops: float
    notes: tuple[str, ...]
    cluster: ClusterPlan | None = None
    output: str | None = None

    def describe(self) -> Iterator[tuple[str, str]]:
        """The lines (name, value) of the plan for a user."""
        yield "parameters", f"{self.parameters / 1e6:.1f}M in the backbone, {self.trained / 1e6:.1f}M trained"
        yield "data", f"{self.comparisons:,} comparisons, {self.pairs:,} pairs, longest {self.longest:,} tokens"
        saving = self.separate_tokens / self.tokens
        yield "tokens", f"{self.tokens:,} an epoch (as separate sequences {self.separate_tokens:,}, {saving:.2f}x)"
        yield "steps", f"{self.steps:,} of {self.batch_size:,} comparisons, peak learning rate {self.peak_lr:.3g}"
        # Activations are not included, because they depend on row_tokens.
        yield "memory", f"{self.state_bytes / 2**30:.1f} GiB for weights, gradients and optimiser, besides activations"
        yield "compute", f"about {self.flops:.2g} FLOPs"
        for note in self.notes:
            yield "note", note
        if self.cluster:
            yield from self.cluster.describe()
        if self.output:
            yield "output", self.output


def make_plan(
    config: TrainConfig, backbone: PreTrainedModel, corpus: EncodedCorpus, device: str, untrained: Sequence[str] = ()
) -> Plan:
    """Compute steps, batch size and learning rate, by the paper's rules where the config asks for them.

    backbone: only names and shapes are read, so it may be on the meta device. device: ``cpu`` or ``cuda``. untrained: role tokens
    whose embeddings were never trained.

    Raises:
        ConfigError: the config asks for the paper's learning rate, but does not say the base model's tokens.
    """
    stats = corpus.stats
    parameters, trained, frozen = _sizes(config, backbone)
    compute = compute_dtype(config.precision, device)
    # A trained parameter has weight, gradient and two moments in float32, and a copy in the compute type if that is another.
    state_bytes = (16 if compute == torch.float32 else 16 + compute.itemsize) * trained + compute.itemsize * frozen
    # The paper counts separate sequences, without shared prefixes.
    if config.batch_size == "paper":
        batch_size = min(paper_batch_size(parameters, stats.separate_tokens * config.epochs), stats.comparisons)
    else:
        batch_size = config.batch_size
    per_epoch = steps_per_epoch(stats.comparisons, batch_size)
    steps = min(per_epoch * config.epochs, config.max_steps or per_epoch * config.epochs)
    full, part = divmod(steps, per_epoch)  # an epoch's last batch may be smaller
    epochs = full + part * batch_size / stats.comparisons
    lr = config.optim.lr
    if lr == "paper":
        if config.optim.base_tokens is None:
            raise ConfigError("optim.lr=paper needs optim.base_tokens, the tokens that the base language model was trained on")
        lr = paper_learning_rate(parameters, config.optim.base_tokens, stats.separate_tokens * epochs)
    return Plan(
        comparisons=stats.comparisons,
        pairs=stats.pairs,
        tokens=stats.tokens,
        separate_tokens=stats.separate_tokens,
        truncated=stats.truncated,
        longest=stats.longest,
        larger_than_row=corpus.n_longer(config.row_tokens),
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
        peak_lr=lr,
        parameters=parameters,
        trained=trained,
        state_bytes=state_bytes,
        flops=(6 * trained + 4 * frozen) * stats.tokens * epochs,
        notes=(
            *_notes(config, backbone, corpus, parameters),
            *_notes_on_memory(state_bytes, device),
            *_notes_on_tokens(config, untrained),
        ),
    )


def check_room(plan: Plan, device: str, *, n_ranks: int = 1, n_here: int = 1) -> None:
    """Whether what a run holds can be in memory at all; activations come on top.

    device: of a rank. n_ranks: that share the state. n_here: how many of them this machine runs.

    Raises:
        PolarError: it is more than the GPU, or on CPUs this machine, has; the message has both numbers.
    """
    sharing = n_here if device.startswith("cpu") else 1
    check_memory(plan.state_bytes * sharing // n_ranks, _STATE, *memory_of(device))


def _notes_on_memory(state_bytes: int, device: str) -> Iterator[str]:
    available, where = memory_of(device)
    if available is not None and state_bytes > available:
        yield f"{_STATE} need {gib(state_bytes)} of memory, {where} has {gib(available)}: share them among several, or use lora"


def _notes_on_tokens(config: TrainConfig, untrained: Sequence[str]) -> Iterator[str]:
    if not untrained:
        return
    tokens = " and ".join(untrained)
    drawn = f"the embeddings of {tokens} were never trained; they are drawn around the mean of the known ones"
    if config.lora:
        yield f"{drawn}, and lora leaves them so; pre-train without lora first, or start from a saved reward model"
    else:
        yield f"{drawn}, and trained from there"


def _sizes(config: TrainConfig, backbone: PreTrainedModel) -> tuple[int, int, int]:
    """Numbers of parameters: of the backbone without its head; trained (with the head, or adapters and head); frozen."""
    parameters = sum(p.numel() for p in backbone.base_model.parameters())
    head = backbone.score.weight.numel()
    if not config.lora:
        return parameters, parameters + head, 0
    linear = [module for module in backbone.base_model.modules() if isinstance(module, torch.nn.Linear)]
    adapters = config.lora.rank * sum(module.in_features + module.out_features for module in linear)
    return parameters, adapters + head, parameters


def _notes(config: TrainConfig, backbone: PreTrainedModel, corpus: EncodedCorpus, parameters: int) -> Iterator[str]:
    stats = corpus.stats
    if "paper" in (config.batch_size, config.optim.lr) and not 100e6 <= parameters <= 7.5e9:
        yield f"the paper's rules were fitted from 100M to 7B parameters; for {parameters / 1e6:.0f}M they are extrapolation"
    if larger := corpus.n_longer(config.row_tokens):
        yield (
            f"{larger} comparisons are longer than row_tokens (longest: {stats.longest} tokens); their candidates are "
            "computed in several rows, which takes longer"
        )
    positions = getattr(backbone.config, "max_position_embeddings", None)
    if positions and stats.longest_sequence > positions:
        yield (
            f"the longest sequence has {stats.longest_sequence:,} tokens, more than the backbone has positions "
            f"(max_position_embeddings: {positions:,})"
        )
    if stats.truncated:
        yield f"{stats.truncated} of {stats.comparisons} comparisons are truncated to the encoder's limits"

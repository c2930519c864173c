"""The grid: sizes with their parameters and compute, and the runs with their steps, tokens and learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from polar_rm.attention.layout import TreeLayout, TreeSpan
from polar_rm.encoded.corpus import EncodedCorpus
from polar_rm.encoded.order import steps_per_epoch
from polar_rm.scaling.config import ScalingConfig
from polar_rm.scaling.learning_rate import Picked, base_rate, rates_to_try
from polar_rm.scaling.settings import size_name, training_config
from polar_rm.training.metrics import training_flops
from polar_rm.training.prepare import read_blueprint

# Comparisons of the whole corpus that tell the compute of a mean token.
_SAMPLED = 2048

Learning = tuple[str, str]
"""What has a learning rate of its own: the names of a size and of the budget that it is tuned for."""


@dataclass(frozen=True, slots=True)
class Size:
    """A size. parameters: of the backbone. non_embedding: without its embedding. flops_per_token: of the training, as the trainer
    counts them, for a mean token of the corpus."""

    name: str
    parameters: int
    non_embedding: int
    flops_per_token: float


@dataclass(frozen=True, slots=True)
class CorpusSize:
    """The training split. tokens: of one epoch, as the trainer computes them, with shared prefixes counted once."""

    comparisons: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the grid.

    number: from 0, in an order that does not depend on what has finished. purpose: ``tune`` compares learning rates, ``grid`` is
    a point of the law. budget: its label. tokens, epochs: as planned. lr: None until it is known. learning: whose learning rate.
    """

    number: int
    purpose: Literal["tune", "grid"]
    size: Size
    budget: str
    seed: int
    steps: int
    epochs: float
    tokens: float
    lr: float | None
    learning: Learning

    @property
    def name(self) -> str:
        """The name of the run's folder. Runs of equal settings have one name, whatever they are for."""
        return f"{self.size.name}-{self.budget}-lr{'?' if self.lr is None else f'{self.lr:.4g}'}-seed{self.seed}"

    @property
    def flops(self) -> float:
        """Compute of the training as planned."""
        return self.size.flops_per_token * self.tokens


def measure_sizes(config: ScalingConfig, corpus: EncodedCorpus) -> list[Size]:
    """The sizes, with their parameters and compute. No weights are loaded.

    Raises:
        PolarError: an unknown preset, or a model that can't be used.
    """
    trees = [corpus[index] for index in range(0, len(corpus), max(1, len(corpus) // _SAMPLED))]
    spans, start = [], 0
    for tree in trees:
        spans.append(TreeSpan(start, len(tree.prefix), tuple(map(len, tree.branches))))
        start += spans[-1].n_tokens
    layout = TreeLayout(tuple(spans))
    sizes = []
    for size in config.sizes:
        settings = training_config(config, size, output=config.output / "runs")
        backbone = read_blueprint(settings).on_meta
        parameters = sum(parameter.numel() for parameter in backbone.base_model.parameters())
        flops = training_flops(backbone.config, layout, settings.lora) / layout.n_tokens
        embedding = backbone.get_input_embeddings().weight.numel()
        sizes.append(Size(size_name(size), parameters, parameters - embedding, flops))
    return sizes


def make_grid(
    config: ScalingConfig, sizes: Sequence[Size], corpus: CorpusSize, picked: Mapping[Learning, Picked | None]
) -> list[Run]:
    """All runs in their order: those that tune learning rates, then the grid, small ones first.

    picked: the learning rates that are known so far.
    """
    rates, values, batch_size = config.learning_rates, config.budgets.values, config.batch_size
    runs: list[Run] = []

    def add(purpose: Literal["tune", "grid"], size: Size, value: float, seed: int, lr: float | None) -> None:
        steps, epochs = steps_of(config.budgets.of(value, size.non_embedding), corpus, batch_size)
        learning = learning_of(config, size, value)
        tokens = corpus.tokens * epochs
        label = config.budgets.label(value)
        runs.append(Run(len(runs), purpose, size, label, seed, steps, epochs, tokens, lr, learning))

    for size in sizes:
        tuned = {"smallest": values[:1], "each": values, "off": []}[rates.tune]
        base = base_rate(rates, size.non_embedding, sizes[0].non_embedding)
        for value in tuned:
            for lr in rates_to_try(rates, base):
                add("tune", size, value, config.seeds[0], lr)
    for seed in config.seeds:
        for value in values:
            for size in sizes:
                found = picked.get(learning_of(config, size, value))
                add("grid", size, value, seed, found.lr if found else None)
    return runs


def learning_of(config: ScalingConfig, size: Size, value: float) -> Learning:
    """Which learning rate a budget of a size has."""
    each = config.learning_rates.tune == "each"
    return size.name, config.budgets.label(value if each else config.budgets.values[0])


def steps_of(tokens: float, corpus: CorpusSize, batch_size: int) -> tuple[int, float]:
    """Steps and epochs of the run whose tokens are nearest to ``tokens``; at least one step."""
    per_epoch = steps_per_epoch(corpus.comparisons, batch_size)
    full, rest = divmod(tokens / corpus.tokens, 1.0)
    part = round(rest * corpus.comparisons / batch_size)
    steps = max(1, int(full) * per_epoch + min(part, per_epoch))
    full, part = divmod(steps, per_epoch)  # an epoch's last batch may be smaller
    return steps, full + min(1.0, part * batch_size / corpus.comparisons)

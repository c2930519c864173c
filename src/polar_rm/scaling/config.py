"""The settings of ``polar scaling``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from polar_rm.common.config import Config, Seed
from polar_rm.common.limits import MAX_RESAMPLES
from polar_rm.training.config import SizeName, TrainConfig

# The keys of a training config that the grid sets: at the top level, and in groups.
_BY_GRID = ("output", "seed", "epochs", "max_steps", "eval_every")
_BY_GRID_IN = {"data": ("train", "eval", "cache"), "model": ("preset", "n_layers", "resume_from"), "optim": ("lr",)}

Law = Literal["parameters", "compute", "joint", "joint_power"]
"""parameters: L = beta N^-a. compute: L = beta C^-b. joint: L = E + A N^-alpha + B D^-beta. joint_power: L = K N^-a D^-b."""

_Positive = Annotated[float, Field(gt=0)]


class Budgets(Config):
    """Lengths of the runs, in one of two units. Tokens are those that the trainer computes: shared prefixes count once."""

    tokens: list[_Positive] = Field(default_factory=list, description="Tokens of a run.")
    per_parameter: list[_Positive] = Field(
        default_factory=list, description="Tokens of a run as multiples of its parameters without the embedding."
    )

    @model_validator(mode="after")
    def _one_unit(self) -> Budgets:
        if bool(self.tokens) == bool(self.per_parameter):
            raise ValueError("give exactly one of tokens and per_parameter")
        return self

    @property
    def values(self) -> list[float]:
        """The budgets in their unit, the smallest first."""
        return sorted(self.tokens or self.per_parameter)

    def of(self, value: float, parameters: int) -> float:
        """The tokens of a budget. parameters: of the model, without the embedding."""
        return value if self.tokens else value * parameters

    def label(self, value: float) -> str:
        """A budget's name in names of runs and in tables: ``2e6`` or ``20x``."""
        return f"{value:.4g}".replace("e+0", "e").replace("e+", "e") + ("" if self.tokens else "x")


class LearningRates(Config):
    """Peak learning rates: a base that follows the size, and values around it that are tried.

    The lowest point of a parabola of the loss in the logarithm of the rate is taken. Where it lies outside of the values that
    were tried, the best of them is.
    """

    base: PositiveFloat = Field(description="Learning rate of the first size of `sizes`.")
    exponent: float = Field(
        -0.25, ge=-2, le=2, description="The base of another size is `base` times the ratio of parameters to this power."
    )
    factors: list[_Positive] = Field(
        [0.5, 1.0, 2.0], min_length=3, description="What the base is multiplied by, in the runs that are compared."
    )
    tune: Literal["smallest", "each", "off"] = Field(
        "smallest",
        description="`smallest` compares learning rates in runs of the smallest budget, with the first seed, and takes the "
        "result for all budgets of a size; `each` compares them for every budget; `off` takes the base.",
    )

    @model_validator(mode="after")
    def _different(self) -> LearningRates:
        if len(set(self.factors)) < len(self.factors):
            raise ValueError("factors: two of them are equal")
        return self


class Prediction(Config):
    """What a law is asked for: each law takes the numbers that it is a function of."""

    parameters: PositiveFloat | None = Field(None, description="Number of parameters, as `fit.parameters` counts them.")
    tokens: PositiveFloat | None = Field(None, description="Number of tokens.")
    flops: PositiveFloat | None = Field(None, description="Compute of the training in FLOPs.")

    @model_validator(mode="after")
    def _something(self) -> Prediction:
        if self.parameters is None and self.flops is None:
            raise ValueError("give parameters (with tokens, for the joint laws) or flops")
        return self


class FitConfig(Config):
    """How laws are fitted."""

    laws: list[Law] = Field(
        ["parameters", "compute", "joint", "joint_power"],
        min_length=1,
        description="The laws: `parameters` L = beta N^-a, `compute` L = beta C^-b, `joint` L = E + A N^-alpha + B D^-beta, "
        "`joint_power` L = K N^-a D^-b.",
    )
    points: Literal["frontier", "all"] = Field(
        "frontier",
        description="`frontier`: `parameters` is fitted to the longest runs of each size, `compute` to the runs that no run with "
        "as little compute is better than. `all`: to all runs. The joint laws always take all.",
    )
    parameters: Literal["non_embedding", "total"] = Field(
        "non_embedding", description="The parameters that N counts: without the embedding, or all of the backbone."
    )
    huber: PositiveFloat = Field(
        1e-3,
        description="Residuals of the logarithm of the loss beyond this count linearly in the fit of `joint` (Hoffmann et al. "
        "2022, appendix D.3).",
    )
    resamples: int = Field(400, ge=20, le=MAX_RESAMPLES, description="Samples of the evaluation prompts for intervals.")
    predict: list[Prediction] = Field(default_factory=list, description="Points to extrapolate to, with their bands.")
    plateau: float = Field(
        0.01, ge=0, description="A run whose loss is above ln 2 minus this is warned about: it has not begun to learn."
    )

    @model_validator(mode="after")
    def _each_once(self) -> FitConfig:
        if len(set(self.laws)) < len(self.laws):
            raise ValueError("laws: one is named twice")
        return self


class ScalingConfig(Config):
    """The grid of a scaling law."""

    output: Path = Field(
        description="Folder of the grid: `runs/`, the encoded `data/`, and the settings for `polar scaling fit`. Several "
        "processes and machines that share it can work on it."
    )
    corpus: Path = Field(description="Folder with the splits, such as the output of `polar corpus`.")
    train_split: str = Field("train", min_length=1, description="Name of the split to train on: a subfolder or a file.")
    eval_splits: list[str] = Field(
        ["unseen_prompts", "unseen_policies"], min_length=1, description="Names of the splits whose loss is measured."
    )
    eval_limit: PositiveInt | None = Field(None, description="Only the first comparisons of each split. By default all.")
    sizes: list[SizeName | PositiveInt] = Field(
        min_length=1,
        description="Sizes of the models: presets (`1m`), layers and width (`8x384`), or the number of first layers of "
        "`training.model.init` to keep.",
    )
    budgets: Budgets = Field(description="Lengths of the runs.")
    learning_rates: LearningRates = Field(description="Learning rates.")
    tune_on: str | None = Field(
        None, description="Split on which learning rates are compared. By default the first of `eval_splits`."
    )
    seeds: list[Seed] = Field([0], min_length=1, description="Seeds; every size and budget is trained with each.")
    training: dict[str, Any] = Field(
        default_factory=dict,
        description="Further settings of every run, as `polar config pretrain` explains them: `model.tokenizer`, `batch_size`, "
        "`precision`. The grid sets output, data, size, learning rate, steps and seed.",
    )
    keep: Literal["all", "model", "result"] = Field(
        "model", description="What stays of a finished run: with `model` no checkpoints, with `result` no weights either."
    )
    diverged_above: float = Field(
        0.05, ge=0, description="A run counts as diverged if its loss at the end is above ln 2 by more than this."
    )
    fit: FitConfig = Field(FitConfig(), description="Laws.")

    @model_validator(mode="after")
    def _check_lists(self) -> ScalingConfig:
        for name in ("sizes", "eval_splits", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: one is named twice")
        labels = list(map(self.budgets.label, self.budgets.values))
        if len(set(labels)) < len(labels):
            raise ValueError("budgets: two are equal to four digits")
        if self.tune_on is not None and self.tune_on not in self.eval_splits:
            raise ValueError(f"tune_on: {self.tune_on!r} is none of eval_splits ({', '.join(self.eval_splits)})")
        if len({type(size) for size in self.sizes}) > 1:
            raise ValueError("sizes: either presets and shapes, or numbers of layers")
        return self

    @model_validator(mode="after")
    def _check_training(self) -> ScalingConfig:
        for key in _BY_GRID:
            if key in self.training:
                raise ValueError(f"training.{key}: the grid sets it")
        for group, keys in _BY_GRID_IN.items():
            values = self.training.get(group, {})
            if not isinstance(values, dict):
                raise ValueError(f"training.{group}: expected keys with values")
            if wrong := [key for key in keys if key in values]:
                raise ValueError(f"training.{group}.{wrong[0]}: the grid sets it")
        if not str(self.training.get("batch_size", 1)).isdecimal():
            raise ValueError("training.batch_size: expected a number; the paper's rule is for whole epochs")
        source = "init" if isinstance(self.sizes[0], int) else "tokenizer"
        if source not in self.training.get("model", {}):
            what = "numbers of layers" if source == "init" else "presets and shapes"
            raise ValueError(f"sizes: {what} need training.model.{source}")
        return self

    @property
    def batch_size(self) -> int:
        """Comparisons of an optimiser step."""
        default = TrainConfig.model_fields["batch_size"].default
        return int(self.training.get("batch_size", default))

    @property
    def tuning_split(self) -> str:
        """The split on which learning rates are compared."""
        return self.tune_on or self.eval_splits[0]

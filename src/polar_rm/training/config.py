"""What a training run is told. Both verbs share it; only defaults differ (the authors: the stages differ in data alone)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from polar_rm.common.config import Config
from polar_rm.encoding.settings import EncoderSettings

_Beta = Annotated[float, Field(ge=0, lt=1)]


class EncoderConfig(Config):
    """Encoder settings. Lengths in tokens; those of an existing reward model change only when they are given here."""

    template: Literal["polar", "polar-chat"] = "polar"
    max_length: PositiveInt = 16384
    max_response_length: PositiveInt = 4096

    def settings(self) -> EncoderSettings:
        return EncoderSettings(**self.model_dump())


class ModelConfig(Config):
    """Where the weights come from: exactly one of ``init``, ``resume_from`` and ``preset``.

    init: folder of a causal language model whose backbone is taken. n_layers: keep only its first layers.
    resume_from: folder of a reward model saved by polar (fine-tuning starts from the pre-trained one).
    encoder: template and lengths of a new model. An existing one keeps its own where this is left out; given, the run goes on
    with these lengths (from short responses to long ones, say).
    preset: size of a randomly initialised Llama (polar_rm.model.presets.PRESETS), with the tokenizer of the folder ``tokenizer``.
    gguf_file: name of a GGUF inside the ``init`` (or ``tokenizer``) folder.
    """

    init: Path | None = None
    resume_from: Path | None = None
    preset: str | None = None
    tokenizer: Path | None = None
    n_layers: PositiveInt | None = None
    gguf_file: str | None = None
    encoder: EncoderConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if sum(source is not None for source in (self.init, self.resume_from, self.preset)) != 1:
            raise ValueError("give exactly one of init, resume_from and preset")
        if (self.preset is None) != (self.tokenizer is None):
            raise ValueError("preset and tokenizer go together")
        if self.n_layers is not None and self.init is None:
            raise ValueError("n_layers needs init")
        if self.gguf_file is not None and self.resume_from is not None:
            raise ValueError("gguf_file needs init or tokenizer: a saved reward model is no GGUF")
        return self


class DataConfig(Config):
    """Files of comparisons (JSONL, Parquet). eval: evaluated during training. on_bad_row: refuse, or skip into a side file.

    identical_steps: in all comparisons of the first step, and in ever fewer up to this one, the reference stands in for the best
    candidate. Pre-training begins on a plateau, as a candidate alone says nothing; from these a model soon learns to compare.
    """

    train: list[Path] = Field(min_length=1)
    eval: list[Path] = Field(default_factory=list)
    on_bad_row: Literal["error", "skip"] = "error"
    reference: Literal["given", "empty"] = "given"
    identical_steps: NonNegativeInt = 0

    @model_validator(mode="after")
    def _identical_to_something(self) -> DataConfig:
        if self.identical_steps and self.reference == "empty":
            raise ValueError("identical_steps needs references")
        return self


class OptimConfig(Config):
    """AdamW, linear warm-up and cosine decay; the defaults are the published fine-tuning settings (paper App. D.2, release).

    lr: peak learning rate, or ``paper`` for the pre-training rule of App. F.1, which goes by the tokens of the run and needs
    ``base_tokens``, the tokens that the base language model was trained on.
    """

    lr: PositiveFloat | Literal["paper"] = 1e-5
    base_tokens: float | None = Field(None, gt=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8  # with zero, a weight without a gradient yet (all, under a new head) would become NaN
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    warmup: float = Field(0.03, ge=0, le=1)
    final_lr: float = Field(0.1, ge=0, le=1)


class LossConfig(Config):
    """The paper uses plain Bradley-Terry (Eqs. 7 and 8); everything else is off by default.

    objective: ``bradley_terry`` averages over ordered pairs. ``listwise`` is the Plackett-Luce likelihood with ties: each
        candidate against all that are ranked worse, averaged over the candidates that have any (Xia et al., ListMLE, 2008).
    margin: subtracted from each score difference (Llama 2, section 3.2.2, with a constant margin).
    label_smoothing: probability that a pair's label is wrong (conservative DPO, Mitchell 2023).
    focal: weigh a pair by ``(1 - 2 relu(p - 1/2))^2``, so that pairs already right count less (InternLM2, section 4.3.2).
    centring: weight of the mean squared score, which ties scores to zero (Eisenstein et al. 2023; TRL).
    log_barrier: weight of ``-log(5 - s) - log(s + 5)``, which keeps scores within (-5, 5) (InternLM2; XTuner uses 0.01).
    """

    objective: Literal["bradley_terry", "listwise"] = "bradley_terry"
    margin: float = Field(0.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    focal: bool = False
    centring: float = Field(0.0, ge=0)
    log_barrier: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _of_pairs_only(self) -> LossConfig:
        given = [name for name in ("margin", "label_smoothing", "focal") if getattr(self, name)]
        if self.objective == "listwise" and given:
            raise ValueError(f"{', '.join(given)}: only for bradley_terry, as listwise has no pairs")
        return self


class LoraConfig(Config):
    """Low-rank adapters by PEFT on the backbone's linear layers; the head is trained in full, embeddings stay."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(0.0, ge=0, lt=1)


class LogConfig(Config):
    """Besides ``metrics.jsonl``, which is always written."""

    tensorboard: bool = True
    wandb_project: str | None = None


class TrainConfig(Config):
    """One run.

    output: run folder: ``run.json``, ``metrics.jsonl``, ``checkpoints/``, ``model/``. Run again with the same config, it resumes.
    batch_size: comparisons per optimiser step, over all ranks, or ``paper`` (rule of App. F.1; not with ``max_steps``, as it goes
    by the tokens of the run, which then depend on it).
    row_tokens: most tokens of one packed row; one row per rank and micro-step. It decides memory, never results.
    max_steps: stop early; the schedule is laid out for what will be run. epochs: passes over the data.
    precision: ``bf16`` computes in bfloat16 with float32 master weights; ``auto`` takes it where the hardware has it.
    """

    output: Path
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    lora: LoraConfig | None = None
    log: LogConfig = LogConfig()
    batch_size: PositiveInt | Literal["paper"] = 320
    row_tokens: PositiveInt = 32768
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    attention: Literal["auto", "tree_cpu", "tree_varlen", "tree_flex", "tree_dense"] = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    eval_every: PositiveInt | None = None
    checkpoint_every: PositiveInt | None = None
    keep_checkpoints: PositiveInt = 2
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _evaluated_on_something(self) -> TrainConfig:
        if self.eval_every is not None and not self.data.eval:
            raise ValueError("eval_every needs data.eval")
        return self

    @model_validator(mode="after")
    def _batch_by_whole_epochs(self) -> TrainConfig:
        if self.batch_size == "paper" and self.max_steps is not None:
            raise ValueError("batch_size=paper goes by the tokens of whole epochs: with max_steps give a number")
        return self

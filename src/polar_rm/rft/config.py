"""Settings of ``polar rft``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from polar_rm.common.config import Config, Names, PathText, Seed
from polar_rm.common.http import key_from_environment
from polar_rm.common.limits import MAX_BATCH
from polar_rm.records import Wrapper
from polar_rm.rewards.combining import Combine
from polar_rm.rewards.transforms import Transform
from polar_rm.rft.judges import GoldConfig, JudgeConfig
from polar_rm.rft.monitor import MonitorConfig
from polar_rm.rft.trl import PolarReward
from polar_rm.training.config import LoraConfig


class PolicyConfig(Config):
    """The policy that is trained."""

    model: Annotated[PathText, Names("model")] = Field(description="Folder of a causal language model, or package:NAME.")
    gguf_file: str | None = Field(None, description="Name of the GGUF file with the weights, in the model's folder.")
    kind: Literal["chat", "base"] = Field(
        "chat",
        description="chat: a prompt that is a string becomes a user message in the model's chat template. base: the policy "
        "continues the unchanged prompt.",
    )


class RewardConfig(Config):
    """The source of the rewards; see :class:`PolarReward`."""

    source: Annotated[PathText, Names("reward")] = Field(description="The reward server's URL, or a reward model's folder.")
    encoder: Annotated[Path, Names("reward")] | None = Field(
        None, description="The reward model's folder, for servers other than ours."
    )
    api_key_env: str | None = Field(None, description="NAME of the environment variable with the server's key.")
    wrapper: Wrapper = Field(
        "sft", description="For rows without a wrapper. sft: completions answer prompts. pretrain: they continue prompts."
    )
    strip_thinking: bool = Field(False, description="Remove thinking from completions and references.")
    combine: Combine = Field(
        "mean",
        description="For rows with several references. mean: of the raw rewards. best: the highest anchored reward, whose 0 is "
        "the reference itself.",
    )
    transform: Transform = Field(
        "raw",
        description="Transform of the raw rewards; GRPO scales groups itself. anchored: 0 is the reference itself. probability, "
        "percentile: need a calibrated model (polar calibrate).",
    )

    @property
    def is_url(self) -> bool:
        """Whether the rewards come from a server."""
        return self.source.startswith(("http://", "https://"))

    def open(self) -> PolarReward:
        """The reward function, which scores by the server or in this process.

        Raises:
            PolarError: the key's variable is not set, or the model does not exist.
        """
        client: dict[str, Any] = {"model": self.encoder} if self.encoder else {}
        if self.api_key_env:
            client["api_key"] = key_from_environment(self.api_key_env, "reward.api_key_env")
        return PolarReward(
            self.source,
            wrapper=self.wrapper,
            strip_thinking=self.strip_thinking,
            transform=self.transform,
            combine=self.combine,
            **client,
        )


class EvaluateConfig(Config):
    """Held-out prompts, and who judges the policy's completions of them: before the training, every N steps and after it.

    Judges are no reward model of the run: its own reward is shown beside them, but it decides nothing.
    """

    data: list[Annotated[Path, Names("data")]] = Field(
        [], description="Files of held-out rows {prompt, reference[, wrapper]}; training rows with their prompts are left out."
    )
    share: float | None = Field(
        None, gt=0, lt=1, description="Instead of data: this share of the training prompts is held out, by a hash of the prompt."
    )
    judges: list[JudgeConfig] = Field(
        min_length=1,
        description="Who judges, each by its kind: answer, math, rules, function or gold. The first one is the headline.",
    )
    every: NonNegativeInt = Field(0, description="Also evaluate after every N steps; 0: only before and after.")
    samples: PositiveInt = Field(1, le=MAX_BATCH, description="Completions of each prompt, whose mean is the prompt's value.")
    temperature: float = Field(1.0, gt=0, description="Divisor of the logits.")
    top_p: float = Field(0.9, gt=0, le=1, description="Sample from the likeliest tokens of this total probability; 1: from all.")
    top_k: NonNegativeInt = Field(50, description="Sample from this many of the likeliest tokens; 0: from all.")
    max_new_tokens: PositiveInt | None = Field(
        None, description="Maximum number of tokens of a completion; default: trainer.max_completion_length."
    )
    batch_size: PositiveInt = Field(16, le=MAX_BATCH, description="Completions that are generated together.")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if bool(self.data) == (self.share is not None):
            raise ValueError("set one of data and share")
        titles = [judge.title for judge in self.judges]
        if repeated := next((title for title in titles if titles.count(title) > 1 or title == "reward"), None):
            taken = "the run's own reward has the name" if repeated == "reward" else "two judges have the name"
            raise ValueError(f"{taken} {repeated!r}; give the judge another name")
        return self


class SftConfig(Config):
    """Supervised fine-tuning of the same starting policy on the references of the same prompts, by TRL's SFTTrainer.

    The budget is the same number of updates, each on as many sequences.
    """

    kind: Literal["sft"] = Field("sft", description="Supervised fine-tuning on the references.")
    trainer: dict[str, Any] = Field(
        default_factory=dict,
        description="Keys of TRL's SFTConfig, such as learning_rate (2e-5, with an adapter 2e-4); those of the budget are fixed.",
    )


class RftConfig(Config):
    """One run of ``polar rft``. A second run with the same config continues from the last checkpoint."""

    output: Path = Field(
        description="Folder for policy/ (the tuned policy, adapter merged), report.html, metrics.jsonl and checkpoints."
    )
    policy: PolicyConfig = Field(description="The policy that is trained.")
    reward: RewardConfig = Field(description="The source of the rewards.")
    data: list[Annotated[Path, Names("data")]] = Field(
        min_length=1,
        description="Files of rows {prompt, reference or references[, wrapper]}; comparisons and items are such rows, too.",
    )
    algorithm: Literal["grpo", "rloo"] = Field("grpo", description="TRL's trainer.")
    lora: LoraConfig | None = Field(None, description="Train an adapter instead of all weights.")
    trainer: dict[str, Any] = Field(
        default_factory=dict, description="Keys of TRL's GRPOConfig or RLOOConfig, such as save_steps."
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error",
        description="error: stop at a bad row of the data. skip: write it to OUTPUT/data.rejected and continue.",
    )
    evaluate: EvaluateConfig | None = Field(None, description="Held-out prompts and their judges.")
    baseline: SftConfig | None = Field(
        None, description="sft: train a second policy on the references, for comparison; it may be added to a finished run."
    )
    monitor: MonitorConfig = Field(
        MonitorConfig(), description="Limits that warn or stop; they may change between two runs into one folder."
    )
    seed: Seed = Field(0, description="Seed of the adapter, the order of prompts, the completions and the held-out share.")

    @field_validator("baseline", mode="before")
    @classmethod
    def _takes_a_word(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _judges_are_others(self) -> Self:
        for judge in self.evaluate.judges if self.evaluate else ():
            if isinstance(judge, GoldConfig) and judge.model.rstrip("/") == self.reward.source.rstrip("/"):
                raise ValueError(f"evaluate.judges: {judge.title}: the gold model is the reward model itself")
        return self

"""Settings of ``polar rft``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from polar_rm.common.config import Config, PathText, Seed
from polar_rm.common.http import key_from_environment
from polar_rm.records import Wrapper
from polar_rm.rewards.transforms import Transform
from polar_rm.rft.trl import PolarReward
from polar_rm.training.config import LoraConfig


class PolicyConfig(Config):
    """The policy that is trained."""

    model: PathText = Field(description="Folder of a causal language model, or package:NAME.")
    gguf_file: str | None = Field(None, description="Name of the GGUF file with the weights, in the model's folder.")
    kind: Literal["chat", "base"] = Field(
        "chat",
        description="chat: a prompt that is a string becomes a user message in the model's chat template. base: the policy "
        "continues the unchanged prompt.",
    )


class RewardConfig(Config):
    """The source of the rewards; see :class:`PolarReward`."""

    source: PathText = Field(description="The reward server's URL, or a reward model's folder.")
    encoder: Path | None = Field(None, description="The reward model's folder, for servers other than ours.")
    api_key_env: str | None = Field(None, description="NAME of the environment variable with the server's key.")
    wrapper: Wrapper = Field(
        "sft", description="For rows without a wrapper. sft: completions answer prompts. pretrain: they continue prompts."
    )
    strip_thinking: bool = Field(False, description="Remove thinking from completions and references.")
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
            self.source, wrapper=self.wrapper, strip_thinking=self.strip_thinking, transform=self.transform, **client
        )


class RftConfig(Config):
    """One run of ``polar rft``. A second run with the same config continues from the last checkpoint."""

    output: Path = Field(
        description="Folder for policy/ (the tuned policy, with the adapter merged), metrics.jsonl, run.json and checkpoints."
    )
    policy: PolicyConfig = Field(description="The policy that is trained.")
    reward: RewardConfig = Field(description="The source of the rewards.")
    data: list[Path] = Field(
        min_length=1, description="Files of rows {prompt, reference[, wrapper]}; comparisons and items are such rows, too."
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
    seed: Seed = Field(0, description="Seed of the adapter, the order of prompts and the completions.")

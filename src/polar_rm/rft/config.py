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
    gguf_file: str | None = Field(None, description="Name of the GGUF in that folder that holds the weights.")
    kind: Literal["chat", "base"] = Field(
        "chat",
        description="chat: a prompt that is a string becomes its user's message, in the model's chat template. base: the policy "
        "continues the prompt as it is.",
    )


class RewardConfig(Config):
    """Where rewards come from; see :class:`PolarReward`."""

    source: PathText = Field(description="The reward server's URL, or a reward model's folder.")
    encoder: Path | None = Field(None, description="The reward model's folder, for servers other than ours.")
    api_key_env: str | None = Field(None, description="NAME of the environment variable with the server's key.")
    wrapper: Wrapper = Field(
        "sft", description="sft: completions answer prompts. pretrain: they continue them. Of rows that name none."
    )
    strip_thinking: bool = Field(False, description="Take thinking out of completions and references.")
    transform: Transform = Field("raw", description="What becomes of raw rewards; GRPO scales groups itself.")

    @property
    def is_url(self) -> bool:
        """Whether a server gives the rewards."""
        return self.source.startswith(("http://", "https://"))

    def open(self) -> PolarReward:
        """Make ready to score, by the server or in this process.

        Raises:
            PolarError: the key's variable is not set, or there is no such model.
        """
        client: dict[str, Any] = {"model": self.encoder} if self.encoder else {}
        if self.api_key_env:
            client["api_key"] = key_from_environment(self.api_key_env, "reward.api_key_env")
        return PolarReward(
            self.source, wrapper=self.wrapper, strip_thinking=self.strip_thinking, transform=self.transform, **client
        )


class RftConfig(Config):
    """One run of ``polar rft``. Run again with the same config, it goes on behind its last checkpoint."""

    output: Path = Field(
        description="Folder of policy/ (the tuned policy, an adapter merged), metrics.jsonl, run.json and TRL's checkpoints."
    )
    policy: PolicyConfig = Field(description="The policy that is trained.")
    reward: RewardConfig = Field(description="Where rewards come from.")
    data: list[Path] = Field(
        min_length=1, description="Files of rows {prompt, reference[, wrapper]}; comparisons and items are such rows, too."
    )
    algorithm: Literal["grpo", "rloo"] = Field("grpo", description="TRL's trainer.")
    lora: LoraConfig | None = Field(None, description="Train an adapter instead of all weights.")
    trainer: dict[str, Any] = Field(
        default_factory=dict, description="Keys of TRL's GRPOConfig or RLOOConfig, passed through, such as save_steps."
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error",
        description="error: stop at a bad row of the data. skip: write it to OUTPUT/data.rejected and go on.",
    )
    seed: Seed = Field(0, description="Of the adapter, the order of prompts and the completions.")

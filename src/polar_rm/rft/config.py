"""Settings of ``polar rft``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from polar_rm.common.config import Config
from polar_rm.errors import PolarError
from polar_rm.records import Wrapper
from polar_rm.rewards.transforms import Transform
from polar_rm.rft.trl import PolarReward
from polar_rm.training.config import LoraConfig


class PolicyConfig(Config):
    """model: folder of a causal language model, or ``package:NAME``. kind: ``chat`` gets a prompt that is a string as its user's
    message, in the model's chat template; ``base`` continues it as it is."""

    model: str
    gguf_file: str | None = None
    kind: Literal["chat", "base"] = "chat"


class RewardConfig(Config):
    """source: the reward server's URL, or a reward model's folder. encoder: that folder, for servers other than ours.
    api_key_env: NAME of the environment variable with the server's key. wrapper: of rows that name none. The others are those of
    :class:`PolarReward`."""

    source: str
    encoder: Path | None = None
    api_key_env: str | None = None
    wrapper: Wrapper = "sft"
    strip_thinking: bool = False
    transform: Transform = "raw"

    def open(self) -> PolarReward:
        if self.api_key_env and self.api_key_env not in os.environ:
            raise PolarError(f"reward.api_key_env: the environment variable {self.api_key_env} is not set")
        client: dict[str, Any] = {"model": self.encoder} if self.encoder else {}
        if self.api_key_env:
            client["api_key"] = os.environ[self.api_key_env]
        return PolarReward(
            self.source, wrapper=self.wrapper, strip_thinking=self.strip_thinking, transform=self.transform, **client
        )


class RftConfig(Config):
    """One run.

    output: ``policy/`` (the tuned policy, an adapter merged), ``metrics.jsonl``, ``run.json`` and TRL's checkpoints. Run again
    with the same config, it goes on behind the last of these (``trainer.save_steps``).
    data: files of rows {prompt, reference[, wrapper]}; comparisons and items are such rows, too.
    trainer: of TRL's GRPOConfig or RLOOConfig, passed through.
    """

    output: Path
    policy: PolicyConfig
    reward: RewardConfig
    data: list[Path] = Field(min_length=1)
    algorithm: Literal["grpo", "rloo"] = "grpo"
    lora: LoraConfig | None = None
    trainer: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0

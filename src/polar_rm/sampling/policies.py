"""What is sampled: policies, their decoding, and the requests that a plan is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from polar_rm.config import Config
from polar_rm.records import Message, Text, flatten


class Decoding(Config):
    """How the next token is drawn; the defaults are the published ones (paper, App. D.1.1). top_k 0: all tokens."""

    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.9, gt=0, le=1)
    top_k: int = Field(50, ge=0)
    max_new_tokens: PositiveInt = 4096


class Policy(Config):
    """A way to answer: a model, what is put around the prompt, and a decoding.

    kind: ``chat`` renders the model's chat template, with ``system`` in front; ``base`` continues ``template``, plain text in
    which ``{prompt}`` stands for the prompt, and ends at the first of ``stop``.
    model: a folder or ``package:NAME``. n_layers: run only its first layers. samples: per prompt.
    """

    name: str
    family: str
    kind: Literal["chat", "base"]
    model: str
    gguf_file: str | None = None
    n_layers: PositiveInt | None = None
    system: str | None = None
    template: str = "{prompt}"
    stop: tuple[str, ...] = ()
    decoding: Decoding = Decoding()
    samples: PositiveInt = 2

    @model_validator(mode="after")
    def _fits_kind(self) -> Policy:
        if self.kind == "base" and self.system is not None:
            raise ValueError(f"policy {self.name!r}: a base policy has no system prompt; write it into the template")
        if "{prompt}" not in self.template:
            raise ValueError(f"policy {self.name!r}: the template must contain {{prompt}}")
        return self

    def messages(self, prompt: Text) -> list[Message]:
        """The conversation that a chat policy answers."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*system, *([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)]

    def text(self, prompt: Text) -> str:
        """The text that a base policy continues."""
        return self.template.replace("{prompt}", flatten(prompt))


class SamplingConfig(Config):
    """One run of ``polar sample``.

    output: folder of ``trajectories.parquet``, ``manifest.json`` and the samples that have arrived (``store/``).
    prompts: rows {prompt_id, prompt} as JSONL or Parquet. limit: use only the first prompts.
    source: the name of the corpus, written into every row. batch_size: sequences generated together.
    """

    output: Path
    prompts: Path
    source: str
    policies: list[Policy] = Field(min_length=1)
    limit: PositiveInt | None = None
    seed: int = 0
    batch_size: PositiveInt = 64
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _names_differ(self) -> SamplingConfig:
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policies need different names, not {', '.join(names)}")
        return self


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to draw. seed: its own, so that a sample does not depend on what it was batched with."""

    prompt_id: str
    prompt: Text
    sample_id: int
    seed: int


def requests_of(policy: Policy, prompts: Sequence[tuple[str, Text]], seed: int) -> list[Request]:
    """All requests of a policy. Seeds are hashes of what names a sample: no two samples or prompts share one."""
    return [
        Request(prompt_id, prompt, sample_id, _seed(seed, policy.name, prompt_id, sample_id))
        for prompt_id, prompt in prompts
        for sample_id in range(policy.samples)
    ]


def _seed(*names: str | int) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:6])

"""The settings of ``polar sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from polar_rm.common.config import Config
from polar_rm.sampling.backends import DEFAULT, AnyPolicy, check_keys
from polar_rm.sampling.base import Machine, Policy, Precision
from polar_rm.sampling.prompts import Prefixes, PromptRows

PromptSource = Annotated[
    Annotated[PromptRows, Tag("prompt rows")] | Annotated[Prefixes, Tag("prompt prefixes")],
    Discriminator(lambda value: "prompt prefixes" if "texts" in _keys(value) else "prompt rows"),
]


class Assignment(Config):
    """Who is asked for what. ``grid``: every policy of the prompt's pool, ``samples`` times. ``draw`` (paper, App. D.1.1): so
    many policies at random by their weights; the first answers ``samples`` times, the others once."""

    method: Literal["grid", "draw"] = "grid"
    policies: PositiveInt = 2


class SamplingConfig(Config):
    """One run of ``polar sample``.

    output: folder of the trajectories, ``manifest.json`` and ``store.sqlite`` with the samples that have arrived.
    prompts: a file of rows {prompt_id, prompt}, or a list of :class:`PromptRows` and :class:`Prefixes`.
    source: the name of the corpus, written into every row. limit: use only the first prompts of each of them. buckets: Parquet
    files that prompts are spread over. engine: ``ray`` runs on Ray. batch_size, precision, device: of policies in process.
    """

    output: Path
    prompts: list[PromptSource] = Field(min_length=1)
    source: str
    policies: list[AnyPolicy] = Field(min_length=1)
    assignment: Assignment = Assignment()
    limit: PositiveInt | None = None
    seed: int = 0
    on_bad_row: Literal["error", "skip"] = "error"
    buckets: PositiveInt = 1
    engine: Literal["local", "ray"] = "local"
    batch_size: PositiveInt = 64
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("prompts", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            return [{"rows": value}]
        return [value] if isinstance(value, dict) else value

    @field_validator("policies", mode="before")
    @classmethod
    def _have_known_backends(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        for policy in value:
            check_keys(policy)
        return [{"backend": DEFAULT, **policy} if isinstance(policy, dict) else policy for policy in value]

    @model_validator(mode="after")
    def _fits_together(self) -> SamplingConfig:
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policies need different names, not {', '.join(names)}")
        pools = {source.pool for source in self.prompts}
        for policy in self.policies:
            if not pools & {policy.kind, "any"}:
                raise ValueError(f"policy {policy.name!r}: no prompts are for {policy.kind} policies; see their key pool")
            if self.assignment.method == "grid" and policy.weight != 1:
                raise ValueError(f"policy {policy.name!r}: a weight has no effect with assignment.method grid")
        need = self.assignment.policies if self.assignment.method == "draw" else 1
        for pool in sorted(pools):
            if (there := len(self.pool(pool))) < need:
                raise ValueError(f"prompts of pool {pool} need at least {need} such policies, there are {there}")
        return self

    @property
    def machine(self) -> Machine:
        return Machine(self.precision, self.device, self.batch_size)

    def identities(self) -> dict[str, dict[str, Any]]:
        """What the samples of each policy depend on, beside their prompts."""
        return {policy.name: policy.settings(self.machine) | {"seed": self.seed} for policy in self.policies}

    def pool(self, name: str) -> list[Policy]:
        """The policies that prompts of this pool may ask."""
        return [policy for policy in self.policies if name in ("any", policy.kind)]


def _keys(value: Any) -> Any:
    return value if isinstance(value, dict) else type(value).model_fields if isinstance(value, Config) else ()

"""The settings of ``polar sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from polar_rm.common.config import Config, Seed
from polar_rm.common.devices import DEVICE_HELP, DeviceName
from polar_rm.common.limits import MAX_BATCH, MAX_FILES
from polar_rm.sampling.backends import DEFAULT, AnyPolicy, check_keys
from polar_rm.sampling.base import Machine, Policy, Precision
from polar_rm.sampling.prompts import Prefixes, PromptRows

PromptSource = Annotated[
    Annotated[PromptRows, Tag("prompt rows")] | Annotated[Prefixes, Tag("prompt prefixes")],
    Discriminator(lambda value: "prompt prefixes" if "texts" in _keys(value) else "prompt rows"),
]


class Assignment(Config):
    """Which policies answer which prompts."""

    method: Literal["grid", "draw"] = Field(
        "grid",
        description="grid: every policy of the prompt's pool gives all its samples. draw (paper, App. D.1.1): policies are drawn "
        "at random by weight; the first gives all its samples, the others one each.",
    )
    policies: PositiveInt = Field(2, description="With draw: number of policies per prompt.")


class SamplingConfig(Config):
    """One run of ``polar sample``."""

    output: Path = Field(description="Folder for the trajectories, manifest.json and store.sqlite, which holds every sample.")
    prompts: list[PromptSource] = Field(
        min_length=1, description="A file of rows {prompt_id, prompt}, or a list of such files and of texts to take prefixes of."
    )
    source: str = Field(description="Name of the corpus, written into every row.")
    policies: list[AnyPolicy] = Field(min_length=1, description="The policies that answer the prompts.")
    assignment: Assignment = Field(Assignment(), description="Which policies answer which prompt.")
    limit: PositiveInt | None = Field(None, description="Use only the first N prompts of each source.")
    seed: Seed = Field(0, description="Seed of all random choices; the seed of each sample is derived from it.")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="error: stop at a bad row of the prompts. skip: write it to OUTPUT/prompts.rejected and continue."
    )
    buckets: PositiveInt = Field(1, le=MAX_FILES, description="Number of Parquet files that the prompts are spread over.")
    engine: Literal["local", "ray"] = Field("local", description="local: this process and servers. ray: a Ray cluster.")
    batch_size: PositiveInt = Field(64, le=MAX_BATCH, description="Number of sequences that local policies generate together.")
    precision: Precision = Field("auto", description="Precision of local policies: bf16, fp32, or auto (by hardware).")
    device: DeviceName = Field("auto", description=f"Device of local policies. {DEVICE_HELP}")

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
            raise ValueError(f"policies must have different names, not {', '.join(names)}")
        pools = {source.pool for source in self.prompts}
        for policy in self.policies:
            if not pools & {policy.kind, "any"}:
                raise ValueError(f"policy {policy.name!r}: no prompts are for {policy.kind} policies; see their key pool")
            if self.assignment.method == "grid" and policy.weight != 1:
                raise ValueError(f"policy {policy.name!r}: a weight has no effect with assignment.method grid")
        need = self.assignment.policies if self.assignment.method == "draw" else 1
        for pool in sorted(pools):
            if (count := len(self.pool(pool))) < need:
                raise ValueError(f"prompts of pool {pool} need at least {need} such policies, there are {count}")
        return self

    @property
    def machine(self) -> Machine:
        """How local policies compute."""
        return Machine(self.precision, self.device, self.batch_size)

    def pool(self, name: str) -> list[Policy]:
        """The policies that may answer prompts of this pool."""
        return [policy for policy in self.policies if name in ("any", policy.kind)]


def _keys(value: Any) -> Any:
    return value if isinstance(value, dict) else type(value).model_fields if isinstance(value, Config) else ()

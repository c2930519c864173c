"""The settings of ``polar references``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from polar_rm.common.config import Config, Names, PathText, Seed
from polar_rm.common.devices import DEVICE_HELP, DeviceName
from polar_rm.common.extras import needs
from polar_rm.sampling.backends import DEFAULT, AnyPolicy, check_keys
from polar_rm.sampling.base import Precision

if TYPE_CHECKING:
    from polar_rm.evaluation.suites import Suite


def benchmark(name: str) -> Suite:
    """The published benchmark with this name. It is imported here, because a minimal installation lacks the evaluation packages.

    Raises:
        PolarError: there is no such benchmark, or a package is missing.
    """
    with needs("evaluate", "suite"):
        from polar_rm.evaluation.suites import find_suite
    return find_suite(name)


class FromColumn(Config):
    """References from a field of the rows."""

    kind: Literal["column"] = Field("column", description="A field of the rows.")
    column: str = Field(min_length=1, description="Name of the field, such as gold; dots address nested fields (meta.gold).")
    protocol: Literal["gold", "frontier", "own"] = Field(
        "gold",
        description="Origin that reports show. gold: a correct answer. frontier: a strong model. own: the policy that is judged.",
    )


class FromPolicy(Config):
    """References from a policy, which answers every prompt once, as in polar sample."""

    kind: Literal["policy"] = Field("policy", description="Answers of a policy.")
    policy: AnyPolicy = Field(description="The policy, with the keys of a policy of polar sample; it gives one sample a prompt.")
    protocol: Literal["own", "frontier"] = Field(
        "own", description="Origin that reports show. own: the policy that is judged or trained. frontier: a stronger policy."
    )
    engine: Literal["local", "ray"] = Field("local", description="local: this process and servers. ray: a Ray cluster.")
    batch_size: PositiveInt = Field(64, description="Number of sequences that a local policy generates together.")
    precision: Precision = Field("auto", description="Precision of a local policy: bf16, fp32, or auto (by hardware).")
    device: DeviceName = Field("auto", description=f"Device of a local policy. {DEVICE_HELP}")

    @field_validator("policy", mode="before")
    @classmethod
    def _has_a_known_backend(cls, value: Any) -> Any:
        check_keys(value)
        return {"backend": DEFAULT, "samples": 1, **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _gives_one_sample(self) -> FromPolicy:
        if self.policy.samples != 1:
            raise ValueError(f"policy.samples must be 1, because a row has one reference, not {self.policy.samples}")
        return self


class FromSibling(Config):
    """References from the best other answer to the same prompt."""

    kind: Literal["sibling"] = Field(
        "sibling", description="The best other answer to the same prompt, in another row or the same."
    )
    score: str | None = Field(
        None, description="Field with the score of rows {prompt, output}, higher is better; comparisons go by their ranks."
    )


def _kind(value: Any) -> str:
    """The tag of a reference's kind. Tags contain a space, so that no tag equals a key of a user's config."""
    name = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return f"reference {name}"


ReferenceSource = Annotated[
    Annotated[FromColumn, Tag("reference column")]
    | Annotated[FromPolicy, Tag("reference policy")]
    | Annotated[FromSibling, Tag("reference sibling")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="kind must be column, policy or sibling",
    ),
]


class ReferencesConfig(Config):
    """One run of ``polar references``."""

    output: Path = Field(description="Folder for references.jsonl or references.parquet, manifest.json and refused.jsonl.")
    inputs: tuple[Annotated[PathText, Names("data")], ...] = Field(
        min_length=1, description="Files, folders or patterns of comparisons, of items {prompt, output}, or of prompts {prompt}."
    )
    suite: str | None = Field(
        None, description="Read inputs (one path) as this published benchmark; polar evaluate --suite list prints all names."
    )
    reference: ReferenceSource = Field(description="Where references come from.")
    existing: Literal["error", "keep", "replace"] = Field(
        "error", description="Rows that have a reference: error stops, keep keeps the reference, replace makes a new one."
    )
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="Kind of file to write.")
    limit: PositiveInt | None = Field(None, description="Use only the first N rows.")
    seed: Seed = Field(0, description="Seed of a policy's samples.")
    on_bad_row: Literal["error", "skip"] = Field(
        "error",
        description="error: stop at a bad row, or a row without a possible reference. skip: write it to OUTPUT/refused.jsonl, "
        "count it and continue.",
    )

    @field_validator("suite")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        return value and benchmark(value).name

    @model_validator(mode="after")
    def _takes_a_suite_as_it_is(self) -> ReferencesConfig:
        if self.suite and len(self.inputs) != 1:
            raise ValueError(f"inputs must be one path where suite is set, not {len(self.inputs)}")
        if self.suite and isinstance(self.reference, FromColumn):
            raise ValueError("reference.kind must be policy or sibling where suite is set: a benchmark has its own fields")
        return self

    @property
    def protocol(self) -> str:
        """The origin of these references that reports show."""
        return self.reference.protocol if isinstance(self.reference, FromColumn | FromPolicy) else "sibling"

"""The settings of ``polar select``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from polar_rm.common.actors import RayActors
from polar_rm.common.config import Config, Names, PathText, Seed
from polar_rm.common.devices import DEVICE_HELP, DeviceName
from polar_rm.common.limits import MAX_ACTORS, MAX_ROW_TOKENS

Within = Literal["all", "prompt", "group"]
Share = Annotated[float, Field(gt=0, le=1)]


class Length(Config):
    """Answers that are too short or too long are dropped."""

    min: PositiveInt | None = Field(None, description="Smallest number of characters of an answer.")
    max: PositiveInt | None = Field(None, description="Largest number of characters of an answer.")

    @model_validator(mode="after")
    def _has_a_limit(self) -> Length:
        if self.min is None and self.max is None:
            raise ValueError("set min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must not exceed max, but {self.min:,} is more than {self.max:,}")
        return self


class NearDuplicates(Config):
    """Answers that are nearly equal to a better one are dropped."""

    similarity: float = Field(
        0.8, ge=0.5, le=1, description="Smallest share of common word 5-grams (Jaccard, estimated by MinHash) of near duplicates."
    )
    within: Literal["prompt", "all"] = Field(
        "prompt", description="prompt: answers to one prompt are compared. all: prompts with their answers, over the whole input."
    )


class Threshold(Config):
    """Answers below a score, or below a probability of being better than their reference, are dropped."""

    of: Literal["score", "probability"] = Field(
        "score", description="score: the score that answers are ordered by. probability: needs a calibration card of the model."
    )
    at_least: float = Field(description="Smallest value that is kept.")

    @model_validator(mode="after")
    def _is_in_range(self) -> Threshold:
        if not math.isfinite(self.at_least) or (self.of == "probability" and not 0 <= self.at_least <= 1):
            wanted = "between 0 and 1 for a probability" if self.of == "probability" else "finite"
            raise ValueError(f"at_least must be {wanted}, not {self.at_least}")
        return self


class TopShare(Config):
    """Only the best share of the answers is kept."""

    share: Share = Field(description="Share to keep, rounded up to whole answers.")
    within: Within = Field("all", description="all: of all answers. prompt, group: of the answers of each prompt or group.")


class Quotas(Config):
    """Only the best answers of each group are kept, up to a number or a share."""

    at_most: PositiveInt | dict[str, PositiveInt] | None = Field(
        None, description="Number for every group, or for each group that is named; groups that are not named have no quota."
    )
    share: Share | None = Field(None, description="Share of each group's remaining answers, rounded up.")

    @model_validator(mode="after")
    def _has_one_limit(self) -> Quotas:
        if (self.at_most is None) == (self.share is None):
            raise ValueError("set either at_most or share")
        return self


class Pairs(Config):
    """How answers become pairs of chosen and rejected."""

    rejected: Literal["worst", "random"] = Field(
        "worst", description="worst: the answer with the lowest score. random: a random answer with a low enough score, by seed."
    )
    margin: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Smallest difference of the scores; the chosen score is always higher."
    )


class SelectConfig(Config):
    """One run of ``polar select``."""

    output: Path = Field(
        description="Folder for selected.jsonl, report.json, report.html, manifest.json and refused.jsonl.",
    )
    inputs: tuple[Annotated[PathText, Names("data")], ...] = Field(
        min_length=1,
        description="Files, folders or patterns of rows {prompt, output, score}, lists {prompt, outputs, scores}, or "
        "trajectories with a score; of items {prompt, reference, output} where scores or model is set.",
    )
    scores: tuple[Annotated[PathText, Names("data")], ...] = Field(
        (), description="Output of polar score, one file for each input file; row n is the score of row n."
    )
    model: Annotated[PathText, Names("reward")] | None = Field(
        None, description="Folder of a reward model saved by polar, which scores the inputs first."
    )
    transform: Literal["raw", "anchored", "probability"] = Field(
        "raw",
        description="Scores of model. anchored: 0 is the reference. probability: over the reference; needs polar calibrate.",
    )
    score: str | None = Field(
        None, description="Column with the scores; default: score or reward, scores or rewards for lists. Higher is better."
    )
    prompt_by: Literal["id", "text"] = Field(
        "id", description="Rows of one prompt. id: by column prompt_id where rows have one, else by the text. text: by the text."
    )
    group_by: str | None = Field(None, description="Column that names the group of a row, such as source, for quotas and report.")
    length: Length | None = Field(None, description="Rule 1: drop answers that are too short or too long.")
    near_duplicates: NearDuplicates | None = Field(None, description="Rule 2: drop answers that nearly equal a better one.")
    threshold: Threshold | None = Field(None, description="Rule 3: drop answers with a low score or probability.")
    best_of_n: PositiveInt | None = Field(
        None, description="Rule 4: keep so many answers of each prompt, the best ones. Default: no limit, but 1 for pairs."
    )
    top_share: TopShare | None = Field(None, description="Rule 5: keep the best share; a number means this share of all answers.")
    quotas: Quotas | None = Field(None, description="Rule 6: keep the best answers of each group, up to a quota.")
    kind: Literal["sft", "pairs"] = Field(
        "sft", description="sft: rows {messages, score}. pairs: rows {prompt, chosen, rejected, score_chosen, score_rejected}."
    )
    pairs: Pairs = Field(Pairs(), description="For kind: pairs.")
    keep_columns: Literal["none", "all"] | tuple[str, ...] = Field(
        "none", description="Other columns of the (chosen) row to write as metadata: none, all, or a list of names."
    )
    seed: Seed = Field(0, description="Seed of random rejected answers.")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="error: stop at a bad row. skip: write it to OUTPUT/refused.jsonl, count it and continue."
    )
    strip_prompt: bool = Field(False, description="Remove the prompt's messages from answers that begin with them.")
    engine: Literal["local", "ray"] = Field("local", description="local: processes of this machine. ray: a Ray cluster.")
    workers: PositiveInt | None = Field(
        None,
        le=MAX_ACTORS,
        description="Number of processes, which read a file each; default: one per core. Those that load model: ray.",
    )
    ray: RayActors = Field(RayActors(), description="With engine: ray, the actors that load model.")
    precision: Literal["auto", "bf16", "fp32"] = Field("fp32", description="Precision of model.")
    device: DeviceName = Field("auto", description=f"Device of model. {DEVICE_HELP}")
    row_tokens: int = Field(8192, ge=1, le=MAX_ROW_TOKENS, description="Tokens of a packed row of model; not results, memory.")

    @field_validator("top_share", mode="before")
    @classmethod
    def _share_of_all(cls, value: Any) -> Any:
        return {"share": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _fits_together(self) -> SelectConfig:
        by_group = [
            name
            for name, used in {
                "quotas": self.quotas is not None,
                "top_share.within=group": self.top_share is not None and self.top_share.within == "group",
            }.items()
            if used
        ]
        if by_group and self.group_by is None:
            raise ValueError(f"{by_group[0]} needs group_by, the column that names the group of a row")
        if self.model and (self.scores or self.score):
            raise ValueError("model computes the scores, so scores and score must not be set beside it")
        if self.transform != "raw" and not self.model:
            raise ValueError("transform is for the scores of model, which is not set")
        if self.model and self.uses_probability and self.transform != "probability":
            raise ValueError("threshold.of=probability needs transform=probability where model is set")
        return self

    @property
    def uses_probability(self) -> bool:
        """Whether rows need a probability."""
        return self.threshold is not None and self.threshold.of == "probability"

    @property
    def best_of(self) -> int | None:
        """The largest number of answers of a prompt, or pairs of a prompt; None if there is no limit."""
        return self.best_of_n or (1 if self.kind == "pairs" else None)

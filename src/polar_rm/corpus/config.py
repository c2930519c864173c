"""The settings of ``polar corpus``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from polar_rm.common.config import Config, PathText, Seed
from polar_rm.common.limits import MAX_ACTORS, MAX_FILES
from polar_rm.records import Wrapper

Distance = Literal["same_model", "same_family", "other_family"]
"""The distance between the policy of a negative and the reference's policy: the same model in another form (a checkpoint, another
system prompt, another decoding), another model of the same family, or another family."""


class Cleaning(Config):
    """The rules that clean texts (paper, App. D.1.1)."""

    repeated_lines: bool = Field(True, description="Shorten loops of up to 16 lines.")
    repeated_words: bool = Field(True, description="Shorten loops of up to 64 words.")
    repeated_characters: bool = Field(True, description="Shorten loops of up to 64 characters.")
    unfinished_endings: bool = Field(True, description="Trim the unfinished end of texts that the limit on tokens ended.")
    guess_unfinished: bool = Field(
        True, description="Trim endings that look unfinished also in texts without a recorded finish_reason."
    )


class Pairing(Config):
    """The contents of a comparison."""

    kind: Literal["triples", "k_way"] = Field(
        "k_way",
        description="triples (as published): two policies each, with reference and positive of one and the negative of the "
        "other. k_way: every policy with two different texts is the reference once, with further texts of its own "
        "and of others.",
    )
    positives: PositiveInt = Field(1, description="Maximum number of further texts of the reference's policy.")
    negatives: PositiveInt = Field(1, description="Maximum number of other policies, with one text each.")
    both_directions: bool = Field(
        True,
        description="If A was the reference with a negative of B, B may be the reference with a negative of A; in triples B "
        "always is.",
    )
    per_prompt: PositiveInt | None = Field(None, description="Maximum number of comparisons of a prompt; default: no limit.")
    per_policy: PositiveInt | None = Field(
        None, description="Maximum number of comparisons with references of one policy, in each split; default: no limit."
    )
    distance: tuple[Distance, ...] | None = Field(
        None, min_length=1, description="Use only negatives at these distances: same_model, same_family, other_family."
    )
    near_length: float | None = Field(
        None, gt=1, description="Use only negatives whose length, in characters, is within this factor of a positive's."
    )

    @model_validator(mode="after")
    def _triples_have_three(self) -> Pairing:
        if self.kind == "triples" and (self.positives, self.negatives) != (1, 1):
            raise ValueError("triples have one positive and one negative; more need kind: k_way")
        return self


class Splits(Config):
    """Prompts and policies that are held out from training."""

    prompts: float = Field(0.0, ge=0, lt=1, description="Fraction of the prompts that is held out.")
    policies: tuple[str, ...] | int = Field(0, description="Names of the policies that are held out, or their number.")

    @model_validator(mode="after")
    def _not_negative(self) -> Splits:
        if isinstance(self.policies, int) and self.policies < 0:
            raise ValueError("policies: the number of policies must not be negative")
        return self


class Decontamination(Config):
    """Evaluation data whose prompts are dropped from the corpus."""

    files: tuple[PathText, ...] = Field((), description="Evaluation data with a column prompt: files, folders or patterns.")
    n: PositiveInt = Field(13, description="Number of consecutive words that a dropped prompt shares with an evaluation prompt.")


class Reporting(Config):
    """The measurements of the report."""

    pairs: PositiveInt = Field(2000, description="Number of pairs for the baselines.")
    tokenizer: Path | None = Field(
        None, description="Folder with tokenizer.json, to count tokens; by default only characters and words are counted."
    )


class CorpusConfig(Config):
    """The configuration of one run of ``polar corpus``."""

    output: Path = Field(description="Folder of the corpus.")
    inputs: tuple[PathText, ...] = Field(min_length=1, description="Files, folders or patterns of trajectories.")
    verify: bool = Field(
        False, description="Compare the contents of files that polar wrote with their checksums, not only names, sizes and rows."
    )
    policies: tuple[str, ...] = Field(("*",), min_length=1, description="Names or patterns of the policies to use.")
    families: dict[str, str] = Field(
        {},
        description="Policy, or a pattern such as qwen*, to the name of its family. Other families come from the rows (family, a "
        "column or a key in the metadata) or from the manifest of polar sample.",
    )
    models: dict[str, str] = Field(
        {},
        description="Policy, or a pattern, to the name of its model. Other models come from checkpoint_of in the rows or the "
        "manifest.",
    )
    wrapper: Wrapper | None = Field(
        None,
        description="pretrain: policies continue the prompt's text. sft: they answer it. "
        "Default: the wrapper in the trajectories, else sft.",
    )
    licences: dict[str, str] = Field({}, description="Source to licence, copied into the manifest.")
    cleaning: Cleaning = Field(Cleaning(), description="The rules that clean texts.")
    pairing: Pairing = Field(Pairing(), description="The contents of a comparison.")
    splits: Splits = Field(Splits(), description="Prompts and policies that are held out from training.")
    decontamination: Decontamination = Field(
        Decontamination(), description="Evaluation data whose prompts are dropped from the corpus."
    )
    report: Reporting = Field(Reporting(), description="The measurements of the report.")
    seed: Seed = Field(0, description="Seed of all random choices.")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="error: stop at a bad row of the inputs. skip: write it to refused.jsonl, count it and continue."
    )
    buckets: PositiveInt | None = Field(
        None,
        le=MAX_FILES,
        description="Number of groups of prompts, each of which gives a shard; default: one for every 16 MiB.",
    )
    engine: Literal["local", "ray"] = Field("local", description="local: processes of this machine. ray: a Ray cluster.")
    workers: PositiveInt | None = Field(None, le=MAX_ACTORS, description="Number of processes; default: one for each core.")

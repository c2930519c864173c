"""The settings of ``polar corpus``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from polar_rm.common.config import Config, PathText, Seed
from polar_rm.records import Wrapper

Distance = Literal["same_model", "same_family", "other_family"]
"""How near the policy of a negative is to the reference's: the same model in another way (a checkpoint, another system prompt,
another decoding), another model of the same family, or another family."""


class Cleaning(Config):
    """Which rules shorten texts (paper, App. D.1.1)."""

    repeated_lines: bool = Field(True, description="Cut loops of up to 16 lines.")
    repeated_words: bool = Field(True, description="Cut loops of up to 64 words.")
    repeated_characters: bool = Field(True, description="Cut loops of up to 64 characters.")
    unfinished_endings: bool = Field(True, description="Trim the end of texts that the limit on tokens cut off.")
    guess_unfinished: bool = Field(True, description="Trim endings that look cut, too, where no finish_reason was recorded.")


class Pairing(Config):
    """What a comparison holds."""

    kind: Literal["triples", "k_way"] = Field(
        "k_way",
        description="triples (as published): two policies at a time, reference and positive of the one, negative of the other. "
        "k_way: every policy with two different texts is the reference once, with further texts of its own and of others.",
    )
    positives: PositiveInt = Field(1, description="At most so many further texts of the reference's policy.")
    negatives: PositiveInt = Field(1, description="At most so many other policies, one text of each.")
    both_directions: bool = Field(
        True, description="If A was the reference with a negative of B, B may be one with a negative of A; in triples it then is."
    )
    per_prompt: PositiveInt | None = Field(None, description="At most so many comparisons of a prompt; default: no limit.")
    per_policy: PositiveInt | None = Field(
        None, description="At most so many comparisons with one policy's reference, in each split; default: no limit."
    )
    distance: tuple[Distance, ...] | None = Field(
        None, min_length=1, description="Only negatives at these distances: same_model, same_family, other_family."
    )
    near_length: float | None = Field(
        None, gt=1, description="Only negatives whose length is within this factor of a positive's, in characters."
    )

    @model_validator(mode="after")
    def _triples_have_three(self) -> Pairing:
        if self.kind == "triples" and (self.positives, self.negatives) != (1, 1):
            raise ValueError("triples have one positive and one negative; more need kind: k_way")
        return self


class Splits(Config):
    """What training never sees."""

    prompts: float = Field(0.0, ge=0, lt=1, description="Fraction of the prompts that is held out.")
    policies: tuple[str, ...] | int = Field(0, description="Names of the policies that are held out, or how many to draw.")

    @model_validator(mode="after")
    def _not_negative(self) -> Splits:
        if isinstance(self.policies, int) and self.policies < 0:
            raise ValueError("policies: a number of policies is not negative")
        return self


class Decontamination(Config):
    """Prompts that evaluation data holds too are dropped."""

    files: tuple[PathText, ...] = Field((), description="Evaluation data with a column prompt: files, folders or patterns.")
    n: PositiveInt = Field(13, description="Words that a prompt must share with one of theirs, in a row.")


class Reporting(Config):
    """What the report measures."""

    pairs: PositiveInt = Field(2000, description="Pairs that are drawn for the baselines.")
    tokenizer: Path | None = Field(None, description="Folder with tokenizer.json; without one there are characters and words.")


class CorpusConfig(Config):
    """One run of ``polar corpus``."""

    output: Path = Field(description="Folder of the corpus.")
    inputs: tuple[PathText, ...] = Field(min_length=1, description="Files, folders or patterns of trajectories.")
    verify: bool = Field(
        False, description="Compare the contents of what polar wrote with their checksums, not only names, sizes and rows."
    )
    policies: tuple[str, ...] = Field(("*",), min_length=1, description="Names or patterns of the policies that take part.")
    families: dict[str, str] = Field(
        {},
        description="Policy, or a pattern such as qwen*, to the name of its family. What is left open comes from the rows "
        "(family, a column or in the metadata) or from the manifest of polar sample.",
    )
    models: dict[str, str] = Field(
        {}, description="Policy, or a pattern, to the name of its model; else checkpoint_of of the rows or the manifest."
    )
    wrapper: Wrapper | None = Field(
        None,
        description="pretrain: policies continue the prompt's text. sft: they answer it. "
        "Default: as the trajectories say, else sft.",
    )
    licences: dict[str, str] = Field({}, description="Source to licence, copied into the manifest.")
    cleaning: Cleaning = Field(Cleaning(), description="Which rules shorten texts.")
    pairing: Pairing = Field(Pairing(), description="What a comparison holds.")
    splits: Splits = Field(Splits(), description="What training never sees.")
    decontamination: Decontamination = Field(Decontamination(), description="Evaluation data to keep out.")
    report: Reporting = Field(Reporting(), description="What the report measures.")
    seed: Seed = Field(0, description="Of all random choices.")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="error: stop at a bad row of the inputs. skip: write it to refused.jsonl, count it and go on."
    )
    buckets: PositiveInt | None = Field(
        None, description="Parts that prompts are dealt to, a shard each; default: one for every 16 MiB."
    )
    engine: Literal["local", "ray"] = Field("local", description="local: processes of this machine. ray: a Ray cluster.")
    workers: PositiveInt | None = Field(None, description="Processes; default: one for each core.")

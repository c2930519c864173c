"""The settings of ``polar corpus``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from polar_rm.common.config import Config
from polar_rm.records import Wrapper

Distance = Literal["same_model", "same_family", "other_family"]
"""How near the policy of a negative is to the reference's: the same model in another way (a checkpoint, another system prompt,
another decoding), another model of the same family, or another family."""


class Cleaning(Config):
    """Which rules shorten texts (paper, App. D.1.1). guess_unfinished: also trim endings that look cut where no
    ``finish_reason`` was recorded."""

    repeated_lines: bool = True
    repeated_words: bool = True
    repeated_characters: bool = True
    unfinished_endings: bool = True
    guess_unfinished: bool = True


class Pairing(Config):
    """What a comparison holds.

    kind: ``triples`` as published, two policies at a time: reference and positive of the one, negative of the other.
        ``k_way``: every policy with two different texts is the reference once, with up to ``positives`` further texts of its own
        and one text each of up to ``negatives`` other policies.
    both_directions: if A was the reference with a negative of B, B may be one with a negative of A; in triples it then is.
    per_prompt: at most that many comparisons a prompt. per_policy: at most that many with one policy's reference, in each split.
    distance: only negatives at these distances. near_length: only negatives whose length is within this factor of a positive's.
    """

    kind: Literal["triples", "k_way"] = "k_way"
    positives: PositiveInt = 1
    negatives: PositiveInt = 1
    both_directions: bool = True
    per_prompt: PositiveInt | None = None
    per_policy: PositiveInt | None = None
    distance: tuple[Distance, ...] | None = Field(None, min_length=1)
    near_length: float | None = Field(None, gt=1)

    @model_validator(mode="after")
    def _triples_have_three(self) -> Pairing:
        if self.kind == "triples" and (self.positives, self.negatives) != (1, 1):
            raise ValueError("triples have one positive and one negative; more need kind: k_way")
        return self


class Splits(Config):
    """What training never sees. prompts: a fraction of them. policies: their names, or how many to draw."""

    prompts: float = Field(0.0, ge=0, lt=1)
    policies: tuple[str, ...] | int = Field(0)

    @model_validator(mode="after")
    def _not_negative(self) -> Splits:
        if isinstance(self.policies, int) and self.policies < 0:
            raise ValueError("policies: a number of policies is not negative")
        return self


class Decontamination(Config):
    """files: evaluation data with a column ``prompt``. n: words that a prompt must share with one of theirs, in a row."""

    files: tuple[str, ...] = ()
    n: PositiveInt = 13


class Reporting(Config):
    """pairs: how many are drawn for the baselines. tokenizer: a folder; without one there are characters and words only."""

    pairs: PositiveInt = 2000
    tokenizer: Path | None = None


class CorpusConfig(Config):
    """One run of ``polar corpus``.

    inputs: files, folders or patterns of trajectories. output: folder of the corpus. policies: names or patterns of those that
        take part.
    families, models: policy, or a pattern such as ``qwen*``, to the name of its family and of its model. What they leave open
        comes from the rows (``family`` and ``checkpoint_of``, columns or metadata) or from the manifest of ``polar sample``.
    wrapper: ``pretrain`` where policies continue the prompt's text, ``sft`` where they answer it; by default as the trajectories'
        ``wrapper`` says, or else ``sft``.
    licences: source to licence, copied into the manifest.
    buckets: parts that prompts are dealt to, one shard each; by default one for every 16 MiB. workers: by default one a core.
    """

    output: Path
    inputs: tuple[str, ...] = Field(min_length=1)
    policies: tuple[str, ...] = Field(("*",), min_length=1)
    families: dict[str, str] = Field({})
    models: dict[str, str] = Field({})
    wrapper: Wrapper | None = None
    licences: dict[str, str] = Field({})
    cleaning: Cleaning = Cleaning()
    pairing: Pairing = Pairing()
    splits: Splits = Splits()
    decontamination: Decontamination = Decontamination()
    report: Reporting = Reporting()
    seed: int = 0
    buckets: PositiveInt | None = None
    engine: Literal["local", "ray"] = "local"
    workers: PositiveInt | None = None

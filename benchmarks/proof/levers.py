"""What a small model needs to judge preferences: one setting changed at a time, against the model without the change."""

from __future__ import annotations

from typing import Any

import numpy as np

from polar_rm.common.progress import show_progress
from polar_rm.corpus.build import build
from polar_rm.evaluation import ModelOptions, evaluate_files
from polar_rm.model.devices import claim_device
from polar_rm.training.trainer import train
from proof.corpora import corpus_config, policies_config
from proof.measures import Key, accuracies, paired
from proof.settings import Lever
from proof.steps import Row, Run
from proof.training import config_of, finetuned, language_model, remove_checkpoints, training_rows

UNCHANGED = "unchanged"


def pull(run: Run, name: str, lever: Lever) -> list[Row]:
    """Pre-train and fine-tune with the changed setting, and compare on the same held-out preferences, with references."""
    folder, seed = run.output / "levers" / name, run.seeds[0]
    corpus = run.output / "corpus/polar"
    if lever.pairing:
        corpus = folder / "corpus"
        settings = policies_config(run) | {"pairing": run.size.corpus.pairing | lever.pairing, "output": str(corpus)}
        with show_progress(run.console) as progress:
            build(corpus_config(settings), progress=progress)
    start = run.size.model.model_copy(update=lever.model)
    model = language_model(run, start) | ({"init": start.init, "n_layers": start.layers} if "layers" in lever.model else {})
    common = {"seed": seed}
    data = {"train": [str(corpus / "train")], "identical_steps": run.size.identical_steps}
    settings = {"model": model, "data": data, "epochs": 100}
    train(config_of(folder / "pretrain", [], run.size.pretrain, common, settings, lever.pretrain), console=run.console)
    data = {"train": [str(run.output / "pairs/train.jsonl")]}
    settings = {"model": {"resume_from": str(folder / "pretrain/model")}, "data": data}
    config = config_of(folder / "finetune", [], run.size.finetune, common, settings, lever.finetune)
    train(config, verb="finetune", console=run.console)
    rows = training_rows(folder / "pretrain", {"lever": name, "stage": "pretrain", "seed": seed})
    rows += training_rows(folder / "finetune", {"lever": name, "stage": "finetune", "seed": seed})
    rows += _compared(run, name, seed)
    for stage in ("pretrain", "finetune"):
        remove_checkpoints(folder / stage)
    return rows


def _compared(run: Run, name: str, seed: int) -> list[Row]:
    """Accuracies of the changed and the unchanged model, and their paired difference."""
    models = {
        name: run.output / "levers" / name / "finetune/model",
        UNCHANGED: finetuned(run, "polar", "given", seed) / "model",
    }
    with show_progress(run.console) as progress:
        result = evaluate_files(
            [f"{contender}={folder}" for contender, folder in models.items()],
            [run.output / "pairs/test.jsonl"],
            by="source",
            baselines=(),
            options=ModelOptions("auto", claim_device("auto")),
            progress=progress,
        )
    pairs = result.scores.pairs
    correct: dict[Key, Any] = {(contender, seed): result.scores.correct(contender) for contender in models}
    everything = np.arange(len(pairs))
    about = {"lever": name, "data": "held-out preferences"}
    differences = paired(correct, pairs, everything, [(name, UNCHANGED)], about)
    return accuracies(correct, pairs, everything, about) + [row for row in differences if row["seed"] is not None]

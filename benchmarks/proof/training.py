"""Pre-training on policies and on continuations, and the same fine-tuning from these and from the language model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from polar_rm.common.config import load_config
from polar_rm.common.files import write_file
from polar_rm.common.yaml import dump_yaml
from polar_rm.training.config import TrainConfig
from polar_rm.training.trainer import plan, train
from proof.corpora import plan_of, tokens_of
from proof.settings import Start
from proof.steps import Row, Run

Kind = Literal["polar", "rbs", "none"]
KINDS: tuple[Kind, ...] = ("polar", "rbs", "none")
"""Pre-trained on policies, on continuations, and not pre-trained."""
REFERENCES: tuple[Literal["given", "empty"], ...] = ("given", "empty")


def pretrained(run: Run, kind: str, seed: int) -> Path:
    """The run folder of a pre-training."""
    return run.output / f"pretrain/{kind}-{seed}"


def finetuned(run: Run, kind: str, references: str, seed: int) -> Path:
    """The run folder of a fine-tuning."""
    return run.output / f"finetune/{kind}-{references}-{seed}"


def config_of(folder: Path, recipe: list[str], *layers: dict[str, Any]) -> TrainConfig:
    """A training config, which is also written beside its run folder: ``polar pretrain FOLDER.yaml`` trains the same."""
    values: dict[str, Any] = {"output": str(folder), "log": {"tensorboard": False}}
    for layer in layers:
        for key, value in layer.items():
            values[key] = values[key] | value if isinstance(value, dict) and key in values else value
    file = folder.with_name(folder.name + ".yaml")
    write_file(file, dump_yaml(values))
    return load_config(TrainConfig, [*recipe, file])


def language_model(run: Run, start: Start | None = None) -> dict[str, Any]:
    """``model`` of a config that starts from the language model. start: with limits other than the size's."""
    start = start or run.size.model
    limits = {"max_length": start.max_length, "max_response_length": start.max_response_length}
    return {"init": str(run.output / "lm"), "encoder": limits}


def pretrain(run: Run, kind: Kind, seed: int) -> list[Row]:
    """Pre-train one model. Continuations get as many steps as make the tokens of the model of policies with this seed."""
    folder = pretrained(run, kind, seed)
    corpus = run.output / "corpus" / kind / "train"
    data: dict[str, Any] = {"train": [str(corpus)], "cache": str(run.output / "encoded" / kind)}  # seeds share the encoding
    common = {"model": language_model(run), "seed": seed}
    if kind == "polar":
        data["identical_steps"] = run.size.identical_steps
        config = config_of(folder, [], run.size.pretrain, common, {"data": data, "epochs": 100})
    else:
        [tokens] = [row["value"] for row in run.rows(f"pretrain-polar-{seed}") if row["measure"] == "tokens"]
        recipe = ["recipe:pretrain_continuations"]
        whole = run.size.pretrain | {"max_steps": None}
        epoch = plan(config_of(folder, recipe, whole, common, {"data": data}), console=run.console)
        steps = max(1, round(tokens * epoch.comparisons / (epoch.batch_size * epoch.tokens)))
        epochs = 1 + steps * epoch.batch_size // epoch.comparisons
        config = config_of(folder, recipe, run.size.pretrain, common, {"data": data, "epochs": epochs, "max_steps": steps})
    train(config, console=run.console)
    rows = training_rows(folder, {"model": kind, "seed": seed})
    remove_checkpoints(folder)
    return rows


def finetune(run: Run, kind: Kind, seed: int) -> list[Row]:
    """Fine-tune on the preference pairs from one start, with references and without."""
    rows: list[Row] = []
    for references in REFERENCES:
        folder = finetuned(run, kind, references, seed)
        model = language_model(run) if kind == "none" else {"resume_from": str(pretrained(run, kind, seed) / "model")}
        data = {"train": [str(run.output / "pairs/train.jsonl")], "reference": references}
        train(
            config_of(folder, [], run.size.finetune, {"model": model, "seed": seed, "data": data}),
            verb="finetune",
            console=run.console,
        )
        rows += training_rows(folder, {"model": kind, "references": references, "seed": seed})
    # Not earlier: a step that is interrupted in its second run would train the first one again.
    for references in REFERENCES:
        remove_checkpoints(finetuned(run, kind, references, seed))
    return rows


def remove_checkpoints(folder: Path) -> None:
    """Remove what a finished run would continue from: all steps together would need a hundred gigabytes at full size."""
    shutil.rmtree(folder / "checkpoints")


def training_rows(folder: Path, about: dict[str, Any]) -> list[Row]:
    """What a finished run computed: tokens, steps, passes over its data, learning rate."""
    facts = plan_of(folder)
    measures = {"tokens": tokens_of(folder), **{name: facts[name] for name in ("steps", "epochs", "comparisons", "peak_lr")}}
    return [{**about, "measure": name, "value": value} for name, value in measures.items()]

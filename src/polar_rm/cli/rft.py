"""The verb rft: fine-tune a policy with a reward model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from polar_rm.cli.options import Arguments, BadRowsOf, DryRun, JsonFile, load, verb
from polar_rm.cli.output import message, print_text, print_values, report_files
from polar_rm.cli.train import check_reward_model, find_language_model
from polar_rm.common.paths import check_data
from polar_rm.common.problems import Problems
from polar_rm.common.processes import is_main_rank

if TYPE_CHECKING:
    from polar_rm.rft.config import RftConfig


@verb("Training")
def rft(arguments: Arguments, dry_run: DryRun = False, json: JsonFile = None, on_bad_row: BadRowsOf = None) -> None:
    """Fine-tune a policy on one machine, by TRL's GRPO or RLOO, with a reward model that compares completions with references.

    Rows are {prompt, reference}: JSON, CSV, Parquet or Arrow. The output folder gets `policy/` and `report.html`.
    With `evaluate`, something that is not the reward model judges held-out prompts before, during and after (docs/rft.md).
    After an interruption the same command continues from the last checkpoint. Exit code 1: a limit of `monitor` stopped the run.
    Several processes: `accelerate launch -m polar_rm rft ...`

    Examples:

        polar rft recipes/rft.yaml data='[prompts.jsonl]' reward.source=http://127.0.0.1:30000 output=runs/rft

        polar rft recipes/rft.yaml data='[prompts.jsonl]' reward.source=runs/rm/model algorithm=rloo output=runs/rloo --dry-run

        polar rft rft.yaml baseline=sft evaluate='{share: 0.1, every: 16, judges: [{kind: answer, column: answer}]}'
    """
    from polar_rm.common.files import write_json
    from polar_rm.common.http import is_address
    from polar_rm.records import survey_files
    from polar_rm.rft.config import RftConfig
    from polar_rm.rft.packages import require_packages

    problems = Problems()
    config = load(RftConfig, arguments, on_bad_row, problems)
    for file in (*config.data, *(config.evaluate.data if config.evaluate else ())):
        with problems.noted():
            check_data(file)
    if not is_address(config.reward.source):
        with problems.noted():
            check_reward_model("reward.source", config.reward.source)
    if not dry_run:
        with problems.noted():
            require_packages(config)
    find_language_model(config.policy.model, config.policy.gguf_file, problems)
    problems.check()
    if is_main_rank():
        report_files("data", survey_files(config.data, [config.output]))
        if config.evaluate and config.evaluate.data:
            report_files("held-out data", survey_files(config.evaluate.data, [config.output]))
    if dry_run:
        _show_plan(config, json)
        return
    from polar_rm.rft.run import run

    results = run(config, _show_rft)
    if is_main_rank():
        if json:
            write_json(json, results)
        for sentence in results.get("sentences", []):
            print_text(sentence)
        message(f"report in {config.output / 'report.html'}")
    if stopped := results.get("stopped"):
        kept = config.output / f"checkpoint-{stopped['step']}"
        message(f"stopped: {stopped['reason']}; {kept} is kept, and another limit in monitor.{stopped['quantity']} lets it go on")
        raise typer.Exit(1)
    message(f"policy saved in {config.output / 'policy'}")


def _show_plan(config: RftConfig, json: Path | None) -> None:
    from polar_rm.common.config import to_yaml
    from polar_rm.common.files import write_json
    from polar_rm.rft.plan import make_plan

    plan = make_plan(config)
    for note in plan["notes"]:
        message(f"note: {note}")
    print_text(to_yaml(config))
    shown = {name.replace("_", " "): value for name, value in plan.items() if name != "notes"}
    print_values((name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in shown.items())
    if json:
        write_json(json, plan)


def _show_rft(row: dict[str, Any]) -> None:
    name = f"{row['policy']} " if "policy" in row else ""
    held_out = {name.removeprefix("held_out/"): value for name, value in row.items() if name.startswith("held_out/")}
    if held_out:
        values = ", ".join(f"{name} {value:.3f}" for name, value in held_out.items())
        message(f"{name}step {row['step']}: held-out prompts: {values}")
    elif "reward" in row:  # the last row is a summary
        length = row["completions/mean_length"]
        message(f"step {row['step']}: reward {row['reward']:+.3f}, {length:.0f} tokens per completion")
    elif name and "loss" in row:
        message(f"{name}step {row['step']}: loss {row['loss']:.3f}")

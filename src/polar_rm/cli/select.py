"""The verb select: data for SFT or DPO, picked by reward."""

from __future__ import annotations

from dataclasses import asdict

from polar_rm.cli.options import Arguments, BadRowsOf, DryRun, JsonFile, load, verb
from polar_rm.cli.output import message, messages, print_text, print_values
from polar_rm.common.extras import needs
from polar_rm.common.progress import show_progress


@verb("Data")
def select(arguments: Arguments, dry_run: DryRun = False, json: JsonFile = None, on_bad_row: BadRowsOf = None) -> None:
    """Select answers by reward, as rows for SFT or pairs for DPO, and report what was dropped and why.

    Inputs are scored rows {prompt, output, score}, lists, or trajectories; or items, with their scores from `polar score`
    (`scores`) or a `model` that scores them first. Rules, in this order: length, near_duplicates, threshold, best_of_n,
    top_share, quotas. The output folder gets `selected.jsonl`, `report.html`, `report.json`, `manifest.json` and
    `refused.jsonl`. After an interruption the same command continues.

    Examples:

        polar select recipe:select inputs='[scored.jsonl]' output=runs/sft --dry-run

        polar select inputs='[scored.jsonl]' output=runs/sft best_of_n=1 top_share=0.25

        polar select inputs='[items.jsonl]' scores='[scores.jsonl]' output=runs/dpo kind=pairs pairs.margin=0.5

        polar select inputs='[items.jsonl]' model=DIR transform=probability threshold='{of: probability, at_least: 0.6}' output=O
    """
    from polar_rm.common.config import to_yaml
    from polar_rm.common.files import write_json
    from polar_rm.selection.config import SelectConfig

    config = load(SelectConfig, arguments, on_bad_row)
    with needs("evaluate", "polar select"):
        from polar_rm.selection.report import summary
        from polar_rm.selection.run import plan
        from polar_rm.selection.run import select as run_selection

    if dry_run:
        with show_progress(messages) as progress:
            planned = plan(config, progress)
        print_text(to_yaml(config))
        print_values(planned.lines)
        for line in planned.warnings:
            message(f"warning: {line}")
        if json:
            write_json(json, asdict(planned))
        return
    with show_progress(messages) as progress:
        result = run_selection(config, progress)
    print_values(summary(result.report))
    if json:
        write_json(json, result.report)
    message(result.describe())
    for line in result.report["warnings"]:
        message(f"warning: {line}")

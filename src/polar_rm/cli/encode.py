"""The verb encode: comparisons to an encoded corpus."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from polar_rm.cli.options import Arguments, BadRowsOf, DryRun, JsonFile, load, verb
from polar_rm.cli.output import message, messages, print_text, print_values, report_files
from polar_rm.cli.train import check_model_config
from polar_rm.common.problems import Problems
from polar_rm.common.progress import show_progress


@verb("Data")
def encode(
    arguments: Arguments,
    dry_run: DryRun = False,
    json: JsonFile = None,
    on_bad_row: BadRowsOf = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the contents of finished shards with their checksums, not only their sizes.")
    ] = False,
) -> None:
    """Encode comparisons as tokens once, with all cores or a cluster, for trainings on large corpora.

    `data.train` and `data.eval` of a training take the output folder. Small data need no such step. A killed command continues
    with the missing shards; the same command on several machines that share the folder works on it together.

    Examples:

        polar encode recipes/encode.yaml inputs='[runs/corpus/train]' model.init=path/to/causal-lm output=runs/encoded --dry-run

        polar encode recipes/encode.yaml inputs='[runs/corpus/train]' model.init=path/to/causal-lm output=runs/encoded engine=ray

        polar encode recipes/encode.yaml inputs='[pairs.jsonl]' model.resume_from=runs/rm/model output=runs/encoded --verify
    """
    from polar_rm.common.config import to_yaml
    from polar_rm.common.files import write_json
    from polar_rm.records import survey_files
    from polar_rm.training.encode_config import EncodeConfig

    problems = Problems()
    config = load(EncodeConfig, arguments, on_bad_row, problems)
    check_model_config(config.model, problems)
    problems.check()
    report_files("inputs", survey_files(config.inputs, [config.output]))
    from polar_rm.training.encode import encode as run
    from polar_rm.training.encode import plan_encoding

    if dry_run:
        planned = plan_encoding(config)
        print_text(to_yaml(config))
        print_values(planned.describe())
        if json:
            write_json(json, asdict(planned))
        return
    with show_progress(messages, unit="MiB") as progress:
        report = run(config, progress, verify=verify, report=message)
    if json:
        write_json(json, report.to_json())
    message(report.describe())
    if report.bad_rows:
        message(f"{report.bad_rows:,} bad rows were skipped, see {report.side_file}")
    for warning in report.warnings:
        message(f"warning: {warning}")

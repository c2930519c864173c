"""Verbs for data: sample, corpus, references, inspect."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polar_rm.cli.options import DATA, Arguments, BadRowsOf, DryRun, JsonFile, ModelDir, load, verb
from polar_rm.cli.output import message, messages, print_table, print_text, print_values, report_files
from polar_rm.common.extras import needs
from polar_rm.common.paths import check_data
from polar_rm.common.progress import show_progress
from polar_rm.errors import PolarError


@verb("Data")
def sample(
    arguments: Arguments,
    dry_run: DryRun = False,
    json: JsonFile = None,
    on_bad_row: BadRowsOf = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also repeat requests that gave an empty text, were too long or were refused.")
    ] = False,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="For --dry-run: assumed speed of policies without a measured one.", min=0.001)
    ] = None,
) -> None:
    """Sample trajectories from a zoo of policies.

    A second run with the same config draws only the missing samples. Exit code 2: samples are missing; all others are kept.
    A server that is not there at the start is told within seconds; one that is lost during the run is asked again for minutes.

    Examples:

        polar sample policies.yaml prompts=prompts.jsonl output=runs/corpus limit=10

        polar sample policies.yaml --dry-run --tokens-per-second 500
    """
    from polar_rm.common.files import write_json
    from polar_rm.sampling.config import SamplingConfig

    config = load(SamplingConfig, arguments, on_bad_row)
    from polar_rm.sampling.prompts import input_files
    from polar_rm.sampling.runner import run_sampling

    for source in config.prompts:
        report_files("prompts", input_files(source))
    if dry_run:
        from polar_rm.common.config import to_yaml
        from polar_rm.common.outputs import FOUND, output_line
        from polar_rm.sampling.estimate import describe, estimate

        estimates = estimate(config, tokens_per_second)
        print_text(to_yaml(config))
        print_text(describe(estimates))
        left, planned = (sum(getattr(each, name) for each in estimates) for name in ("requests", "planned"))
        state = "new" if left == planned else "unfinished" if left else "finished"
        print_values([("output", output_line(config.output, FOUND[state]))])
        if json:
            write_json(json, [asdict(each) for each in estimates])
        return
    with show_progress(messages) as progress:
        report = run_sampling(config, progress, retry_failed=retry_failed)
    if json:
        write_json(json, report.to_json())
    message(report.describe())
    report.check()


@verb("Data")
def corpus(arguments: Arguments, dry_run: DryRun = False, json: JsonFile = None, on_bad_row: BadRowsOf = None) -> None:
    """Build clean contrastive comparisons from trajectories, and report what simple baselines achieve on them.

    Inputs: output of `polar sample`, or Parquet, JSON, CSV or Arrow of {source, prompt_id, prompt, policy, sample_id, text}.
    With `pairing.kind: continuations`, also plain texts {text}: comparisons without policies and references.
    The output folder gets `train/`, `unseen_prompts/`, `unseen_policies/` or `unseen_texts/` (Parquet), `report.html`,
    `report.json`, `manifest.json`, `refused.jsonl` and `contaminated.jsonl`. After an interruption the same command continues.

    Examples:

        polar corpus recipes/corpus.yaml inputs='[runs/samples]' output=runs/corpus

        polar corpus recipes/corpus.yaml inputs='[a.parquet]' output=runs/triples pairing='{kind: triples, negatives: 1}'

        polar corpus recipes/corpus.yaml inputs='[runs/samples]' output=runs/corpus splits.policies=2 --dry-run

        polar corpus recipe:corpus_continuations inputs='[texts.jsonl]' output=runs/texts
    """
    from polar_rm.common.config import to_yaml
    from polar_rm.common.files import write_json
    from polar_rm.corpus.config import CorpusConfig
    from polar_rm.records import survey_files

    config = load(CorpusConfig, arguments, on_bad_row)
    for source in config.inputs:
        check_data(source)
    with needs("evaluate", "polar corpus"):
        from polar_rm.corpus.build import build, describe_output
        from polar_rm.corpus.plan import describe, input_files, make_plan
        from polar_rm.corpus.report import summary

    report_files("inputs", input_files(config))
    if config.decontamination.files:
        report_files("decontamination", survey_files(config.decontamination.files))
    if dry_run:
        planned = make_plan(config)
        lines = dict(describe(config, planned)) | {"output": describe_output(config, planned)}
        print_text(to_yaml(config))
        print_values(lines.items())
        if json:
            write_json(json, lines)
        return
    with show_progress(messages) as progress:
        report = build(config, progress=progress)
    for line in summary(report):
        print_text(line)
    if json:
        write_json(json, report)
    message(f"corpus in {config.output}, report in {config.output / 'report.html'}")


@verb("Data")
def references(
    arguments: Arguments,
    dry_run: DryRun = False,
    json: JsonFile = None,
    on_bad_row: BadRowsOf = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="For --dry-run: assumed speed of a policy without a measured one.", min=0.001)
    ] = None,
) -> None:
    """Give rows without a reference one: a field of theirs, a policy's answer, or the best other answer to the same prompt.

    Rows are comparisons, items {prompt, output} or prompts. The metadata of every written row and the manifest say where the
    reference came from, and so do the reports of `polar evaluate` and `polar audit`. After an interruption the same command
    continues.

    Examples:

        polar references inputs='[pairs.jsonl]' output=runs/references reference='{kind: column, column: gold}'

        polar references recipes/references.yaml inputs='[pairs.jsonl]' output=runs/references --dry-run

        polar references inputs='[ranked.parquet]' output=runs/references reference='{kind: sibling}' format=parquet
    """
    from polar_rm.common.config import to_yaml
    from polar_rm.common.files import write_json
    from polar_rm.references.config import ReferencesConfig

    config = load(ReferencesConfig, arguments, on_bad_row)
    for source in config.inputs:
        check_data(source)
    from polar_rm.records import survey_files
    from polar_rm.references.run import make_references, plan

    if not config.suite:  # a benchmark selects its own files
        report_files("inputs", survey_files(config.inputs, [config.output]))
    if dry_run:
        planned = plan(config, tokens_per_second)
        print_text(to_yaml(config))
        print_values(planned.describe())
        if json:
            write_json(json, asdict(planned))
        return
    with show_progress(messages) as progress:
        report = make_references(config, progress)
    if json:
        write_json(json, asdict(report))
    message(report.describe())
    for line in report.warnings:
        message(f"warning: {line}")


@verb("Data")
def inspect(
    file: Annotated[Path, typer.Argument(help="Comparisons: JSON, CSV, Parquet, Arrow.", **DATA)],
    model: ModelDir,
    row: Annotated[int, typer.Option(help="Number of the row, from 1; in JSONL the number of the line.", min=1)] = 1,
    ids: Annotated[bool, typer.Option("--ids", help="Show every token with its id.")] = False,
) -> None:
    """Show one encoded comparison in colour: prefix, branches, score positions, truncation.

    Examples:

        polar inspect pairs.jsonl --row 3 --model runs/rm/model
    """
    from polar_rm.encoding.encoder import Encoder
    from polar_rm.encoding.inspection import render
    from polar_rm.records import read_numbered_comparisons

    encoder = Encoder.from_pretrained(model)
    comparison = next((comparison for number, comparison in read_numbered_comparisons(file) if number == row), None)
    if comparison is None:
        raise PolarError(f"{file}: the file has no row {row}")
    try:
        print_table(render(comparison, encoder, ids=ids))
    except PolarError as error:
        raise PolarError(f"{file}: row {row}: {error}") from None

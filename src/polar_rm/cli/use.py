"""Verbs that use a model: score, evaluate, convert, parity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polar_rm.cli.options import (
    BadRows,
    Budget,
    Device,
    Dtype,
    JsonFile,
    ModelDir,
    app,
    console,
    messages,
    print_values,
    report_bad,
)
from polar_rm.common.progress import progress_bar

if TYPE_CHECKING:
    pass


@app.command()
def score(
    model: ModelDir,
    source: Annotated[Path, typer.Option("--input", help="Items {prompt, reference, output[, wrapper]}: JSONL or Parquet.")],
    target: Annotated[Path, typer.Option("--output", help="JSONL of {row, reward, n_tokens, truncated, metadata}.")],
    dtype: Dtype = "float32",
    device: Device = "auto",
    token_budget: Budget = 8192,
    on_bad_row: BadRows = "error",
) -> None:
    """Score a file of items: one raw reward per item, in input order.

    Items next to each other with the same prompt and reference share their prefix. Interrupted, the same command continues.

    Examples:

        polar score --model runs/rm/model --input items.jsonl --output scores.jsonl
    """
    from polar_rm.common.files import sha256
    from polar_rm.common.locks import owned
    from polar_rm.model.devices import claim_device
    from polar_rm.model.reward_model import RewardModel
    from polar_rm.records import OnBadRow
    from polar_rm.scoring.files import check_places, score_file

    check_places(source, target)
    with owned(target, "score"):
        reward_model = RewardModel.from_pretrained(model, dtype=dtype, device=claim_device(device))
        bad = OnBadRow(on_bad_row, target.with_name(target.name + ".rejected.jsonl"))
        identity = {
            "model": sha256(model),
            "encoder_hash": reward_model.encoder.hash,
            "input": sha256(source),
            "dtype": dtype,
        }
        rows = 0
        with messages.status("scoring") as status:
            for rows in score_file(reward_model, source, target, identity=identity, token_budget=token_budget, on_bad_row=bad):
                status.update(f"scoring: {rows:,} items")
    messages.print(f"{rows:,} items scored into {target}")
    report_bad(bad)


@app.command()
def evaluate(
    files: Annotated[list[Path], typer.Argument(help="Comparisons: ranked rows or {prompt, reference, chosen, rejected}.")],
    model: ModelDir,
    by: Annotated[
        str | None, typer.Option(help="Also per value of this metadata field, e.g. `subset` or `meta.language`.")
    ] = None,
    json: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracies with intervals into this PNG or SVG.")] = None,
    reference: Annotated[
        Literal["given", "empty", "shuffled"],
        typer.Option(help="What scorers get as reference; `shuffled` is another prompt's."),
    ] = "given",
    dtype: Dtype = "float32",
    device: Device = "auto",
    token_budget: Budget = 8192,
    on_bad_row: BadRows = "error",
    seed: Annotated[int, typer.Option(help="Of the bootstrap and of shuffled references.", min=0)] = 0,
) -> None:
    """Pairwise accuracy with a 95% interval, next to the baselines length and TF-IDF on the same pairs.

    Examples:

        polar evaluate pairs.jsonl --model runs/rm/model --by subset --json accuracy.json --plot accuracy.png

        polar evaluate bench.parquet --model runs/rm/model --reference empty
    """
    from polar_rm.common.files import check_target
    from polar_rm.evaluation import evaluate_files, report
    from polar_rm.model.devices import claim_device
    from polar_rm.records import OnBadRow
    from polar_rm.reporting.plots import PLOT_SUFFIXES

    claimed = claim_device(device)
    if plot:
        check_target(plot, PLOT_SUFFIXES)
    bad = OnBadRow(on_bad_row, Path(f"{files[0].name}.rejected.jsonl"))
    with progress_bar(messages) as bar:
        task = bar.add_task("evaluating", total=None, status="")
        result = evaluate_files(
            model,
            files,
            by=by,
            reference=reference,
            seed=seed,
            dtype=dtype,
            device=claimed,
            token_budget=token_budget,
            on_bad_row=bad,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(report.render(result.report))
    if json:
        report.write_report(json, result.report)
    if plot:
        report.write_plot(plot, result.report)
    report_bad(bad)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a reward model: official, or of xtuner, TRL or OpenRLHF.")],
    target: Annotated[Path, typer.Argument(help="New folder.")],
    to: Annotated[
        Literal["native", "internlm2"], typer.Option(help="`internlm2` writes a native folder in the official layout.")
    ] = "native",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="Of the written weights; by default as they are.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written, then exit.")] = False,
) -> None:
    """Convert a checkpoint, exactly and without running its code; refuse what can't be exact.

    A shard is in memory at a time: a 7B model needs less than 4 GB.

    Examples:

        polar convert internlm/POLAR-7B models/polar-7b

        polar convert models/polar-7b models/polar-7b-lmdeploy --to internlm2
    """
    from polar_rm.conversion import convert as conversion

    if dry_run:
        done = conversion.plan(source, to=to, dtype=dtype)
    else:
        with messages.status("converting"):
            done = conversion.convert(source, target, to=to, dtype=dtype)
    print_values(done.describe())
    if not dry_run:
        messages.print(f"model saved in {target}")


@app.command()
def parity(
    model: Annotated[Path, typer.Argument(help="Folder of a reward model saved by polar.")],
    file: Annotated[
        Path | None, typer.Argument(help="Items {prompt, reference, output}; by default a set of awkward ones.")
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            help="`serve`: our server in this process, over each protocol. URL: a running server. `vllm`: the one of this "
            "environment. `transformers`: only trainer and scorer.",
            metavar="serve|URL|vllm|transformers",
        ),
    ] = "serve",
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the key of the server at URL.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference that passes. Half precision on another engine needs about 0.05.", min=0)
    ] = 1e-3,
    json: JsonFile = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Same ids and same scores in trainer, scorer, transformers, our server, vLLM and any other? Exit code 1 where not.

    Every protocol that the server speaks is tried, with token ids and with text.

    Examples:

        polar parity runs/rm/model

        polar parity runs/rm/model items.jsonl --against http://127.0.0.1:30000 --json parity.json
    """
    from polar_rm import parity as routes
    from polar_rm.common.files import write_json
    from polar_rm.common.http import key_from_environment
    from polar_rm.model.devices import pick_device
    from polar_rm.records import read_items

    items = list(read_items(file)) if file else []
    api_key = key_from_environment(api_key_env, "--api-key-env") if api_key_env else None
    result = routes.check(
        model, items, against=against, api_key=api_key, dtype=dtype, device=pick_device(device), tolerance=tolerance
    )
    console.print(routes.render(result))
    if json:
        write_json(json, result.to_json())
    if not result.ok:
        raise typer.Exit(1)

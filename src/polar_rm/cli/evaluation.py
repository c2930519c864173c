"""Verbs that evaluate: evaluate, parity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from polar_rm.cli.options import DATA, MODEL, BadRows, Device, JsonFile, ModelDir, Precision, RowTokens, StripPrompt, verb
from polar_rm.cli.output import messages, print_table
from polar_rm.common.progress import show_progress

By = Annotated[
    str | None, typer.Option(help="Also report each value of this metadata field, such as `subset` or `meta.language`.")
]
Plot = Annotated[Path | None, typer.Option(help="Write a plot of accuracies with intervals to this PNG or SVG.")]


@verb("Evaluation")
def evaluate(
    files: Annotated[
        list[Path], typer.Argument(help="Comparisons: ranked rows or {prompt, reference, chosen, rejected}.", **DATA)
    ],
    model: ModelDir,
    by: By = None,
    json: JsonFile = None,
    plot: Plot = None,
    reference: Annotated[
        Literal["given", "empty", "shuffled"],
        typer.Option(help="The reference that scorers get; `shuffled`: the reference of another prompt."),
    ] = "given",
    precision: Precision = "fp32",
    device: Device = "auto",
    row_tokens: RowTokens = 8192,
    on_bad_row: BadRows = "error",
    strip_prompt: StripPrompt = False,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap and of shuffled references.", min=0)] = 0,
) -> None:
    """Measure pairwise accuracy with a 95% interval, and that of the baselines length and TF-IDF on the same pairs.

    Examples:

        polar evaluate pairs.jsonl --model runs/rm/model --by subset --json accuracy.json --plot accuracy.png

        polar evaluate bench.parquet --model runs/rm/model --reference empty
    """
    from polar_rm.common.extras import needs
    from polar_rm.common.files import check_target

    with needs("evaluate", "polar evaluate"):
        from polar_rm.evaluation import evaluate_files, report
        from polar_rm.reporting.plots import PLOT_SUFFIXES
    if plot:
        check_target(plot, PLOT_SUFFIXES)
    from polar_rm.model.devices import claim_device, dtype_name
    from polar_rm.records import OnBadRow, side_file

    claimed = claim_device(device)
    bad = OnBadRow(on_bad_row, side_file(json or plot, files), strip_prompt=strip_prompt)
    with show_progress(messages) as progress:
        result = evaluate_files(
            model,
            files,
            by=by,
            reference=reference,
            seed=seed,
            dtype=dtype_name(precision, claimed),
            device=claimed,
            row_tokens=row_tokens,
            on_bad_row=bad,
            outputs=[path for path in (json, plot) if path],
            progress=progress,
        )
    print_table(report.render(result.report))
    if json:
        report.write_report(json, result.report)
    if plot:
        report.write_plot(plot, result.report)


@verb("Evaluation")
def parity(
    model: Annotated[Path, typer.Argument(help="Folder of a reward model saved by polar.", **MODEL)],
    file: Annotated[
        Path | None, typer.Argument(help="Items {prompt, reference, output}; default: a set of difficult items.", **DATA)
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            help="`serve`: our server in this process, over each protocol. URL: a running server. `vllm`: the vLLM of this "
            "environment. `transformers`: only trainer and scorer.",
            metavar="serve|URL|vllm|transformers",
        ),
    ] = "serve",
    api_key_env: Annotated[
        str | None, typer.Option(help="NAME of the environment variable with the key of the server at URL.")
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(help="Maximum difference of scores. Half precision on another engine needs about 0.05.", min=0),
    ] = 1e-3,
    json: JsonFile = None,
    precision: Precision = "fp32",
    device: Device = "auto",
) -> None:
    """Check that trainer, scorer, transformers, servers and vLLM give the same ids and scores. Exit code 1: they differ.

    It tries every protocol that the server supports, with token ids and with text.

    Examples:

        polar parity runs/rm/model

        polar parity runs/rm/model items.jsonl --against http://127.0.0.1:30000 --json parity.json
    """
    from polar_rm import parity as routes
    from polar_rm.common.files import write_json
    from polar_rm.common.http import key_from_environment
    from polar_rm.model.devices import dtype_name, pick_device
    from polar_rm.records import read_items

    items = list(read_items(file)) if file else []
    api_key = key_from_environment(api_key_env, "--api-key-env") if api_key_env else None
    claimed = pick_device(device)
    dtype = dtype_name(precision, claimed)
    result = routes.check(model, items, against=against, api_key=api_key, dtype=dtype, device=claimed, tolerance=tolerance)
    print_table(routes.render(result))
    if json:
        write_json(json, result.to_json())
    if not result.ok:
        raise typer.Exit(1)

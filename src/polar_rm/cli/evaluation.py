"""Verbs that evaluate: evaluate, parity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from polar_rm.cli.options import (
    DATA,
    MODEL,
    BadRows,
    Combined,
    Device,
    JsonFile,
    KeyEnv,
    Precision,
    References,
    RowTokens,
    StripPrompt,
    TableFormat,
    verb,
    writable,
)
from polar_rm.cli.output import messages, print_table
from polar_rm.common.progress import show_progress

_Contenders = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="A contender; it may be repeated. A folder saved by polar, `hf:FOLDER` (an ordinary reward model, in its own chat "
        "template), `http://HOST:PORT`, `scores:FILE`, `length`, `tfidf`, `embedding:FOLDER`. NAME=... sets its name.",
        metavar="[NAME=]CONTENDER",
    ),
]
_Files = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Comparisons: ranked rows or {prompt, reference, chosen, rejected}. With --suite: the benchmark's file or folder.",
        **DATA,
    ),
]
_Suite = Annotated[
    str | None, typer.Option(help="A published benchmark in one file or folder, measured by its own rule; `list` prints all.")
]
_By = Annotated[
    str | None, typer.Option(help="Also report each value of this metadata field, such as `subset` or `meta.language`.")
]
_Plot = Annotated[Path | None, typer.Option(help="Write a plot of accuracies with intervals to this PNG or SVG.")]
_Pairs = Annotated[
    Path | None,
    typer.Option(help="Write one row per pair, with texts and scores, to this JSONL, Parquet or CSV.", callback=writable),
]
_Html = Annotated[
    Path | None, typer.Option(help="Write a page of the models' mistakes, confident ones first, to this file.", callback=writable)
]
_HtmlRows = Annotated[int, typer.Option(help="Maximum number of pairs on the page of --html.", min=1)]
_Limit = Annotated[int | None, typer.Option(help="Use only the first N comparisons, for a trial.", min=1, metavar="N")]
_Reference = Annotated[
    Literal["given", "empty", "shuffled", "swapped", "all"] | None,
    typer.Option(
        help="The reference that contenders get; `shuffled`: of another prompt; `swapped`: a worse answer; `all`: what each "
        "contender gains from its reference, and whether it follows it. Default: `given`, or `empty` if none needs one."
    ),
]


@verb("Evaluation")
def evaluate(
    files: _Files = None,
    model: _Contenders = None,
    suite: _Suite = None,
    by: _By = None,
    json: JsonFile = None,
    plot: _Plot = None,
    pairs: _Pairs = None,
    html: _Html = None,
    html_rows: _HtmlRows = 500,
    table: TableFormat = None,
    limit: _Limit = None,
    reference: _Reference = None,
    references: References = None,
    combine: Combined = "mean",
    precision: Precision = "fp32",
    device: Device = "auto",
    row_tokens: RowTokens = 8192,
    api_key_env: KeyEnv = None,
    on_bad_row: BadRows = "error",
    strip_prompt: StripPrompt = False,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap, and of shuffled and swapped references.", min=0)] = 0,
) -> None:
    """Compare reward models: accuracies with 95% intervals, and which one is better.

    The comparisons come from your files or from a published benchmark, which is measured by its own rule. The baselines length
    and TF-IDF are measured on the same pairs. Models are loaded one after another.

    Examples:

        polar evaluate pairs.jsonl --model runs/rm/model --by subset --json accuracy.json --plot accuracy.png

        polar evaluate pairs.jsonl --model ours=runs/rm/model --model theirs=hf:models/skywork --html mistakes.html

        polar evaluate bench.parquet --model runs/rm/model --model http://127.0.0.1:30000 --reference empty --limit 100

        polar evaluate reward-bench-2/data --suite rewardbench-2 --model hf:models/skywork --table md

        polar evaluate --suite list
    """
    from polar_rm.common.extras import needs

    with needs("evaluate", "polar evaluate"):
        from polar_rm.cli import results
    models = results.Models(model or [], precision, device, row_tokens, api_key_env)
    data = results.Data(files or [], references, limit, seed, on_bad_row, strip_prompt, combine)
    targets = results.ResultFiles(json, plot, pairs, html, html_rows, table)
    results.run(models, data, targets, suite=suite, by=by, reference=reference)


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
    options: dict[str, Any] = {"against": against, "api_key": api_key, "tolerance": tolerance}
    with show_progress(messages) as progress:
        result = routes.check(model, items, dtype=dtype, device=claimed, progress=progress, **options)
    print_table(routes.render(result))
    if json:
        write_json(json, result.to_json())
    if not result.ok:
        raise typer.Exit(1)

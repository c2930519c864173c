"""The verb bestofn: what picking by a reward model yields, and where picking harder does harm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from polar_rm.cli.options import (
    DATA,
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
)
from polar_rm.cli.output import messages
from polar_rm.common.progress import show_progress

_Samples = Annotated[
    list[Path],
    typer.Argument(
        help="Samples with gold values: rows {prompt, reference or references, output, gold}, lists {outputs, golds}, or "
        "trajectories.",
        metavar="FILE...",
        **DATA,
    ),
]
_Contenders = Annotated[
    list[str],
    typer.Option(
        "--model",
        help="A contender of `polar evaluate`: a folder saved by polar, `hf:FOLDER`, `http://HOST:PORT`, `scores:FILE`, "
        "`length`, `tfidf`, `embedding:FOLDER`; can be given several times. NAME=... sets its name.",
        metavar="[NAME=]CONTENDER",
    ),
]
_Gold = Annotated[
    str | None,
    typer.Option(
        help="Column of the gold values, numbers or booleans, such as a checker's verdict. Default: `gold`, or `golds` for lists."
    ),
]
_MaxN = Annotated[
    int | None,
    typer.Option(help="Largest n. Default: the largest n up to 64 for which half of the prompts have enough samples.", min=2),
]
_Plot = Annotated[Path | None, typer.Option(help="Draw gold and proxy over the KL into this PNG or SVG.")]
_Limit = Annotated[
    int | None, typer.Option(help="Use only the samples for the first N prompts, for a trial.", min=1, metavar="N")
]
_Reference = Annotated[
    Literal["given", "empty"] | None,
    typer.Option(help="The reference that contenders get. Default: `given`, or `empty` if none needs one."),
]


@verb("Evaluation")
def bestofn(
    files: _Samples,
    model: _Contenders,
    gold: _Gold = None,
    max_n: _MaxN = None,
    json: JsonFile = None,
    plot: _Plot = None,
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
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
) -> None:
    """Pick the top-scored of n samples: what is gained by a gold measure, and where picking harder does harm.

    Each prompt has several samples of one policy, each with a gold value. For n = 1, 2, 4, ... the table has the gold of the
    picked sample, exact over all subsets of n, beside a random pick and an oracle; and the contender's own score, which always
    rises. Where gold falls, the contender is over-optimised.

    Examples:

        polar bestofn samples.jsonl --model runs/rm/model --plot curves.png --json bestofn.json

        polar bestofn trajectories.parquet --gold correct --model ours=runs/rm/model --model theirs=hf:models/skywork --max-n 16

        polar bestofn samples.jsonl --model scores:scores.jsonl --references references.jsonl --table md
    """
    from polar_rm.common.extras import needs

    with needs("evaluate", "polar bestofn"):
        from polar_rm.cli.results import Data, Models, ResultFiles
        from polar_rm.evaluation.bestofn import best_of_n_files
        from polar_rm.evaluation.bestofn.tables import summarise, write_plot
    targets = ResultFiles(json, plot, table=table)
    targets.check()
    with show_progress(messages) as progress:
        result = best_of_n_files(
            Models(model, precision, device, row_tokens, api_key_env).contenders(),
            files,
            gold=gold,
            max_n=max_n,
            reference=reference,
            references=references,
            combine=combine,
            limit=limit,
            seed=seed,
            on_bad_row=Data(files, references, limit, seed, on_bad_row, strip_prompt).bad_rows(targets.files()),
            outputs=targets.files(),
            progress=progress,
        )
    if plot:
        write_plot(plot, result.report)
    targets.show_report(result.report, summarise(result.report))

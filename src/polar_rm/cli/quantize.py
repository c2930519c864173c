"""The verb quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polar_rm.cli.options import DATA, MODEL, BadRows, RowTokens, StripPrompt, verb
from polar_rm.cli.output import message, messages, report_bad
from polar_rm.common.progress import show_progress

PACKAGED = "package:polar_rm/quickstart/data/held_out.jsonl"

_Float32 = Annotated[
    list[str] | None,
    typer.Option(
        "--float32",
        help="The end of the names of layers that stay in float32; it may be repeated. Default: down_proj. `none` for none.",
        metavar="NAME",
    ),
]


@verb("Evaluation")
def quantize(
    model: Annotated[Path, typer.Argument(help="Folder of a reward model saved by polar; it gets the result.", **MODEL)],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Comparisons like those that the model will judge; by default those of the package.",
            metavar="[PAIRS...]",
            **DATA,
        ),
    ] = None,
    float32: _Float32 = None,
    minimum: Annotated[float, typer.Option(help="Rank correlation below which int8 is refused.", min=0, max=1)] = 0.995,
    force: Annotated[bool, typer.Option("--force", help="Take int8 whatever the agreement is.")] = False,
    limit: Annotated[int, typer.Option(help="Use the first N comparisons.", min=1, metavar="N")] = 200,
    row_tokens: RowTokens = 8192,
    on_bad_row: BadRows = "error",
    strip_prompt: StripPrompt = False,
) -> None:
    """Measure what int8 does to a model's rewards: `--precision int8` needs the result.

    int8 is faster than float32 on CPUs with VNNI or AMX. The command scores comparisons in both, and writes into the model's
    folder (`int8.json`) how far they agree. Weights stay as they are: they are quantised when the model is loaded.

    Examples:

        polar quantize runs/rm/model

        polar quantize runs/rm/model held_out.jsonl && polar serve --model runs/rm/model --precision int8
    """
    from polar_rm.common.extras import needs
    from polar_rm.common.sources import check_own, data_path

    check_own(model)
    with needs("evaluate", "polar quantize"):
        from polar_rm.quantization.run import FLOAT32_LAYERS, describe, quantize_model
    from polar_rm.model.devices import claim_device
    from polar_rm.records import OnBadRow, side_file

    claim_device("cpu")
    files = files or [data_path(PACKAGED)]
    bad = OnBadRow(on_bad_row, side_file(model, files), strip_prompt=strip_prompt)
    with show_progress(messages) as progress:
        record = quantize_model(
            model,
            files,
            float32_layers=FLOAT32_LAYERS if float32 is None else [name for name in float32 if name != "none"],
            minimum=minimum,
            force=force,
            limit=limit,
            row_tokens=row_tokens,
            on_bad_row=bad,
            progress=progress,
        )
    report_bad(bad)
    message(f"{describe(record)}; see {model / 'int8.json'}")

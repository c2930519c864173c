"""The verb calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polar_rm.cli.options import DATA, MODEL, BadRows, Device, JsonFile, Precision, RowTokens, StripPrompt, verb
from polar_rm.cli.output import message, messages, print_table
from polar_rm.common.progress import show_progress

_HeldOut = Annotated[
    list[Path],
    typer.Argument(
        help="Comparisons that the model was not trained on, like those that it will judge; some thousand pairs.",
        metavar="PAIRS...",
        **DATA,
    ),
]
_Reliability = Annotated[
    Path | None, typer.Option(help="Draw the reliability and the accuracy of the most certain pairs into this PNG or SVG.")
]


@verb("Evaluation")
def calibrate(
    model: Annotated[Path, typer.Argument(help="Folder of a reward model saved by polar; it gets the result.", **MODEL)],
    files: _HeldOut,
    json: JsonFile = None,
    plot: _Reliability = None,
    limit: Annotated[
        int | None, typer.Option(help="A trial with the first N comparisons, which writes no scale.", min=1, metavar="N")
    ] = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    row_tokens: RowTokens = 8192,
    on_bad_row: BadRows = "error",
    strip_prompt: StripPrompt = False,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
) -> None:
    """Give a model's rewards a scale: probabilities, their calibration error, and how certain each difference is.

    Writes `calibration.json` and `calibration/uncertainty.safetensors` into the model's folder. `polar score`, `polar serve` and
    the trainers' adapters use them; they are refused beside another model. An interrupted run changes nothing.

    Examples:

        polar calibrate runs/rm/model held_out.jsonl

        polar calibrate runs/rm/model held_out.parquet --json calibration.json --plot calibration.png
    """
    from polar_rm.common.extras import needs
    from polar_rm.common.sources import check_own

    with needs("evaluate", "polar calibrate"):
        from polar_rm.calibration import calibrate_files, report
        from polar_rm.reporting.plots import check_plot
    if plot:
        check_plot(plot)
    check_own(model)
    from polar_rm.model.devices import claim_device, dtype_name
    from polar_rm.records import OnBadRow, side_file

    claimed = claim_device(device)
    bad = OnBadRow(on_bad_row, side_file(json or plot, files), strip_prompt=strip_prompt)
    with show_progress(messages) as progress:
        result = calibrate_files(
            model,
            files,
            seed=seed,
            dtype=dtype_name(precision, claimed),
            device=claimed,
            row_tokens=row_tokens,
            on_bad_row=bad,
            outputs=[path for path in (json, plot) if path],
            limit=limit,
            progress=progress,
        )
    print_table(report.render(result))
    if json:
        report.write_report(json, result)
    if plot:
        report.write_plot(plot, result)
    if limit is None:
        message(f"the scale is in {model / 'calibration.json'}")

"""The verb audit: does a reward model read its reference and its prompt, or something else?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polar_rm.cli.options import (
    DATA,
    BadRows,
    Device,
    JsonFile,
    KeyEnv,
    Precision,
    References,
    RowTokens,
    StripPrompt,
    load,
    verb,
    writable,
)
from polar_rm.cli.output import messages, print_table
from polar_rm.common.files import write_json
from polar_rm.common.progress import show_progress
from polar_rm.errors import PolarError

if TYPE_CHECKING:
    from polar_rm.audit.run import AuditResult
    from polar_rm.cli.results import Data, Models

_Contender = Annotated[
    str,
    typer.Argument(
        help="A folder saved by polar, or another contender of `polar evaluate`: `hf:FOLDER`, `http://HOST:PORT`, `tfidf`, "
        "`length`, `embedding:FOLDER`. NAME=... names it.",
        metavar="[NAME=]MODEL",
    ),
]
_Files = Annotated[
    list[Path],
    typer.Argument(help="Comparisons: ranked rows or {prompt, reference, chosen, rejected}.", metavar="FILE...", **DATA),
]
_Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        help="Threshold at which a probe fails, such as `gain=0.05`, or a YAML file of thresholds; can be given several times. "
        "`polar config audit` explains all.",
        metavar="PROBE=VALUE|FILE",
    ),
]
_Html = Annotated[Path | None, typer.Option(help="Write a page with all findings and examples to this file.", callback=writable)]
_Plot = Annotated[Path | None, typer.Option(help="Draw the findings with intervals and thresholds into this PNG or SVG.")]


@verb("Evaluation")
def audit(
    model: _Contender,
    files: _Files,
    threshold: _Thresholds = None,
    json: JsonFile = None,
    html: _Html = None,
    plot: _Plot = None,
    limit: Annotated[
        int | None, typer.Option(help="Audit the first N comparisons only; each costs about twenty scores.", min=1, metavar="N")
    ] = None,
    reference: Annotated[
        Literal["given", "empty"], typer.Option(help="`empty` leaves out the references and their probes.")
    ] = "given",
    references: References = None,
    precision: Precision = "fp32",
    device: Device = "auto",
    row_tokens: RowTokens = 8192,
    api_key_env: KeyEnv = None,
    on_bad_row: BadRows = "error",
    strip_prompt: StripPrompt = False,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap, and of other prompts and random orders.", min=0)] = 0,
) -> None:
    """Find a reward model's shortcuts: does it read its reference and its prompt, or length and markdown?

    Pairs are scored as they are, with other references and prompts, and with answers that should lose: halved, looped, empty,
    scrambled, to another prompt. Exit code 1: a probe failed. 2: no probe was applicable. Two hundred prompts are a good number.

    Examples:

        polar audit runs/rm/model pairs.jsonl --limit 200 --html audit.html

        polar audit hf:models/skywork pairs.jsonl --threshold empty=0.9 --threshold length=0.7 --json audit.json
    """
    from polar_rm.common.extras import needs

    with needs("evaluate", "polar audit"):
        from polar_rm.audit.page import write_page, write_plot
        from polar_rm.audit.report import render
        from polar_rm.cli.results import Data, Models
        from polar_rm.reporting.plots import check_plot, require_plots
    if plot:
        check_plot(plot)
    if html:
        require_plots(f"the page {html}")
    models = Models([model], precision, device, row_tokens, api_key_env)
    data = Data(files, references, limit, seed, on_bad_row, strip_prompt)
    outputs = [path for path in (json, html, plot) if path]
    result = _run(models, data, outputs, threshold or [], use_references=reference == "given")
    print_table(render(result.report))
    if json:
        write_json(json, result.report)
    if html:
        write_page(html, result)
    if plot:
        write_plot(plot, result.report)
    if result.report["verdict"] == "failed":
        raise typer.Exit(1)
    if all(finding["verdict"] == "not applicable" for finding in result.report["findings"]):
        raise PolarError("no probe is applicable to these pairs, so nothing was audited; two hundred prompts are a good number")


def _run(models: Models, data: Data, outputs: list[Path], thresholds: list[str], *, use_references: bool) -> AuditResult:
    from polar_rm.audit.run import audit_files
    from polar_rm.audit.thresholds import Thresholds

    limits = load(Thresholds, thresholds)
    [contender] = models.contenders()
    with show_progress(messages) as progress:
        return audit_files(
            contender,
            data.files,
            use_references=use_references,
            references=data.references,
            thresholds=limits,
            limit=data.limit,
            seed=data.seed,
            on_bad_row=data.bad_rows(outputs),
            outputs=outputs,
            progress=progress,
        )

"""The verb scaling: plan, run and fit a grid of sizes and budgets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polar_rm.cli.options import Arguments, JsonFile, load, verb, verb_group
from polar_rm.cli.output import message, messages, print_table
from polar_rm.cli.train import check_inputs
from polar_rm.common.files import write_json
from polar_rm.common.problems import Problems
from polar_rm.common.progress import show_progress
from polar_rm.errors import PolarError

if TYPE_CHECKING:
    from polar_rm.scaling.config import ScalingConfig

_scaling = verb_group(
    "scaling",
    "Training",
    """Measure how the loss falls with parameters, tokens and compute: plan, run and fit a grid of training runs.

    Examples:

        polar scaling plan recipe:scaling corpus=runs/corpus output=runs/scaling

        polar scaling run recipe:scaling corpus=runs/corpus output=runs/scaling

        polar scaling fit runs/scaling --plot scaling.svg
    """,
)

_Only = Annotated[
    str | None, typer.Option(help="Only the share INDEX of COUNT, such as 2/4, for several processes.", metavar="INDEX/COUNT")
]


@verb("Training", group=_scaling)
def plan(
    arguments: Arguments,
    only: _Only = None,
    flops_per_second: Annotated[
        float | None, typer.Option(help="Assumed speed of sizes of which no run has finished.", min=1)
    ] = None,
    json: JsonFile = None,
) -> None:
    """Print the grid: parameters, tokens, steps, compute, and the time where a speed is known. Nothing is written.

    The data is encoded into a temporary folder. Finished runs tell speeds and learning rates.

    Examples:

        polar scaling plan recipe:scaling corpus=runs/corpus output=runs/scaling --flops-per-second 2e14
    """
    config, part = _load(arguments), _part(only)
    from polar_rm.scaling.plan import notes, plan_grid, runs_table, sizes_table

    planned = plan_grid(config, part=part, flops_per_second=flops_per_second, console=messages)
    print_table(sizes_table(planned).rich())
    print_table(runs_table(planned).rich())
    for line in notes(planned):
        message(line)
    if json:
        write_json(json, [each.to_json() for each in planned])


@verb("Training", group=_scaling)
def run(
    arguments: Arguments,
    only: _Only = None,
    max_runs: Annotated[int | None, typer.Option(help="At most so many runs.", min=1)] = None,
    json: JsonFile = None,
) -> None:
    """Train and evaluate the runs of the grid that have not finished, first those that tune learning rates.

    Each is an ordinary training run in OUTPUT/runs; after an interruption the same command continues it. Several processes and
    machines may share the output: a run that another one works on is skipped. `training.checkpoint_every` says how much a kill
    costs.

    Examples:

        polar scaling run recipe:scaling corpus=runs/corpus output=runs/scaling

        polar scaling run recipe:scaling corpus=runs/corpus output=runs/scaling --only 1/2 --max-runs 3
    """
    config, part = _load(arguments), _part(only)
    from polar_rm.scaling.runner import run_grid

    state = run_grid(config, part=part, max_runs=max_runs, console=messages)
    if json:
        write_json(json, state.to_json())
    message(state.describe())


@verb("Training", group=_scaling)
def fit(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="The folder of a grid, or the config files that it was run with; then overrides such as `fit.points=all`.",
            metavar="FOLDER|CONFIG.yaml... [KEY=VALUE...]",
        ),
    ],
    json: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the laws with their bands into this PNG or SVG.")] = None,
) -> None:
    """Fit power laws of the held-out loss to the finished runs, with 95% intervals and extrapolations.

    Intervals by prompts are of samples of the evaluation prompts; intervals by runs are of leaving out one run after another.
    Runs that diverged or are missing are left out and named.

    Examples:

        polar scaling fit runs/scaling --json laws.json --plot laws.svg

        polar scaling fit runs/scaling fit.points=all fit.predict='[{parameters: 1.8e9, tokens: 9.4e11}]'
    """
    from polar_rm.common.extras import needs

    with needs("evaluate", "polar scaling fit"):
        import scipy  # noqa: F401

        from polar_rm.reporting.plots import check_plot
        from polar_rm.scaling.fit import fit_grid
        from polar_rm.scaling.report import render, write_plot
    if plot:
        check_plot(plot)
    config = _load(arguments, folder=True)
    with show_progress(messages) as progress:
        result = fit_grid(config, progress=progress)
    print_table(render(result))
    if json:
        write_json(json, result.report)
    if plot:
        write_plot(plot, result)


def _load(arguments: list[str], *, folder: bool = False) -> ScalingConfig:
    """The config; a folder means the settings that its grid was run with."""
    from polar_rm.scaling.config import ScalingConfig

    if folder:
        arguments = [str(Path(each) / "scaling.yaml") if Path(each).is_dir() else each for each in arguments]
        for each in arguments:
            if each.endswith("scaling.yaml") and Path(each).parent.is_dir() and not Path(each).exists():
                raise PolarError(f"{Path(each).parent}: no grid has run here (no scaling.yaml)")
        return load(ScalingConfig, arguments)
    problems = Problems()
    config = load(ScalingConfig, arguments, problems=problems)
    from polar_rm.scaling.settings import training_config

    for size in config.sizes:
        check_inputs(training_config(config, size, output=config.output), problems)
    problems.check()
    return config


def _part(only: str | None) -> tuple[int, int]:
    """The share of an option such as ``2/4``.

    Raises:
        PolarError: it is not of this form.
    """
    if only is None:
        return 1, 1
    index, separator, count = only.partition("/")
    if not separator or not index.isdecimal() or not count.isdecimal() or not 1 <= int(index) <= int(count):
        raise PolarError(f"--only {only}: expected INDEX/COUNT such as 2/4, with 1 <= INDEX <= COUNT")
    return int(index), int(count)

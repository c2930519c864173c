"""``polar scaling plan``: the grid with its parameters, tokens, compute and time, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console

from polar_rm.common.progress import plain_console
from polar_rm.reporting.tables import Table
from polar_rm.scaling.config import ScalingConfig
from polar_rm.scaling.grid import Run
from polar_rm.scaling.results import Result
from polar_rm.scaling.runner import Part, Status, is_in, statuses_of
from polar_rm.scaling.state import check_free, temporary_grid


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run and what it costs. seconds: estimated, of its steps; None where no speed is known."""

    run: Run
    status: Status
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """The plan of the run as JSON values."""
        return {
            **asdict(self.run),
            "name": self.run.name,
            "flops": self.run.flops,
            "status": self.status,
            "seconds": self.seconds,
        }


def plan_grid(
    config: ScalingConfig, *, part: Part = (1, 1), flops_per_second: float | None = None, console: Console | None = None
) -> list[PlannedRun]:
    """Plan a grid without training or writing anything. Results that are there already give learning rates and speeds.

    flops_per_second: speed of sizes of which no run has finished.

    Raises:
        PolarError: a setting or a split is bad, or the output belongs to other settings.
    """
    check_free(config)
    with temporary_grid(config, console or plain_console(stderr=True)) as grid:
        results = grid.results()
        runs = grid.runs(results)
        statuses = statuses_of(grid, runs, results)
    speeds = _speeds(results)
    return [
        PlannedRun(run, status, run.flops / speed if (speed := speeds.get(run.size.name, flops_per_second)) else None)
        for run, status in zip(runs, statuses, strict=True)
        if is_in(part, run)
    ]


def _speeds(results: Mapping[str, Result]) -> dict[str, float]:
    """Size -> median FLOP/s of its finished runs."""
    speeds: dict[str, list[float]] = {}
    for result in results.values():
        if result.seconds:
            speeds.setdefault(result.size, []).append(result.flops / result.seconds)
    return {size: median(values) for size, values in speeds.items()}


def sizes_table(planned: Sequence[PlannedRun]) -> Table:
    """The sizes: their parameters, and the compute of a token as the trainer counts it."""
    sizes = {each.run.size.name: each.run.size for each in planned}
    rows = [[name, _short(s.non_embedding), _short(s.parameters), f"{s.flops_per_token:.3g}"] for name, s in sizes.items()]
    return Table("sizes", ["size", "parameters without embedding", "with embedding", "FLOPs a token"], rows)


def runs_table(planned: Sequence[PlannedRun]) -> Table:
    """The runs; the last row sums up what is left to do."""
    rows = [_row(each) for each in planned]
    left = [each for each in planned if each.status not in ("finished", "diverged")]
    tokens, flops = sum(each.run.tokens for each in left), sum(each.run.flops for each in left)
    total = [f"{len(left)} to do", "", _short(tokens), "", f"{flops:.2g}", "", _total_time(left)]
    header = ["run", "for", "tokens", "steps", "FLOPs", "status", "time"]
    return Table("runs", header, [*rows, total], last_is_total=True)


def _row(planned: PlannedRun) -> list[str]:
    run = planned.run
    time = "" if planned.seconds is None else _time(planned.seconds)
    return [run.name, run.purpose, _short(run.tokens), f"{run.steps:,}", f"{run.flops:.2g}", planned.status, time]


def notes(planned: Sequence[PlannedRun]) -> Iterator[str]:
    """What a user should know about the plan, a line each."""
    if repeated := [each.run.name for each in planned if each.run.epochs > 1]:
        yield f"{len(repeated)} runs repeat data (more than one epoch), the first is {repeated[0]}"
    if all(each.seconds is None for each in planned):
        yield "no speed is known yet: a finished run or --flops-per-second gives the time"


def _total_time(planned: Sequence[PlannedRun]) -> str:
    known = [each.seconds for each in planned if each.seconds is not None]
    if not known:
        return ""
    return ("" if len(known) == len(planned) else "> ") + _time(sum(known))


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _short(count: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"

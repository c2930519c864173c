"""``polar scaling run``: the runs of a grid one after another, each an ordinary training run that can be interrupted."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from polar_rm.common import provenance
from polar_rm.common.locks import owned
from polar_rm.common.processes import n_started
from polar_rm.common.progress import plain_console, say, show_progress
from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import InUse, NonFinite, PolarError, ScoreError
from polar_rm.evaluation.contenders.native import free_memory
from polar_rm.scaling.config import ScalingConfig
from polar_rm.scaling.evaluate import evaluate_splits
from polar_rm.scaling.grid import Run
from polar_rm.scaling.results import Losses, Result, losses_file, read_course, read_result, write_losses, write_result
from polar_rm.scaling.settings import size_name, training_config
from polar_rm.scaling.state import Grid, open_grid
from polar_rm.training.config import TrainConfig
from polar_rm.training.trainer import train

Status = Literal["finished", "diverged", "in use", "no learning rate", "waiting", "to do"]
"""waiting: for the learning rate. no learning rate: all that were tried diverged. in use: another process works on it."""

Part = tuple[int, int]
"""Which share of the runs: INDEX of COUNT, counted from 1."""


@dataclass(frozen=True, slots=True)
class GridState:
    """What a call has left. statuses: of all runs, in their order. now: names of the runs that this call has finished."""

    runs: list[Run]
    statuses: list[Status]
    now: list[str]

    def to_json(self) -> dict[str, Any]:
        """The state as JSON values."""
        runs = zip(self.runs, self.statuses, strict=True)
        return {"now": self.now, "runs": [{"name": run.name, "purpose": run.purpose, "status": status} for run, status in runs]}

    def describe(self) -> str:
        """One line: how many runs there are, of which status."""
        counts = Counter(self.statuses)
        return f"{len(self.runs)} runs: {', '.join(f'{count} {status}' for status, count in counts.items())}"


def run_grid(
    config: ScalingConfig, *, part: Part = (1, 1), max_runs: int | None = None, console: Console | None = None
) -> GridState:
    """Train and evaluate the runs of a grid that have not finished, tuning runs first.

    part: only this share of the runs, for several processes. max_runs: how many at most. A run that another process works on is
    skipped and told.

    Raises:
        StopRequested: SIGTERM or Ctrl-C; the run has a checkpoint, from which the next call continues.
        PolarError: a setting or a split is bad, the disk is full, or this is one of several ranks.
    """
    if n_started() > 1:
        raise PolarError(
            "polar scaling run takes one process for a run: start several with --only INDEX/COUNT instead of torchrun"
        )
    console = console or plain_console(stderr=True)
    grid = open_grid(config, console)
    in_use: set[str] = set()
    now: list[str] = []
    while max_runs is None or len(now) < max_runs:
        results = grid.results()
        runs = grid.runs(results)
        statuses = statuses_of(grid, runs, results, in_use)
        mine = (run for run, status in zip(runs, statuses, strict=True) if status == "to do" and is_in(part, run))
        run = next(mine, None)
        if run is None:
            break
        try:
            say(console, f"run {run.number + 1} of {len(runs)}: {run.name}, {run.steps:,} steps")
            result = perform(grid, run, console)
        except InUse as error:
            in_use.add(run.name)
            say(console, f"skipped: {error}")
        else:
            now.append(run.name)
            say(console, describe(result))
    results = grid.results()
    runs = grid.runs(results)
    return GridState(runs, statuses_of(grid, runs, results, in_use), now)


def is_in(part: Part, run: Run) -> bool:
    """Whether a run belongs to a share."""
    index, count = part
    return run.number % count == index - 1


def statuses_of(grid: Grid, runs: list[Run], results: Mapping[str, Result], in_use: set[str] | None = None) -> list[Status]:
    """The status of every run. in_use: names of runs that other processes work on."""
    picked = grid.picked(dict(results))

    def status(run: Run) -> Status:
        if run.lr is None:
            return "no learning rate" if run.learning in picked else "waiting"
        if run.name in results:
            return "diverged" if results[run.name].diverged else "finished"
        return "in use" if in_use and run.name in in_use else "to do"

    return list(map(status, runs))


def describe(result: Result) -> str:
    """One line about a result."""
    losses = ", ".join(f"{split} {facts['loss']:.4f}" for split, facts in result.evaluation.items())
    outcome = f"diverged: {result.diverged}" if result.diverged else f"loss {losses}"
    return f"{result.name}: {outcome}"


def perform(grid: Grid, run: Run, console: Console) -> Result:
    """Train and evaluate one run, or continue it; its result if it has finished meanwhile.

    A loss that is not finite ends the run with a result that says so.

    Raises:
        InUse: another process works on it.
    """
    folder = grid.folder(run)
    with owned(folder, "scaling run"):
        if (finished := read_result(folder)) is not None:
            return finished
        config = _training(grid, run)
        losses: dict[str, Losses] = {}
        try:
            train(config, verb="scaling run", console=console)
            free_memory()
            with show_progress(console, unit="comparisons") as progress:
                losses = evaluate_splits(grid.config, config, progress)
            reason = None
        except (NonFinite, ScoreError) as error:
            losses, reason = {}, str(error)
        free_memory()
        for split, values in losses.items():
            write_losses(folder / losses_file(split), values)
        result = _result(grid, run, config, losses, reason)
        write_result(folder, result)
        _tidy(folder, grid.config.keep)
        return result


def _training(grid: Grid, run: Run) -> TrainConfig:
    assert run.lr is not None  # of runs that are to do
    config = grid.config
    size = next(size for size in config.sizes if size_name(size) == run.size.name)
    epochs = math.ceil(run.epochs)
    return training_config(
        config, size, output=grid.folder(run), lr=run.lr, steps=run.steps, epochs=max(1, epochs), seed=run.seed
    )


def _result(grid: Grid, run: Run, config: TrainConfig, losses: Mapping[str, Losses], reason: str | None) -> Result:
    course = read_course(config.output / "metrics.jsonl")
    assert run.lr is not None
    assert isinstance(config.batch_size, int)
    evaluation = {split: values.facts() for split, values in losses.items()}
    reason = reason or why_diverged(course.train_loss, evaluation, grid.config.diverged_above)
    return Result(
        name=run.name,
        size=run.size.name,
        budget=run.budget,
        seed=run.seed,
        lr=run.lr,
        batch_size=config.batch_size,
        parameters=run.size.parameters,
        non_embedding=run.size.non_embedding,
        steps=course.steps,
        epochs=run.epochs,
        tokens=course.tokens,
        flops=course.flops,
        seconds=course.seconds,
        train_loss=course.train_loss,
        diverged=reason,
        evaluation=evaluation,
        encoder_hash=_encoder_hash(config) if losses else "",
        origin=provenance.versions(),
    )


def _encoder_hash(config: TrainConfig) -> str:
    return Encoder.from_pretrained(config.output / "model").hash


def why_diverged(train_loss: float | None, evaluation: Mapping[str, Mapping[str, float]], margin: float) -> str | None:
    """Why a finished run is no point of a law; None where it is one. margin: above ln 2, the loss of chance."""
    losses = {"training": train_loss, **{split: facts["loss"] for split, facts in evaluation.items()}}
    for name, loss in losses.items():
        if loss is None or not math.isfinite(loss):
            return f"the loss of {name} is {loss}"
        if loss > math.log(2) + margin:
            return f"the loss of {name} at the end is {loss:.4f}, above ln 2 = {math.log(2):.4f} by more than {margin:g}"
    return None


def _tidy(folder: Path, keep: Literal["all", "model", "result"]) -> None:
    if keep != "all":
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if keep == "result":
        shutil.rmtree(folder / "model", ignore_errors=True)

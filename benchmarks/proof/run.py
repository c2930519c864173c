"""The evidence for three claims of the paper (arXiv 2507.05197), as steps that continue after an interruption.

    python benchmarks/proof/run.py --data FOLDER --size small --output runs/proof
    python benchmarks/proof/run.py --data FOLDER --size full --output runs/proof-full --list
    python benchmarks/proof/run.py pretrain finetune-polar-0 --data FOLDER --size full --output runs/proof-full --minutes 9

Each step writes benchmarks/results/proof/SIZE/STEP.json. A step whose result has the same settings and inputs is skipped, and the
same command continues an interrupted one. A step that fails is told, and the steps that do not need it go on. docs/proof.md says
what is measured. Without STEP all steps run but those that take hours: levers, law and rft.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from rich.console import Console
from rich.table import Table

from polar_rm.common.config import load_config
from polar_rm.common.text import first_line
from polar_rm.errors import PolarError
from polar_rm.training.signals import StopRequested
from proof.plan import HOURS, steps_of
from proof.settings import SIZES, Size
from proof.steps import Run, Step, chosen, perform

_RESULTS = Path(__file__).parents[1] / "results/proof"


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with traj_NAME.parquet and pref_train_NAME.parquet")
    parser.add_argument("--size", default="small", help="small, full, or a YAML file with the same keys")
    parser.add_argument("--output", type=Path, required=True, help="folder for corpora and models")
    parser.add_argument("--results", type=Path, help="folder for the JSON files; default: benchmarks/results/proof/SIZE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of all trainings; behind STEP")
    parser.add_argument("--minutes", type=float, help="begin no step that is expected to end later")
    parser.add_argument("--list", action="store_true", help="list the steps, what they need, and their state")
    parser.add_argument("steps", nargs="*", metavar="STEP", help="names of steps or of stages")
    return parser.parse_args(words)


def table_of(steps: Sequence[Step], run: Run) -> Table:
    """All steps with what they need, their time, what they write, and their state."""
    table = Table("step", "what", "needs", "minutes", "writes", "state")
    for step in steps:
        try:
            state = step.stale(run) or "finished"
        except PolarError as error:
            state = str(error)
        note = " (not by default)" if step.stage in HOURS else ""
        needs = ", ".join((*step.needs, *step.data))
        table.add_row(step.name, step.about, needs, f"{run.size.minutes[step.stage]:g}{note}", str(run.result(step.name)), state)
    return table


def run_steps(steps: Sequence[Step], run: Run, minutes: float | None) -> int:
    """Run the steps in order; returns the number of those that failed."""
    start, failed = time.monotonic(), 0
    for step in steps:
        passed = (time.monotonic() - start) / 60
        if minutes is not None and passed + run.size.minutes[step.stage] > minutes and passed > 0.1:
            run.console.print(f"{step.name}: left for the next run, {passed:.1f} of {minutes:g} minutes have passed")
            continue
        try:
            outcome = perform(step, run, time.monotonic)
        except StopRequested as stop:
            run.console.print(f"{step.name}: {stop}", highlight=False)
            raise SystemExit(1) from stop
        except PolarError as error:
            outcome, failed = f"failed: {error}", failed + 1
        except Exception as error:  # whatever a library raises must not hide the other steps
            traceback.print_exc()
            outcome, failed = f"failed: {type(error).__name__}: {first_line(error)}", failed + 1
        run.console.print(f"{step.name}: {outcome}", highlight=False)
    return failed


def main(words: Sequence[str] | None = None) -> int:
    """Run or list the steps; returns 1 if a step failed, and 2 for bad input."""
    arguments = arguments_of(words)
    console = Console(stderr=True, soft_wrap=True)
    file = Path(arguments.size) if arguments.size.endswith(".yaml") else SIZES / f"{arguments.size}.yaml"
    try:
        size = load_config(Size, [file])
        results = arguments.results or _RESULTS / file.stem
        seeds = tuple(dict.fromkeys(arguments.seeds))
        run = Run(size, arguments.data.absolute(), arguments.output.absolute(), results.absolute(), seeds, console)
        steps = steps_of(run.size, run.seeds)
        picked = chosen(steps, arguments.steps)
    except PolarError as error:
        console.print(f"error: {error}", highlight=False)
        return 2
    if arguments.list:
        Console(width=200).print(table_of(picked, run))
        return 0
    if not arguments.steps:
        picked = [step for step in picked if step.stage not in HOURS]
    return 1 if run_steps(picked, run, arguments.minutes) else 0


if __name__ == "__main__":
    sys.exit(main())

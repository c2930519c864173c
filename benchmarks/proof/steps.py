"""Steps: what they need, whether they are finished, and their results as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import origin
from rich.console import Console

from polar_rm.common.files import differences, read_json, sha256, write_json
from polar_rm.common.locks import owned
from polar_rm.errors import PolarError
from proof.settings import Size

Row = dict[str, Any]
SCHEMA = "polar-rm/proof/1"


@dataclass(frozen=True)
class Run:
    """Where a run reads and writes. data: the user's files. output: models and corpora. results: the JSON files of the steps."""

    size: Size
    data: Path
    output: Path
    results: Path
    seeds: tuple[int, ...]
    console: Console = field(default_factory=lambda: Console(stderr=True))
    checksums: dict[Path, str] = field(default_factory=dict)

    def checksum(self, file: str) -> str:
        """The checksum of a file of the data; it is computed once, because many steps ask for it."""
        path = self.data / file
        if path not in self.checksums:
            self.checksums[path] = sha256(path)
        return self.checksums[path]

    def result(self, step: str) -> Path:
        """The JSON file of a step."""
        return self.results / f"{step}.json"

    def rows(self, step: str) -> list[Row]:
        """The rows of a finished step."""
        rows: list[Row] = read_json(self.result(step))["rows"]
        return rows


@dataclass(frozen=True)
class Step:
    """A part of the evidence, which makes rows of results.

    needs: steps that must have finished. uses: steps whose results are used if there are any. data: names of files of the data
    folder. outputs: paths in the output folder that a finished step has. settings: what decides its numbers, beside the data.
    """

    name: str
    stage: str
    about: str
    work: Callable[[Run], list[Row]]
    settings: dict[str, Any]
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def identity(self, run: Run) -> dict[str, Any]:
        """What must be equal for a result to be this step's: settings, checksums of the data, checksums of earlier results.

        Raises:
            PolarError: a file of the data is missing, or an earlier step has not finished.
        """
        if missing := [name for name in self.data if not (run.data / name).is_file()]:
            raise PolarError(f"{run.data}: there is no {', '.join(missing)}")
        if unfinished := [name for name in self.needs if not run.result(name).is_file()]:
            raise PolarError(f"it needs {', '.join(unfinished)}, which has not finished")
        earlier = [*self.needs, *(name for name in self.uses if run.result(name).is_file())]
        return {
            "settings": self.settings,
            "data": {name: run.checksum(name) for name in self.data},
            "steps": {name: sha256(run.result(name)) for name in earlier},
        }

    def stale(self, run: Run) -> str | None:
        """Why the step has to run, or None if its result is that of the same settings and inputs.

        Raises:
            PolarError: the errors of :meth:`identity`.
        """
        identity = self.identity(run)
        if not run.result(self.name).is_file():
            return "no result yet"
        stored = read_json(run.result(self.name)).get("identity", {})
        if stored != identity:
            return f"other inputs: {differences(stored, identity)}"
        if lost := [name for name in self.outputs if not (run.output / name).exists()]:
            return f"{lost[0]} is missing"
        return None

    def finish(self, run: Run, began: dict[str, Any], seconds: float, rows: list[Row]) -> None:
        """Write the result. began: the identity before the work; inputs that changed meanwhile make the result stale."""
        facts = {"schema": SCHEMA, "step": self.name, **origin(), "seconds": seconds}
        write_json(run.result(self.name), {**facts, "identity": began, "rows": rows})


def chosen(steps: Sequence[Step], names: Sequence[str]) -> list[Step]:
    """The named steps and the steps of named stages, in their order; all for no names.

    Raises:
        PolarError: a name is unknown.
    """
    known = {name for step in steps for name in (step.name, step.stage)}
    if unknown := [name for name in names if name not in known]:
        raise PolarError(f"there is no step {unknown[0]!r}; --list shows the steps")
    return [step for step in steps if not names or step.name in names or step.stage in names]


def perform(step: Step, run: Run, clock: Callable[[], float]) -> str:
    """Run a step unless its result is there; returns what happened, in a few words.

    Raises:
        PolarError: an input is missing or bad, or another process works on this step.
    """
    with owned(run.output / step.name, f"proof {step.name}"):
        reason = step.stale(run)
        if reason is None:
            return "finished before, skipped"
        run.console.print(f"{step.name}: {reason}; expected minutes: {run.size.minutes[step.stage]:g}", highlight=False)
        began, start = step.identity(run), clock()
        rows = step.work(run)
        step.finish(run, began, clock() - start, rows)
    return f"{len(rows)} rows in {run.result(step.name).name}, {clock() - start:.0f} s"

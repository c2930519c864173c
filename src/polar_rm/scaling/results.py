"""What a finished run leaves for the fit: ``result.json``, and the loss of every held-out comparison in Parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from polar_rm.common.checksums import check_files, describe_files, read_sealed, write_sealed
from polar_rm.common.files import atomic_file
from polar_rm.errors import Damaged

SCHEMA = "polar-rm/scaling-run/1"
RESULT = "result.json"

_COLUMNS = {"prompt": pa.string(), "comparison": pa.int64(), "pairs": pa.int64(), "loss": pa.float64(), "correct": pa.float64()}


@dataclass(frozen=True, slots=True)
class Losses:
    """The held-out losses of one run on one split, a value for each comparison.

    prompts: a hash of the prompt's text. comparisons: number in the split, from 0, int64. pairs: ordered pairs, int64. losses:
    mean Bradley-Terry loss of its pairs in nats, float64. correct: pairs in the right order, ties count half, float64.
    """

    prompts: NDArray[np.object_]
    comparisons: NDArray[np.int64]
    pairs: NDArray[np.int64]
    losses: NDArray[np.float64]
    correct: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """The mean over pairs, as the trainer's evaluation has it."""
        return float((self.losses * self.pairs).sum() / self.pairs.sum())

    @property
    def accuracy(self) -> float:
        """The fraction of pairs in the right order."""
        return float(self.correct.sum() / self.pairs.sum())

    def facts(self) -> dict[str, Any]:
        """A summary for ``result.json``."""
        counts = {"comparisons": len(self.losses), "pairs": int(self.pairs.sum()), "prompts": len(set(self.prompts.tolist()))}
        return {"loss": self.mean, "accuracy": self.accuracy, **counts}


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run.

    parameters: of the backbone. tokens, flops: computed, as the trainer counted them; seconds: of its steps. train_loss: mean
    over the last tenth of the steps, None where a run failed in its first step. diverged: why it is no point of a law; None where
    it is one. evaluation: split -> summary (see :meth:`Losses.facts`). origin: versions, git commit and machine.
    """

    name: str
    size: str
    budget: str
    seed: int
    lr: float
    batch_size: int
    parameters: int
    non_embedding: int
    steps: int
    epochs: float
    tokens: float
    flops: float
    seconds: float
    train_loss: float | None
    diverged: str | None
    evaluation: dict[str, dict[str, Any]]
    encoder_hash: str
    origin: dict[str, Any]


def losses_file(split: str) -> str:
    """The name of a split's losses in a run's folder."""
    return f"losses-{split}.parquet"


def write_losses(path: Path, losses: Losses) -> None:
    """Write a Parquet file atomically; one row for each comparison."""
    columns = (losses.prompts.tolist(), losses.comparisons, losses.pairs, losses.losses, losses.correct)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, _COLUMNS.values(), strict=True)]
    with atomic_file(path) as file:
        pq.write_table(pa.table(arrays, names=list(_COLUMNS)), file)


def read_losses(folder: Path, split: str) -> Losses:
    """The losses of a finished run, whose ``result.json`` vouches for the file.

    Raises:
        Damaged: the file is missing, or not what was written.
    """
    name = losses_file(split)
    check_files(folder, {name: _sealed(folder)["files"][name]}, full=True)
    table = pq.read_table(folder / name)
    prompts = np.array(table["prompt"].to_pylist(), dtype=object)
    comparisons, pairs, losses, correct = (table[column].to_numpy() for column in list(_COLUMNS)[1:])
    return Losses(prompts, comparisons, pairs, losses, correct)


def write_result(folder: Path, result: Result) -> None:
    """Write ``result.json`` last, with the checksums of the losses."""
    files = describe_files(folder, [losses_file(split) for split in result.evaluation])
    write_sealed(folder / RESULT, {"schema": SCHEMA, **asdict(result), "files": files})


def read_result(folder: Path) -> Result | None:
    """The result of a run; None where it has not finished.

    Raises:
        Damaged: the file is not what was written, or of another version.
    """
    if not (folder / RESULT).exists():
        return None
    values = _sealed(folder)
    if values.pop("schema", None) != SCHEMA:
        raise Damaged(f"{folder / RESULT}: not a result of this version ({SCHEMA})")
    del values["files"]
    return Result(**values)


def _sealed(folder: Path) -> dict[str, Any]:
    return read_sealed(folder / RESULT)


@dataclass(frozen=True, slots=True)
class Course:
    """Sums over the steps of a run, see :class:`Result`."""

    steps: int
    tokens: float
    flops: float
    seconds: float
    train_loss: float | None


def read_course(metrics: Path) -> Course:
    """The sums of a ``metrics.jsonl``, which the trainer repairs when a run is continued."""
    rows: Iterable[dict[str, Any]] = []
    if metrics.exists():
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    rows = list(rows)
    last = [row["loss"] for row in rows[-max(1, len(rows) // 10) :]]
    totals = {key: math.fsum(row[key] for row in rows) for key in ("tokens", "flops", "seconds")}
    return Course(len(rows), **totals, train_loss=math.fsum(last) / len(last) if last else None)

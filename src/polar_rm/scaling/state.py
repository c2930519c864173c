"""The state of a grid: its data, what has finished, and the learning rates that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from polar_rm.common.checksums import read_sealed, write_sealed
from polar_rm.common.config import to_yaml
from polar_rm.common.files import claim_folder, is_claimed, sha256, write_file
from polar_rm.common.locks import owned_soon
from polar_rm.common.manifests import check_manifest
from polar_rm.common.progress import say, show_progress
from polar_rm.errors import PolarError
from polar_rm.scaling.config import ScalingConfig
from polar_rm.scaling.evaluate import bad_rows
from polar_rm.scaling.grid import (
    CorpusSize,
    Learning,
    Run,
    Size,
    learning_of,
    make_grid,
    measure_sizes,
)
from polar_rm.scaling.learning_rate import Picked, Tried, base_rate, pick
from polar_rm.scaling.results import Result, read_result
from polar_rm.scaling.settings import size_name, split_path, training_config
from polar_rm.training.data import encode_corpus
from polar_rm.training.prepare import read_blueprint

SETTINGS = "scaling.yaml"
"""The settings of the last ``polar scaling run`` in its output, for ``polar scaling fit FOLDER``."""

_HOLDS = "the data of a scaling grid"
MEASURED = "grid.json"
"""Corpus and sizes as they were measured, beside the encoded data."""

# Keys of a training config that change no result; another machine may need others.
_MACHINE = (
    "device log row_tokens shard_ranks compile activation_checkpointing attention checkpoint_every keep_checkpoints on_bad_row"
).split()


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid whose data and sizes are measured. sizes: in the order of the config."""

    config: ScalingConfig
    corpus: CorpusSize
    sizes: list[Size]

    def folder(self, run: Run) -> Path:
        """The folder of a run."""
        return self.config.output / "runs" / run.name

    def results(self) -> dict[str, Result]:
        """Name of each finished run -> its result.

        Raises:
            Damaged: a result is not what was written.
        """
        folders = sorted((self.config.output / "runs").glob("[!.]*"))
        found = {folder.name: read_result(folder) for folder in folders if folder.is_dir()}
        return {name: result for name, result in found.items() if result is not None}

    def picked(self, results: dict[str, Result]) -> dict[Learning, Picked | None]:
        """The learning rates that are known: those that are not tuned, or whose runs have all finished. None: all diverged."""
        rates = self.config.learning_rates
        known: dict[Learning, Picked | None] = {}
        if rates.tune == "off":
            for size in self.sizes:
                base = base_rate(rates, size.non_embedding, self.sizes[0].non_embedding)
                learning = learning_of(self.config, size, self.config.budgets.values[0])
                known[learning] = Picked(base, "the base, not tuned", False)
            return known
        of_learning: dict[Learning, list[Run]] = {}
        for run in make_grid(self.config, self.sizes, self.corpus, {}):
            if run.purpose == "tune":
                of_learning.setdefault(run.learning, []).append(run)
        for learning, runs in of_learning.items():
            if all(run.name in results for run in runs):
                known[learning] = pick([Tried(run.lr or 0.0, self._tuning_loss(results[run.name])) for run in runs])
        return known

    def runs(self, results: dict[str, Result]) -> list[Run]:
        """All runs in their order, with the learning rates that are known."""
        return make_grid(self.config, self.sizes, self.corpus, self.picked(results))

    def _tuning_loss(self, result: Result) -> float | None:
        return None if result.diverged else float(result.evaluation[self.config.tuning_split]["loss"])


@contextmanager
def temporary_grid(config: ScalingConfig, console: Console) -> Iterator[Grid]:
    """The grid, with its data encoded into a temporary folder: nothing is written to the output."""
    check_splits(config)
    with TemporaryDirectory(prefix="polar-scaling-") as folder:
        yield _measured(config, Path(folder), console)


def open_grid(config: ScalingConfig, console: Console) -> Grid:
    """The grid, with its data encoded in its output. One process encodes, others wait for it.

    Raises:
        PolarError: a split or a setting is bad, or the output belongs to other settings.
    """
    check_splits(config)
    data = config.output / "data"
    with owned_soon(data, "scaling run", lambda message: say(console, message)):
        claim_folder(data, _identity(config), _HOLDS, alone=True)
        grid = _measured(config, data, console)
        known = {size.name: size for size in _read_measured(data)[1]} if (data / MEASURED).exists() else {}
        known |= {size.name: size for size in grid.sizes}
        write_sealed(data / MEASURED, {"corpus": asdict(grid.corpus), "sizes": [asdict(size) for size in known.values()]})
        write_file(config.output / SETTINGS, to_yaml(config))
        return grid


def check_free(config: ScalingConfig) -> None:
    """Check, for a plan, that the output belongs to no other settings. Nothing is written.

    Raises:
        PolarError: it does, or a split is bad.
    """
    check_splits(config)
    is_claimed(config.output / "data", lambda: _identity(config), _HOLDS, alone=True)


def stored_grid(config: ScalingConfig) -> Grid:
    """The grid as ``polar scaling run`` measured it; the corpus need not be there.

    Raises:
        PolarError: nothing has run, or nothing of one of the sizes.
        Damaged: the file is not what was written.
    """
    data = config.output / "data"
    if not (data / MEASURED).exists():
        raise PolarError(f"{config.output}: no grid has run here; polar scaling run trains it")
    corpus, sizes = _read_measured(data)
    by_name = {size.name: size for size in sizes}
    names = list(map(size_name, config.sizes))
    if unknown := [name for name in names if name not in by_name]:
        raise PolarError(f"{config.output}: nothing has run with the size {unknown[0]}; the sizes here are {', '.join(by_name)}")
    return Grid(config, corpus, [by_name[name] for name in names])


def _read_measured(data: Path) -> tuple[CorpusSize, list[Size]]:
    values = read_sealed(data / MEASURED)
    return CorpusSize(**values["corpus"]), [Size(**size) for size in values["sizes"]]


def check_splits(config: ScalingConfig) -> None:
    """Check that all splits exist and are complete.

    Raises:
        PolarError: one is missing or damaged.
    """
    for split in (config.train_split, *config.eval_splits):
        check_manifest(split_path(config, split))


def _measured(config: ScalingConfig, data: Path, console: Console) -> Grid:
    training = training_config(config, config.sizes[0], output=config.output)
    bad = bad_rows(training.model_copy(update={"output": data}), config.train_split)
    with show_progress(console, unit="comparisons") as progress:
        corpus = encode_corpus(
            training.data.train,
            read_blueprint(training).encoder,
            data,
            on_bad_row=bad,
            empty_reference=training.data.reference == "empty",
            outputs=[config.output],
            progress=progress,
            report=lambda message: say(console, message),
        )
    return Grid(config, CorpusSize(len(corpus), corpus.stats.tokens), measure_sizes(config, corpus))


def _identity(config: ScalingConfig) -> dict[str, Any]:
    """What decides the results of runs, besides what their names say."""
    training = {key: value for key, value in config.training.items() if key not in _MACHINE}
    encoder = read_blueprint(training_config(config, config.sizes[0], output=config.output)).encoder.hash
    splits = {split: sha256(split_path(config, split)) for split in (config.train_split, *config.eval_splits)}
    chosen = config.model_dump(mode="json", include={"train_split", "eval_splits", "eval_limit", "diverged_above"})
    return {"training": training, "encoder": encoder, "splits": splits, **chosen}

"""Experiment trackers beside ``metrics.jsonl`` and TensorBoard: W&B, Trackio and MLflow, one sink each.

A run is named after its folder and resumed by an id that is derived from the folder's full path. What a tracker's library raises
becomes one line that names the key; a library that logs in the background reports in its own way.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from polar_rm.common.extras import needs, require
from polar_rm.common.files import flat
from polar_rm.common.hub import masked
from polar_rm.common.problems import Problems
from polar_rm.common.text import first_line
from polar_rm.errors import MachineFailure, PolarError
from polar_rm.training.config import LogConfig, TrainConfig

_RUN_TAG = "polar.run"
_MOST_PARAMETERS = 100  # of one request to MLflow
_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "TRACKIO_WRITE_TOKEN")


class WandbSink:
    """A run of Weights & Biases."""

    def __init__(self, project: str, config: TrainConfig) -> None:
        with needs("wandb", "log.wandb"):
            import wandb
        name, settings = config.output.name, config.model_dump(mode="json")
        with _named("log.wandb"):
            self._run: Any = wandb.init(project=project, name=name, id=run_id(config.output), resume="allow", config=settings)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log one step of the run."""
        with _named("log.wandb"):
            self._run.log(values, step=step)

    def sync(self) -> None:
        """Do nothing: W&B logs from its own process."""

    def close(self) -> None:
        """Finish the run."""
        with _named("log.wandb"):
            self._run.finish()


class TrackioSink:
    """A run of Trackio, in its local folder (``TRACKIO_DIR``), or in the Space of ``TRACKIO_SPACE_ID``."""

    def __init__(self, project: str, config: TrainConfig) -> None:
        with needs("trackio", "log.trackio"):
            import trackio
        name, settings = run_id(config.output), config.model_dump(mode="json")  # a run of Trackio is known by its name
        with _named("log.trackio"), redirect_stdout(sys.stderr):  # it prints; our output is for results
            self._run: Any = trackio.init(project=project, name=name, resume="allow", config=settings)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log one step of the run."""
        with _named("log.trackio"):
            self._run.log(values, step=step)

    def sync(self) -> None:
        """Do nothing: Trackio writes from its own thread."""

    def close(self) -> None:
        """Wait until everything is written, and finish the run."""
        with _named("log.trackio"), redirect_stdout(sys.stderr):
            self._run.finish()


class MlflowSink:
    """A run of MLflow, where ``MLFLOW_TRACKING_URI`` says; found again by its tag ``polar.run``. Settings are its parameters."""

    def __init__(self, experiment: str, config: TrainConfig) -> None:
        with needs("mlflow", "log.mlflow"):
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
        self._metric, key = Metric, run_id(config.output)
        with _named("log.mlflow"):
            self._client: Any = MlflowClient()
            found = self._client.get_experiment_by_name(experiment)
            place = found.experiment_id if found else self._client.create_experiment(experiment)
            runs = self._client.search_runs([place], f"tags.`{_RUN_TAG}` = '{key}'", max_results=1)
            run = runs[0] if runs else self._client.create_run(place, run_name=config.output.name, tags={_RUN_TAG: key})
            self._run: str = run.info.run_id
            if runs:  # parameters of a run can't change, and some settings may
                self._client.update_run(self._run, status="RUNNING")
            settings = [] if runs else [Param(name, str(value)) for name, value in flat(config.model_dump(mode="json")).items()]
            for start in range(0, len(settings), _MOST_PARAMETERS):
                self._client.log_batch(self._run, params=settings[start : start + _MOST_PARAMETERS])

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log one step of the run, in one request."""
        now = int(time.time() * 1000)
        with _named("log.mlflow"):
            self._client.log_batch(self._run, metrics=[self._metric(name, value, now, step) for name, value in values.items()])

    def sync(self) -> None:
        """Do nothing: every step is with the server."""

    def close(self) -> None:
        """Mark the run as finished."""
        with _named("log.mlflow"):
            self._client.set_terminated(self._run)


Tracker = WandbSink | TrackioSink | MlflowSink
_SINKS: dict[str, type[WandbSink] | type[TrackioSink] | type[MlflowSink]] = {
    "wandb": WandbSink,
    "trackio": TrackioSink,
    "mlflow": MlflowSink,
}


def open_trackers(config: TrainConfig) -> list[Tracker]:
    """A sink for every tracker that the config names.

    Raises:
        PolarError: its package is missing.
        MachineFailure: the tracker refuses, or can't be reached.
    """
    return [sink(project, config) for key, sink in _SINKS.items() if (project := getattr(config.log, key))]


def require_trackers(log: LogConfig, problems: Problems) -> None:
    """Check, without an import, that the packages of all named trackers are installed.

    problems: gets one for each package that is missing, with the command that installs it.
    """
    for key in _SINKS:
        if getattr(log, key):
            with problems.noted():
                require(key, f"log.{key}", key)


def run_id(output: Path) -> str:
    """The id of a run folder: its name and eight digits of the hash of its full path."""
    return f"{output.name}-{hashlib.sha256(str(output.resolve()).encode()).hexdigest()[:8]}"


@contextmanager
def _named(key: str) -> Iterator[None]:
    """What the library raises, as one line without credentials; the same command continues the run from its checkpoint."""
    try:
        yield
    except PolarError:
        raise
    except Exception as error:  # every library has types of its own
        text = re.sub(r"//[^/@\s]+@", "//", masked(first_line(error)))
        for secret in filter(None, map(os.environ.get, _SECRETS)):
            text = text.replace(secret, "***")
        raise MachineFailure(f"{key}: {type(error).__name__}: {text}") from None

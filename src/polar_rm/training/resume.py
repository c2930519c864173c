"""What must not change within a run, and what a run finds in its output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polar_rm.common.checksums import check_files
from polar_rm.common.files import differences, read_json
from polar_rm.common.outputs import FOUND, output_line
from polar_rm.encoded.order import VERSION as ORDER
from polar_rm.errors import ConfigError, Damaged
from polar_rm.training.config import TrainConfig
from polar_rm.training.prepare import Prepared
from polar_rm.training.state import find_readable


def identity(config: TrainConfig, prepared: Prepared) -> dict[str, Any]:
    """The settings that must not change within a run. World size, row budget, precision and logging may change."""
    settings = config.model_dump(mode="json", include={"model", "optim", "loss", "lora", "epochs", "max_steps", "seed"})
    return settings | {
        "base": prepared.base,
        "batch_size": prepared.plan.batch_size,
        "data": prepared.train_set.digest,
        "data_order": ORDER,
        "identical_steps": config.data.identical_steps,
        "encoder": prepared.encoder.hash,
    }


def check_identity(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a checkpoint is of this run. saved: of the checkpoint. now: of this run; see :func:`identity`.

    Raises:
        ConfigError: a setting is another one.
    """
    if changed := differences({key: saved.get(key) for key in now}, now):
        raise ConfigError(
            f"{path}: this run was started with other settings ({changed}); use the old ones or another output folder"
        )


def is_finished(config: TrainConfig, prepared: Prepared, step: int) -> bool:
    """Whether a run at ``step`` has made its last step and saved the model that is there. The model's files are compared by their
    sizes with what was saved; others, such as a calibration, may stand beside them."""
    path = config.output / "run.json"
    if step < prepared.plan.steps or not path.exists():
        return False
    run = read_json(path)
    if run.get("identity") != identity(config, prepared) or run["results"].get("steps") != step:
        return False
    try:
        check_files(config.output / "model", run["model"])
    except Damaged:
        return False
    return True


def describe_output(config: TrainConfig, prepared: Prepared) -> str:
    """A plan's line about the output folder: whether the run would start or continue, and after which step. Nothing is changed.

    Raises:
        ConfigError: the folder has a checkpoint of other settings, as for the run.
    """
    found = find_readable(config.output / "checkpoints")
    if found is None:
        replaced = ", and its model replaces the one that is there" if (config.output / "model").exists() else ""
        return output_line(config.output, f"{FOUND['new']}{replaced}")
    path, meta = found
    check_identity(path, meta["identity"], identity(config, prepared))
    step, steps = int(meta["step"]), prepared.plan.steps
    if is_finished(config, prepared, step):
        state = FOUND["finished"]
    elif step < steps:
        state = f"the run continues after step {step:,} of {steps:,}"
    else:
        state = f"all {steps:,} steps are done; the run saves their model"
    return output_line(config.output, state)

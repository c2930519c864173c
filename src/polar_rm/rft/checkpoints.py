"""TRL's checkpoints in the folder of a run: which one continues, and which a kill left incomplete."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from polar_rm.common.files import read_json
from polar_rm.errors import PolarError

_log = logging.getLogger("polar_rm.rft")


def checkpoints(output: Path) -> dict[Path, bool]:
    """TRL's checkpoints by step, and whether each is complete, which means that it has ``trainer_state.json``, the last file."""
    result: dict[Path, bool] = {}
    folders = (path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal())
    for folder in sorted(folders, key=step_of):
        try:
            read_json(folder / "trainer_state.json")
        except PolarError:
            result[folder] = False
        else:
            result[folder] = True
    return result


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def last_checkpoint(output: Path) -> Path | None:
    """The checkpoint from which a run continues, or None for a new run."""
    return next((folder for folder, is_complete in reversed(checkpoints(output).items()) if is_complete), None)


def remove_incomplete_checkpoints(output: Path) -> None:
    """Remove checkpoints that a kill left incomplete, because TRL itself would continue from the highest number."""
    for folder, is_complete in checkpoints(output).items():
        if not is_complete:
            _log.warning(
                "%s: removed, because it is incomplete (no trainer_state.json); the checkpoint before it is used", folder
            )
            shutil.rmtree(folder)

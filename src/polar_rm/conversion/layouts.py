"""The layout of a checkpoint's folder, by its ``config.json``; it loads no torch."""

from __future__ import annotations

from pathlib import Path

from polar_rm.common.files import read_json
from polar_rm.errors import PolarError

ARCHITECTURE = "InternLM2ForRewardModel"
"""The architecture in an official ``config.json``."""


def is_official(folder: str | Path) -> bool:
    """Whether a folder has the layout of the official POLAR checkpoints. A config that can't be read has none: who loads it
    reports it."""
    try:
        return read_json(Path(folder) / "config.json").get("architectures") == [ARCHITECTURE]
    except PolarError:
        return False

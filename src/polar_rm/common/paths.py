"""Checks that the paths of a command exist, which run before anything heavy is loaded."""

from __future__ import annotations

import re
from glob import iglob
from pathlib import Path

from polar_rm.errors import PolarError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def check_data(source: str | Path) -> None:
    """Check that data exists. source: a file, a folder or a pattern.

    Raises:
        PolarError: there is no such file or folder.
    """
    if not Path(source).exists() and next(iglob(str(source), recursive=True), None) is None:
        raise PolarError(f"{source}: no such file or folder")


def check_model(folder: str | Path) -> None:
    """Check that a model's folder exists. folder: a model in transformers' layout.

    Raises:
        PolarError: there is no such folder, or it holds no ``config.json``.
    """
    if not Path(folder).is_dir():
        if str(folder).startswith("hf:"):
            raise PolarError(f"{folder}: only a folder that polar saved is taken here, no hf:FOLDER")
        raise PolarError(no_model(folder))
    if not (Path(folder) / "config.json").is_file():
        raise PolarError(f"{folder}: not a folder of a model: it holds no config.json")


def no_model(name: str | Path) -> str:
    """The message about a missing model folder; for a name that looks like a hub id, with the command that downloads it."""
    text = str(name)
    if _HUB_ID.fullmatch(text) and not Path(text).parent.exists():
        return f"{text}: no such folder of a model; from the Hugging Face hub: hf download {text} --local-dir {Path(text).name}"
    return f"{text}: no such folder of a model (models are read from local folders)"

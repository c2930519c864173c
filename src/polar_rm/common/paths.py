"""Whether what a command names is there: asked before anything heavy is loaded."""

from __future__ import annotations

import re
from glob import iglob
from pathlib import Path

from polar_rm.errors import PolarError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def check_data(source: str | Path) -> None:
    """source: a file, a folder or a pattern.

    Raises:
        PolarError: nothing is there.
    """
    if not Path(source).exists() and next(iglob(str(source), recursive=True), None) is None:
        raise PolarError(f"{source}: no such file or folder")


def check_model(folder: str | Path) -> None:
    """folder: of a model in transformers' layout.

    Raises:
        PolarError: there is no such folder, or it holds no ``config.json``.
    """
    if not Path(folder).is_dir():
        raise PolarError(no_model(folder))
    if not (Path(folder) / "config.json").is_file():
        raise PolarError(f"{folder}: no folder of a model: it holds no config.json")


def no_model(name: str | Path) -> str:
    """The message about a model's folder that is missing; what looks like a hub id gets the command that fetches it."""
    text = str(name)
    if _HUB_ID.fullmatch(text) and not Path(text).parent.exists():
        return f"{text}: no such folder of a model; from the Hugging Face hub: hf download {text} --local-dir {Path(text).name}"
    return f"{text}: no such folder of a model (models are read from local folders)"

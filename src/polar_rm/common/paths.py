"""Checks that the models and data of a command exist, which run before anything heavy is loaded."""

from __future__ import annotations

from glob import iglob
from pathlib import Path

from polar_rm.common.sources import data_path, model_folder
from polar_rm.errors import PolarError


def check_data(source: str | Path) -> Path:
    """The local path of data that exists. source: a file, a folder, a pattern, or a remote name (see ``common.sources``).

    Raises:
        PolarError: there is no such file or folder.
    """
    if str(source) == "-":
        raise PolarError("-: data is not read from the standard input, because it is hashed, and read again; name a file")
    path = data_path(source)
    if not path.exists() and next(iglob(str(path), recursive=True), None) is None:
        raise PolarError(f"{source}: no such file or folder")
    return path


def check_model(source: str | Path, *, weights: bool = True) -> Path:
    """The local folder of a model in transformers' layout. source, weights: see :func:`polar_rm.common.sources.model_folder`.

    Raises:
        PolarError: there is no such model, or its folder holds no ``config.json``.
    """
    folder = model_folder(source, weights=weights)
    if not (folder / "config.json").is_file():
        raise PolarError(f"{source}: not a folder of a model: it holds no config.json{inner_models(source, folder)}")
    return folder


def inner_models(source: str | Path, folder: Path) -> str:
    """The end of a message about a folder without a model: the models in it, such as that of a run; empty where there is none.

    source: the folder's name, which the models' names begin with."""
    found = [path.parent for pattern in ("*/config.json", "*/model/config.json") for path in sorted(folder.glob(pattern))]
    found.sort(key=lambda path: path.name not in ("model", "policy"))
    names = [str(Path(source) / path.relative_to(folder)) for path in found[:3]]
    return f"; did you mean {' or '.join(names)}?" if names else ""

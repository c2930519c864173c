"""The config of a grid's ordinary training runs, and where the splits are; torch is not loaded."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from polar_rm.common.config import to_config
from polar_rm.errors import PolarError
from polar_rm.records import SUFFIXES
from polar_rm.scaling.config import ScalingConfig
from polar_rm.training.config import TrainConfig


def split_path(config: ScalingConfig, split: str) -> Path:
    """The folder or file of a split.

    Raises:
        PolarError: the corpus has no such split, or several files of this name.
    """
    if (folder := config.corpus / split).is_dir():
        return folder
    files = [file for suffix in SUFFIXES if (file := config.corpus / f"{split}{suffix}").is_file()]
    if len(files) > 1:
        raise PolarError(f"{config.corpus}: several files of the split {split!r}: {', '.join(file.name for file in files)}")
    if not files:
        there = sorted({path.name.split(".")[0] for path in config.corpus.glob("[!._]*")}) if config.corpus.is_dir() else []
        hint = f"; it holds {', '.join(there[:8])}" if there else ""
        raise PolarError(f"{config.corpus}: no split {split!r}{hint}")
    return files[0]


def training_config(
    config: ScalingConfig, size: str | int, *, output: Path, lr: float = 1.0, steps: int = 1, epochs: int = 1, seed: int = 0
) -> TrainConfig:
    """The config of an ordinary training run.

    Raises:
        ConfigError: a key of ``training`` is unknown or has a wrong value.
    """
    values: dict[str, Any] = deepcopy(config.training)
    for group in ("model", "data", "optim"):
        values[group] = dict(values.get(group, {}))
    values["model"] |= {"n_layers": size} if isinstance(size, int) else {"preset": size}
    values["data"] |= {"train": [split_path(config, config.train_split)], "cache": config.output / "data"}
    values["optim"] |= {"lr": lr}
    values |= {"output": output, "max_steps": steps, "epochs": epochs, "seed": seed}
    return to_config(TrainConfig, values, "training")


def size_name(size: str | int) -> str:
    """The name of an entry of ``sizes``."""
    return f"{size}layers" if isinstance(size, int) else size

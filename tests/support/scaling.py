"""Results of invented runs that follow a known law, in memory and as a finished grid on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from polar_rm.common.config import to_config
from polar_rm.common.files import write_json
from polar_rm.scaling.config import ScalingConfig
from polar_rm.scaling.points import Points
from polar_rm.scaling.results import Losses, Result, losses_file, write_losses, write_result

SIZES = {"1m": 1e6, "5m": 5e6, "15m": 15e6, "50m": 50e6, "100m": 100e6}
BUDGETS = (5, 10, 20, 40)


def result(size: str, budget: int, seed: int = 0, **changes: object) -> Result:
    """A run of ``budget`` tokens per parameter."""
    parameters = SIZES[size]
    values = Result(
        name=f"{size}-{budget}x-lr0.001-seed{seed}",
        size=size,
        budget=f"{budget}x",
        seed=seed,
        lr=0.001,
        batch_size=8,
        parameters=int(2 * parameters),
        non_embedding=int(parameters),
        steps=10,
        epochs=0.5,
        tokens=budget * parameters,
        flops=6 * parameters * budget * parameters,
        seconds=10.0,
        train_loss=0.5,
        diverged=None,
        evaluation={},
        encoder_hash="e",
        origin={"git": {"commit": "c", "dirty": False}},
    )
    return replace(values, **changes)


def results(sizes=tuple(SIZES), budgets=BUDGETS, seeds=(0,)) -> list[Result]:
    return [result(size, budget, seed) for seed in seeds for budget in budgets for size in sizes]


def points(runs, loss, *, prompts: int = 40, noise: float = 0.0, seed: int = 0) -> Points:
    """Two comparisons of one and two pairs for each prompt. loss: of every run. noise: deviation of a prompt's loss in one run,
    relative to the loss; the runs share half of its variance."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(0, noise / np.sqrt(2), (prompts, 1)), rng.normal(0, noise / np.sqrt(2), (prompts, len(runs)))
    by_prompt = np.asarray(loss) * (1 + shared + own)
    numbers = np.repeat(np.arange(prompts), 2)
    return Points(list(runs), by_prompt[numbers], np.tile([1, 2], prompts), numbers)


def losses_of(points: Points, run: int) -> Losses:
    names = np.array([f"prompt {number:04}" for number in points.prompts], dtype=object)
    return Losses(names, np.arange(len(names)), points.pairs, points.losses[:, run], points.pairs / 2)


def config(folder: Path, **changes: object) -> ScalingConfig:
    """The config of the grid that :func:`finished` writes."""
    values = {
        "output": str(folder / "out"),
        "corpus": str(folder / "corpus"),
        "eval_splits": ["seen", "other"],
        "sizes": list(SIZES),
        "budgets": {"per_parameter": list(BUDGETS)},
        "learning_rates": {"base": 0.001, "exponent": 0.0, "tune": "off"},
        "training": {"model": {"tokenizer": str(folder / "lm")}, "batch_size": 8},
        "fit": {"resamples": 40},
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return to_config(ScalingConfig, values, "the test")


def finished(folder: Path, by_split: dict[str, Points], **changes: object) -> ScalingConfig:
    """Write a grid as ``polar scaling run`` leaves it."""
    from polar_rm.common.checksums import write_sealed

    settings = config(folder, **changes)
    (settings.output / "data").mkdir(parents=True)
    write_json(settings.output / "data/settings.json", {})
    sizes = [
        {"name": name, "parameters": int(2 * n), "non_embedding": int(n), "flops_per_token": 6 * n} for name, n in SIZES.items()
    ]
    corpus = {"comparisons": 10**7, "tokens": 10**10}
    write_sealed(settings.output / "data/grid.json", {"corpus": corpus, "sizes": sizes})
    (settings.output / "scaling.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    first = next(iter(by_split.values()))
    for index, run in enumerate(first.results):
        write_run(settings, run, {split: losses_of(points, index) for split, points in by_split.items()})
    return settings


def write_run(settings: ScalingConfig, run: Result, losses: dict[str, Losses]) -> None:
    folder = settings.output / "runs" / run.name
    folder.mkdir(parents=True)
    for split, values in losses.items():
        write_losses(folder / losses_file(split), values)
    write_result(folder, replace(run, evaluation={split: values.facts() for split, values in losses.items()}))

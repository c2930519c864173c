"""Checkpoints of a run in progress, by PyTorch's distributed checkpoint: written by any number of ranks, read by any other.

The place in the data is the step alone (see :mod:`polar_rm.model.packing`) and random numbers are a function of (seed, step,
rank), so weights, optimiser moments and the step are the whole state.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from polar_rm.common.files import disk_refusal, read_json
from polar_rm.errors import PolarError
from polar_rm.training.parallel import Weights, World

_PREFIX = "step-"


def save(
    folder: Path,
    step: int,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    meta: dict[str, Any],
    where: World,
    keep: int,
) -> None:
    """Write ``folder/step-N`` and drop all but the newest ``keep``. Atomic: the name appears when everything is on disk.

    Raises:
        PolarError: the disk is full or not writable; older checkpoints stay.
    """
    target = folder / f"{_PREFIX}{step:08d}"
    partial = target.with_name(f".{target.name}.partial")
    if where.main:
        shutil.rmtree(partial, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    where.barrier()
    try:
        with _Quiet():
            dcp.save(_state(weights, optimizer), checkpoint_id=partial, no_dist=where.size == 1)  # type: ignore[attr-defined]
        if where.main:
            (partial / "meta.json").write_text(json.dumps(meta | {"step": step}))
    except BaseException as error:  # DCP's own errors are no Exceptions
        refusal = disk_refusal(error, partial)
        if where.main:
            shutil.rmtree(partial, ignore_errors=True)
        if refusal:
            raise PolarError(f"{target}: checkpoint could not be saved: {refusal}") from error
        raise
    where.barrier()
    if where.main:
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in _complete(folder)[:-keep]:
            shutil.rmtree(old)
    where.barrier()


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = _complete(folder)
    return found[-1] if found else None


def read_meta(path: Path) -> dict[str, Any]:
    """What :func:`save` was given as ``meta``, and the ``step``."""
    return read_json(path / "meta.json")


def load(path: Path, weights: Weights, optimizer: torch.optim.Optimizer, where: World) -> None:
    """Restore weights and optimiser in place."""
    step = float(read_meta(path)["step"])
    # The moments exist only after a step; make them, so that there is something of the right sharding to load into.
    for tensor in weights.named.values():
        tensor.grad = torch.zeros_like(tensor)
    saved_rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, saved_rates, strict=True):
        group["lr"] = rate
    state = _state(weights, optimizer)
    with _Quiet():
        dcp.load(state, checkpoint_id=path, no_dist=where.size == 1)  # type: ignore[attr-defined]
    for name, tensor in weights.named.items():
        optimizer.state[tensor]["step"].fill_(step)
        optimizer.state[tensor]["exp_avg"].copy_(state["exp_avg"][name])
        optimizer.state[tensor]["exp_avg_sq"].copy_(state["exp_avg_sq"][name])
    weights.publish()


def _state(weights: Weights, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    moments = {key: {n: optimizer.state[t][key] for n, t in weights.named.items()} for key in ("exp_avg", "exp_avg_sq")}
    return {"model": {name: tensor.detach() for name, tensor in weights.named.items()}, **moments}


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if (path / "meta.json").is_file())


class _Quiet:
    """DCP warns on every call that a single process does not need a process group, and logs its planner."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        self._warnings.__exit__(None, None, None)

"""Checkpoints of a run in progress, by PyTorch's distributed checkpoint: written by any number of ranks, read by any other.

The place in the data is the step alone (see :mod:`polar_rm.model.packing`) and random numbers are a function of (seed, step,
rank), so weights, optimiser moments and the step are the whole state. ``meta.json`` holds size and checksum of every file, so
that a damaged checkpoint is known for one before it is read.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from polar_rm.common.checksums import check_files, describe_files, read_sealed, write_sealed
from polar_rm.common.files import disk_refusal, sync
from polar_rm.common.text import first_line
from polar_rm.errors import Damaged, PolarError
from polar_rm.training.parallel import Weights, World

_PREFIX = "step-"
_META = "meta.json"


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
    try:
        where.from_main(lambda: _clear(partial))
        with _quiet():
            dcp.save(_state(weights, optimizer), checkpoint_id=partial, no_dist=where.size == 1)  # type: ignore[attr-defined]
        # Every rank reads its own files again, so that rank 0 need not read them all.
        own = [path.name for path in partial.glob(f"__{where.rank}_*")] + [".metadata"] * where.is_main
        for name in own:
            sync(partial / name)
        files = {name: facts for each in where.gather(describe_files(partial, own)) for name, facts in each.items()}
        where.from_main(lambda: _publish(partial, target, meta | {"step": step, "files": files}, keep))
    except BaseException as error:  # DCP's own errors are no Exceptions
        refusal = disk_refusal(error, partial)
        if where.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        if refusal:
            raise PolarError(f"{target}: checkpoint could not be saved: {refusal}") from error
        raise


def newest(folder: Path, report: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is as it was written, and its ``meta``; None where there is none.

    Damaged ones are set aside under another name. report: told, in a sentence, of each.
    """
    for path in reversed(_checkpoints(folder)):
        try:
            meta = read_sealed(path / _META)
            check_files(path, meta["files"], full=True)
        except Damaged as error:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            report(f"{error}; this checkpoint is damaged and was set aside as {aside.name}, the one before is looked at")
        else:
            return path, meta
    return None


def load(path: Path, step: int, weights: Weights, optimizer: torch.optim.Optimizer, where: World) -> None:
    """Restore weights and optimiser in place.

    Raises:
        PolarError: torch can't read the checkpoint, though its files are as they were written.
    """
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
    try:
        with _quiet():
            dcp.load(state, checkpoint_id=path, no_dist=where.size == 1)  # type: ignore[attr-defined]
    except (Exception, CheckpointException) as error:
        raise PolarError(
            f"{path}: torch can't read this checkpoint ({first_line(error)}); moved away, the run continues behind the one before"
        ) from error
    for name, tensor in weights.named.items():
        optimizer.state[tensor]["step"].fill_(float(step))
        optimizer.state[tensor]["exp_avg"].copy_(state["exp_avg"][name])
        optimizer.state[tensor]["exp_avg_sq"].copy_(state["exp_avg_sq"][name])
    weights.publish()


def _clear(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)


def _publish(partial: Path, target: Path, meta: dict[str, Any], keep: int) -> None:
    """Give a checkpoint its name, once all of it is on the disk."""
    write_sealed(partial / _META, meta)
    sync(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    sync(target.parent)
    for old in _checkpoints(target.parent)[:-keep]:
        shutil.rmtree(old)


def _state(weights: Weights, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    moments = {key: {n: optimizer.state[t][key] for n, t in weights.named.items()} for key in ("exp_avg", "exp_avg_sq")}
    return {"model": {name: tensor.detach() for name, tensor in weights.named.items()}, **moments}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns on every call that a single process does not need a process group, and logs its planner."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

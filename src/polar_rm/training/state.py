"""Checkpoints of a run in progress, with PyTorch's distributed checkpoint (DCP): the number of ranks may change between runs.

The position in the data is the step (see :mod:`polar_rm.model.packing`), and random numbers are a function of (seed, step, rank).
So weights, optimiser moments and the step are the whole state. ``meta.json`` has the size and checksum of every file, so that a
damaged checkpoint is recognised before it is loaded.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from polar_rm.common.checksums import check_files, describe_files, read_sealed, write_sealed
from polar_rm.common.files import disk_refusal, interruption, sync
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
    world: World,
    keep: int,
) -> None:
    """Write ``folder/step-N`` and delete all checkpoints but the newest ``keep``.

    Saving is atomic: the folder gets its name when all of it is on the disk.

    Raises:
        PolarError: the disk is full or not writable; older checkpoints are kept.
    """
    target = folder / f"{_PREFIX}{step:08d}"
    partial = target.with_name(f".{target.name}.partial")
    try:
        world.from_main(lambda: _clear(partial))
        with _quiet():
            dcp.save(_state(weights, optimizer), checkpoint_id=partial, no_dist=world.size == 1)  # type: ignore[attr-defined]
        # Every rank hashes the files that it wrote, so that rank 0 need not read all of them.
        names = [path.name for path in partial.glob(f"__{world.rank}_*")] + [".metadata"] * world.is_main
        for name in names:
            sync(partial / name)
        files = {name: facts for each in world.gather(describe_files(partial, names)) for name, facts in each.items()}
        world.from_main(lambda: _publish(partial, target, meta | {"step": step, "files": files}, keep))
    except BaseException as error:  # DCP's errors do not derive from Exception
        refusal = disk_refusal(error, partial)
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        if refusal:
            raise PolarError(f"{target}: checkpoint could not be saved: {refusal}") from error
        if interrupt := interruption(error):
            raise interrupt from None
        raise


def find_newest(folder: Path, report: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest undamaged checkpoint and its ``meta``; None where there is none.

    Damaged checkpoints are renamed. report: called with a message for each of them.
    """
    for path in reversed(_checkpoints(folder)):
        try:
            meta = read_sealed(path / _META)
            check_files(path, meta["files"], full=True)
        except Damaged as error:
            renamed = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(renamed, ignore_errors=True)
            path.rename(renamed)
            report(f"{error}; this checkpoint is damaged and was renamed to {renamed.name}; the one before it is tried")
        else:
            return path, meta
    return None


def find_readable(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """As :func:`find_newest`, for a plan: no contents are read, only sizes, and nothing is renamed or told."""
    for path in reversed(_checkpoints(folder)):
        with suppress(Damaged):
            meta = read_sealed(path / _META)
            check_files(path, meta["files"])
            return path, meta
    return None


def load(path: Path, step: int, weights: Weights, optimizer: torch.optim.Optimizer, world: World) -> None:
    """Restore weights and optimiser in place.

    Raises:
        PolarError: torch can't read the checkpoint, although its files are undamaged.
    """
    # The optimiser creates its moments in a step; a step with zero gradients and rate creates them with the right sharding.
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
            dcp.load(state, checkpoint_id=path, no_dist=world.size == 1)  # type: ignore[attr-defined]
    except (Exception, CheckpointException) as error:
        raise PolarError(
            f"{path}: torch can't read this checkpoint ({first_line(error)}); move it away to continue from the one before it"
        ) from error
    for name, tensor in weights.named.items():
        optimizer.state[tensor]["step"].fill_(float(step))
        optimizer.state[tensor]["exp_avg"].copy_(state["exp_avg"][name])
        optimizer.state[tensor]["exp_avg_sq"].copy_(state["exp_avg_sq"][name])
    weights.update_copies()


def _clear(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)


def _publish(partial: Path, target: Path, meta: dict[str, Any], keep: int) -> None:
    """Sync a checkpoint to the disk, give it its final name, and delete old ones."""
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
    """Silence DCP: it warns on every call that a single process needs no process group, and logs its planner."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

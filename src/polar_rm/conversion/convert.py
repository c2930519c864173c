"""``polar convert``: the plan of a conversion, and the conversion, one shard at a time."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from polar_rm.common.files import check_new_folder
from polar_rm.common.locks import owned
from polar_rm.common.paths import check_model
from polar_rm.conversion.layouts import is_official
from polar_rm.conversion.plan import Conversion, Layout
from polar_rm.errors import PolarError
from polar_rm.model.folders import check_sizes
from polar_rm.model.native import write_checkpoint
from polar_rm.publishing.card import model_card, write_card


def plan(source: str | Path, *, to: Layout = "native", dtype: str | None = None) -> Conversion:
    """Plan the conversion of a folder without loading its weights.

    dtype: the type of the converted weights; by default each tensor keeps its type.

    Raises:
        UnsupportedModel: the folder can't be converted exactly; the message has the reason.
        PolarError: there is no such folder, or it has the layout ``to`` already.
    """
    from polar_rm.conversion.internlm2 import from_internlm2, to_internlm2
    from polar_rm.conversion.stock import from_stock

    folder = check_model(source)
    config = check_sizes(folder / "config.json")
    native = isinstance(config.get("polar"), dict)
    if to == "internlm2":
        if not native:
            raise PolarError(f"{folder}: only a native folder can be written as internlm2; convert it to native first")
        conversion = to_internlm2(folder)
    elif native:
        raise PolarError(f"{folder}: it is a native folder already")
    elif is_official(folder):
        conversion = from_internlm2(folder)
    else:
        conversion = from_stock(folder)
    return _cast(conversion, dtype) if dtype else conversion


def convert(source: str | Path, target: str | Path, *, to: Layout = "native", dtype: str | None = None) -> Conversion:
    """Write ``source`` in another layout to the new folder ``target``; returns the conversion.

    A native folder gets a card, ``README.md``. It needs the memory of about two shards of 1 GiB, whatever the size of the
    model. A failure leaves no ``target``.

    Raises:
        UnsupportedModel: as in :func:`plan`, or a tensor holds NaN.
        PolarError: ``target`` exists already, another process writes it, or the disk is full.
    """
    target = Path(target)
    check_new_folder(target)
    conversion = plan(source, to=to, dtype=dtype)
    # The owner removes what a killed conversion left, which may be as large as the model, and only then asks for room.
    with owned(target, "convert"):
        check_new_folder(target)
        free = shutil.disk_usage(target.absolute().parent).free
        if conversion.nbytes > free:
            raise PolarError(f"{target}: it needs {conversion.nbytes / 1e9:,.1f} GB, but only {free / 1e9:,.1f} GB are free")
        write_checkpoint(target, conversion.config, conversion.tensors, conversion.files)
        if to == "native":
            write_card(target, model_card(target, target.name, converted_from=source))
    return conversion


def _cast(conversion: Conversion, dtype: str) -> Conversion:
    target = getattr(torch, dtype)
    notes = list(conversion.notes)
    if any(tensor.dtype != target and target.itemsize <= tensor.dtype.itemsize for tensor in conversion.tensors.values()):
        notes.append(f"rounded to {dtype}: scores will differ by about its precision")
    tensors = {name: tensor.to(target) for name, tensor in conversion.tensors.items()}
    config = {**conversion.config, **{key: dtype for key in ("dtype", "torch_dtype") if key in conversion.config}}
    return replace(conversion, tensors=tensors, config=config, notes=tuple(notes))

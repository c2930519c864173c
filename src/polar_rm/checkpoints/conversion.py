"""``polar convert``: what becomes of which folder, and doing it a shard at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from polar_rm.checkpoints.native import write_checkpoint
from polar_rm.checkpoints.weights import LazyTensor
from polar_rm.encoding import Encoder, EncoderSettings
from polar_rm.errors import PolarError
from polar_rm.files import read_json

Layout = Literal["native", "internlm2"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """A checkpoint that can be written. config: of ``config.json``. files: contents by path. notes: what a user should know."""

    title: str
    config: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]
    files: Mapping[str, bytes]
    encoder: Encoder
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Of the weights that will be written."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def describe(self) -> list[tuple[str, str]]:
        """Lines (name, value) for a person."""
        settings = self.encoder.settings
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors.values()})
        parameters = sum(prod(tensor.shape) for tensor in self.tensors.values())
        return [
            ("layout", self.title),
            ("parameters", f"{parameters:,} in {len(self.tensors):,} tensors, {', '.join(dtypes)}"),
            ("disk", f"{self.nbytes / 1e9:,.2f} GB"),
            ("separator", f"{settings.separator_token} = {self.encoder.separator_id}"),
            ("scoring token", f"{settings.reward_token} = {self.encoder.reward_id}"),
            ("lengths", f"{settings.max_length:,} in all, {settings.max_response_length:,} a response"),
            ("encoder", self.encoder.hash),
            *(("note", note) for note in self.notes),
        ]


def plan(source: str | Path, *, to: Layout = "native", dtype: str | None = None) -> Conversion:
    """Look at a folder without loading its weights. dtype: of the result's weights; by default each tensor keeps its own.

    Raises:
        UnsupportedModel: it can't be converted exactly; the message says why.
    """
    from polar_rm.checkpoints.heads import from_stock
    from polar_rm.checkpoints.internlm2 import ARCHITECTURE, from_internlm2, to_internlm2

    folder = Path(source)
    if not folder.is_dir():
        raise PolarError(f"{folder}: no such folder of a model")
    config = read_json(folder / "config.json")
    native = isinstance(config.get("polar"), dict)
    if to == "internlm2":
        if not native:
            raise PolarError(f"{folder}: only a native folder is written as internlm2; convert it to native first")
        conversion = to_internlm2(folder)
    elif native:
        raise PolarError(f"{folder}: is a native folder already")
    elif config.get("architectures") == [ARCHITECTURE]:
        conversion = from_internlm2(folder)
    else:
        conversion = from_stock(folder)
    return _cast(conversion, dtype) if dtype else conversion


def convert(source: str | Path, target: str | Path, *, to: Layout = "native", dtype: str | None = None) -> Conversion:
    """Write ``source`` in another layout to the new folder ``target``; returns what was done.

    Memory stays at about two shards of 1 GiB, whatever the size of the model. A failure leaves no ``target``.

    Raises:
        UnsupportedModel: as :func:`plan`, or a tensor holds NaN. PolarError: ``target`` is there already, or the disk is full.
    """
    conversion = plan(source, to=to, dtype=dtype)
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PolarError(f"{target}: exists already; name a new folder")
    existing = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(existing).free
    if conversion.nbytes > free:
        raise PolarError(f"{target}: needs {conversion.nbytes / 1e9:,.1f} GB, only {free / 1e9:,.1f} GB are free")
    write_checkpoint(target, conversion.config, conversion.tensors, conversion.files)
    return conversion


def encoder_settings(max_positions: int, **settings: Any) -> EncoderSettings:
    """Lengths as the official client has them, or shorter where the backbone has fewer positions."""
    most = EncoderSettings()
    length = min(most.max_length, max_positions)
    return EncoderSettings(max_length=length, max_response_length=min(most.max_response_length, length // 4), **settings)


def _cast(conversion: Conversion, dtype: str) -> Conversion:
    wanted = getattr(torch, dtype)
    notes = list(conversion.notes)
    if any(tensor.dtype != wanted and wanted.itemsize <= tensor.dtype.itemsize for tensor in conversion.tensors.values()):
        notes.append(f"rounded to {dtype}: scores will differ by about its precision")
    tensors = {name: tensor.to(wanted) for name, tensor in conversion.tensors.items()}
    config = {**conversion.config, **{key: dtype for key in ("dtype", "torch_dtype") if key in conversion.config}}
    return replace(conversion, tensors=tensors, config=config, notes=tuple(notes))

"""Weights as names, shapes and functions that load each tensor, so that a model is converted one shard at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from polar_rm.common.files import read_json, write_json
from polar_rm.common.text import first_line
from polar_rm.errors import PolarError, UnsupportedModel

# A shard is in memory while it is written (and a copied one also mapped from its source), so small shards keep a 7B model far
# below 4 GB. Its largest tensor, the embedding, has 0.8 GB in half precision.
SHARD_BYTES = 1 << 30

# Bytes of a compressed pickle in PyTorch's file format, which describes the tensors; that of a 7B model has 100 kB.
MAX_DESCRIPTION = 1 << 26
_NOT_WEIGHTS = "not a file of weights only in torch's zip format; save it as safetensors"

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is read on each call of ``load`` and not kept."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> LazyTensor:
        """A tensor in memory; ``load`` copies it to the CPU."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().cpu())

    @property
    def nbytes(self) -> int:
        """Bytes of the loaded tensor."""
        return prod(self.shape) * self.dtype.itemsize

    def map(self, function: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...] | None = None) -> LazyTensor:
        """The tensor after ``function``. shape: the shape of the result, by default the same."""
        return replace(self, shape=shape or self.shape, load=lambda: function(self.load()))

    def to(self, dtype: torch.dtype) -> LazyTensor:
        """The same values in another type."""
        return replace(self, dtype=dtype, load=lambda: self.load().to(dtype))


def read_weights(folder: Path) -> dict[str, LazyTensor]:
    """All tensors of a checkpoint folder, without loading them, from safetensors or else from PyTorch's own files.

    PyTorch's files are pickles. ``weights_only`` admits tensors and no code (with torch 2.6 or later, which we require), and
    ``mmap`` leaves the data on the disk. The format from before torch 1.6 can't be mapped and is refused.

    Raises:
        PolarError: there are no weights, or a shard is missing or damaged.
        UnsupportedModel: the weights are quantised.
    """
    tensors: dict[str, LazyTensor] = {}
    for shard in _shards(folder):
        tensors |= _safetensors(shard) if shard.suffix == ".safetensors" else _pickled(shard)
    # Old checkpoints contain this buffer, which every version of transformers computes itself.
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a checkpoint folder, whatever their types; errors as in :func:`read_weights`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in _shards(folder):
        if shard.suffix == ".safetensors":
            with _opened(shard) as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (no mapping)
        else:
            shapes |= {name: tuple(getattr(value, "shape", ())) for name, value in _unpickled(shard).items()}
    return shapes


def check_weights(folder: Path) -> None:
    """Check the files of weights before a library reads them; errors as in :func:`read_weights`, but of any types."""
    tensor_shapes(folder)


def _shards(folder: Path) -> list[Path]:
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if index.is_file():
            shards = sorted(set(_weight_map(index).values()))
        elif (folder / single).is_file():
            shards = [single]
        else:
            continue
        for shard in shards:
            # A shard's name comes from a downloaded file and must not point outside the folder.
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise PolarError(f"{index}: it names the shard {shard!r}, which is not in the folder")
        return [folder / shard for shard in shards]
    adapter = " (a PEFT adapter: merge it into its base first)" if (folder / "adapter_config.json").is_file() else ""
    raise PolarError(f"{folder}: it has neither model.safetensors nor pytorch_model.bin{adapter}")


def write_shards(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write safetensors files of about ``SHARD_BYTES`` with their index; one shard at a time is in memory.

    Raises:
        UnsupportedModel: a tensor holds NaN or infinite values.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: _loaded(name, tensors[name]) for name in names}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def check_tensors(folder: Path, tensors: Mapping[str, LazyTensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check tensors against the names and shapes of an architecture.

    Raises:
        UnsupportedModel: names the first tensor that is missing, is not part of the architecture or has another shape.
    """
    for problem, names in (("missing", expected.keys() - tensors.keys()), ("unexpected", tensors.keys() - expected.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UnsupportedModel(f"{folder}: {problem} tensor {min(names)!r}{more}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UnsupportedModel(
                f"{folder}: tensor {name!r} has the shape {list(tensors[name].shape)}, but the config says {list(shape)}"
            )


def _weight_map(path: Path) -> dict[str, str]:
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise PolarError(f"{path}: it has no 'weight_map' from tensors to shards")
    return names


def _loaded(name: str, tensor: LazyTensor) -> torch.Tensor:
    values = tensor.load().contiguous()
    # Minimum and maximum propagate NaN and infinity, and unlike isfinite they need no second tensor.
    if not all(map(torch.isfinite, torch.aminmax(values))):
        raise UnsupportedModel(f"tensor {name!r} holds NaN or infinite values, or numbers too large for {tensor.dtype}")
    return values


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise PolarError(f"{path}: not a complete safetensors file: {error}") from error


def _safetensors(path: Path) -> dict[str, LazyTensor]:
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (the file is not a mapping)
        kinds = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    for name, (_, kind) in kinds.items():
        if kind not in _DTYPES:
            raise UnsupportedModel(f"{path}: tensor {name!r} is {kind}: quantised weights can't be converted")
    return {name: LazyTensor(shape, _DTYPES[kind], partial(_get, path, name)) for name, (shape, kind) in kinds.items()}


def _get(path: Path, name: str) -> torch.Tensor:
    # The file is opened for one tensor, so that the mapping and its memory are freed with the tensor.
    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def _pickled(path: Path) -> dict[str, LazyTensor]:
    for name, tensor in (tensors := _unpickled(path)).items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES.values():
            raise UnsupportedModel(f"{path}: {name!r} is not a floating-point tensor")
    return {
        name: LazyTensor(tuple(tensor.shape), tensor.dtype, partial(lambda name: _unpickled(path)[name], name))
        for name, tensor in tensors.items()
    }


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    check_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises bare RuntimeErrors and pickle's errors, with pages of advice
        raise PolarError(f"{path}: {_NOT_WEIGHTS} ({first_line(error)})") from error
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise PolarError(f"{path}: {_NOT_WEIGHTS} (it holds no tensors by name)")
    return loaded


def check_archive(path: Path) -> None:
    """Check that a file of PyTorch does not decompress to much more memory than its size: its pickle may be compressed.

    Raises:
        PolarError: it does, or it is not in torch's zip format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise PolarError(f"{path}: {_NOT_WEIGHTS} ({error})") from error
    for member in members:
        limit = MAX_DESCRIPTION if member.filename.endswith("data.pkl") else member.compress_size
        if member.compress_type != zipfile.ZIP_STORED and member.file_size > limit:
            raise PolarError(
                f"{path}: {member.filename!r} is compressed, {member.compress_size:,} bytes for {member.file_size:,}; torch "
                f"does not compress, and at most {MAX_DESCRIPTION:,} bytes are decompressed"
            )

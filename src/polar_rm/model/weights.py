"""Weights as names, shapes and a way to load each tensor: a model passes from folder to folder one shard at a time."""

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

# A shard is held in memory while it is written (and, where it is a copy, mapped where it comes from): small ones keep a 7B model
# far below 4 GB. The largest single tensor of one, its embedding, is 0.8 GB in half precision.
SHARD_BYTES = 1 << 30

# Bytes of a packed description of tensors in PyTorch's own file; that of a 7B model has 100 kB.
MAX_DESCRIPTION = 1 << 26
_NO_WEIGHTS = "not weights alone in torch's zip format; save it as safetensors"

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is read when it is asked for, and forgotten by its owner at once."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> LazyTensor:
        """Of a tensor in memory; it is brought to the CPU when it is loaded."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().cpu())

    @property
    def nbytes(self) -> int:
        """Bytes that it takes when loaded."""
        return prod(self.shape) * self.dtype.itemsize

    def then(self, change: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...] | None = None) -> LazyTensor:
        """The tensor after ``change``, which gives it ``shape``."""
        return replace(self, shape=shape or self.shape, load=lambda: change(self.load()))

    def to(self, dtype: torch.dtype) -> LazyTensor:
        """The same values in another type."""
        return replace(self, dtype=dtype, load=lambda: self.load().to(dtype))


def read_weights(folder: Path) -> dict[str, LazyTensor]:
    """All tensors of a checkpoint folder, none of them loaded: safetensors, or else PyTorch's own files.

    The latter are pickles. ``weights_only`` admits tensors and nothing that runs (torch 2.6 and later, which we require), and
    ``mmap`` leaves the data on the disk; the old format from before torch 1.6 can't be mapped and is refused.

    Raises:
        PolarError: no weights, a missing or damaged shard. UnsupportedModel: quantised weights.
    """
    tensors: dict[str, LazyTensor] = {}
    for shard in _shards(folder):
        tensors |= _safetensors(shard) if shard.suffix == ".safetensors" else _pickled(shard)
    # Old checkpoints carry this buffer, which every version computes anew.
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}


def tensor_names(folder: Path) -> list[str]:
    """Names of all tensors of a checkpoint folder, of whatever type; errors as of :func:`read_weights`."""
    names: list[str] = []
    for shard in _shards(folder):
        if shard.suffix == ".safetensors":
            with _opened(shard) as file:
                names += file.keys()
        else:
            names += _unpickled(shard)
    return names


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
            # A shard's name comes from a downloaded file: it may not point out of the folder.
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise PolarError(f"{index}: names the shard {shard!r}, which is not in the folder")
        return [folder / shard for shard in shards]
    adapter = " (a PEFT adapter: merge it into its base first)" if (folder / "adapter_config.json").is_file() else ""
    raise PolarError(f"{folder}: no model.safetensors and no pytorch_model.bin there{adapter}")


def write_shards(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Safetensors files of about ``SHARD_BYTES`` with their index; each shard is loaded, written and let go.

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
    places = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: _loaded(name, tensors[name]) for name in names}, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def check_tensors(folder: Path, tensors: Mapping[str, LazyTensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UnsupportedModel with the first tensor that is missing, has no place in the architecture or another shape."""
    for problem, names in (("missing", expected.keys() - tensors.keys()), ("unexpected", tensors.keys() - expected.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UnsupportedModel(f"{folder}: {problem} tensor {min(names)!r}{more}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UnsupportedModel(f"{folder}: tensor {name!r} is {list(tensors[name].shape)}, its config says {list(shape)}")


def _weight_map(path: Path) -> dict[str, str]:
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise PolarError(f"{path}: has no 'weight_map' from tensors to shards")
    return names


def _loaded(name: str, tensor: LazyTensor) -> torch.Tensor:
    values = tensor.load().contiguous()
    # Lowest and highest carry NaN and infinity along, and unlike isfinite they need no second tensor.
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
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        kinds = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    for name, (_, kind) in kinds.items():
        if kind not in _DTYPES:
            raise UnsupportedModel(f"{path}: tensor {name!r} is {kind}: quantised weights can't be converted")
    return {name: LazyTensor(shape, _DTYPES[kind], partial(_get, path, name)) for name, (shape, kind) in kinds.items()}


def _get(path: Path, name: str) -> torch.Tensor:
    # Opened for one tensor: the mapping, and with it the memory, goes when the tensor goes.
    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def _pickled(path: Path) -> dict[str, LazyTensor]:
    for name, tensor in (found := _unpickled(path)).items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES.values():
            raise UnsupportedModel(f"{path}: {name!r} is no tensor of numbers with a fraction")
    return {
        name: LazyTensor(tuple(tensor.shape), tensor.dtype, partial(lambda name: _unpickled(path)[name], name))
        for name, tensor in found.items()
    }


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    _check_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises bare RuntimeError and pickle's own errors, with pages of advice
        raise PolarError(f"{path}: {_NO_WEIGHTS} ({first_line(error)})") from error
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise PolarError(f"{path}: {_NO_WEIGHTS} (it holds no tensors by name)")
    return loaded


def _check_archive(path: Path) -> None:
    """Whether PyTorch's own file can be opened without more memory than it shows: its pickle may be packed."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise PolarError(f"{path}: {_NO_WEIGHTS} ({error})") from error
    for member in members:
        limit = MAX_DESCRIPTION if member.filename.endswith("data.pkl") else member.compress_size
        if member.compress_type != zipfile.ZIP_STORED and member.file_size > limit:
            raise PolarError(
                f"{path}: {member.filename!r} is packed, {member.compress_size:,} bytes for {member.file_size:,}; torch packs "
                f"nothing, and at most {MAX_DESCRIPTION:,} are unpacked"
            )

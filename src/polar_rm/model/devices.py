"""The device that a verb runs on, and its precision."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any, get_args

import torch

from polar_rm.common.devices import DeviceName
from polar_rm.common.memory import machine_memory
from polar_rm.common.processes import n_started
from polar_rm.errors import PolarError
from polar_rm.model.int8 import check_int8

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

# Variables of oneDNN and of PyTorch's layer above it, which both read at the first matrix product.
_PRODUCT_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


_KINDS = {"cuda": "CUDA device", "mps": "GPU of a Mac"}
DTYPES = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}
"""The precisions' names in our options -> their names in PyTorch and transformers."""


def pick_device(name: str) -> str:
    """``cpu``, ``cuda`` or ``mps``; ``auto`` takes CUDA if there is a CUDA device, else the GPU of a Mac, else the CPU.

    Under ``torchrun`` ``auto`` takes no ``mps``: a Mac has one GPU, and torch has no collectives on it.

    Raises:
        PolarError: the name is unknown, torch sees no such device, or several ranks ask for ``mps``.
    """
    known = get_args(DeviceName)
    if name not in known:
        raise PolarError(f"unknown device {name!r}; known: {', '.join(known)}")
    one_rank = n_started() == 1
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if present["cuda"] else "mps" if present["mps"] and one_rank else "cpu"
    if not present[name]:
        raise PolarError(f"device {name} was requested, but torch sees no {_KINDS[name]}")
    if name == "mps" and not one_rank:
        raise PolarError("device mps was requested by several ranks, but a Mac has one GPU: start one process")
    return name


def claim_device(name: str) -> str:
    """:func:`pick_device`, with settings of the whole process for work on a CPU.

    The process keeps freed memory for the next batch of about the same size. glibc returns buffers beyond 32 MB to the kernel on
    every free, and the kernel zeroes their pages again: up to about a tenth of the time of scoring. Other C libraries have no
    such switch, or need none.

    oneDNN, which computes bfloat16 on CPUs, builds code for every shape of a product, and two caches keep a thousand of these
    each. That is more than a gigabyte for rows of varying lengths, whose shapes hardly ever repeat. The caches are made smaller
    unless the environment sets their sizes.
    """
    device = pick_device(name)
    if device == "cpu":
        for cache in _PRODUCT_CACHES:
            os.environ.setdefault(cache, "128")
    libc = ctypes.CDLL(None) if device == "cpu" and sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return device


def memory_of(device: str) -> tuple[int | None, str]:
    """Bytes that weights on a device can take at most (None: not known), and what to call it.

    For a GPU they are mapped from their files, so that the machine's own memory need not hold them.
    """
    if device == "mps":
        return torch.mps.recommended_max_memory(), "this GPU"
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory, "this GPU"
    return machine_memory(), "this machine"


def compute_dtype(precision: str, device: str) -> torch.dtype:
    """The type of matrix products: ``bf16``, ``fp32``, ``fp16``; ``auto`` is bf16 where the hardware has it, else fp32.

    On a Mac's GPU ``auto`` is fp32, because the first chips only emulate bfloat16; bf16 needs macOS 14.

    Raises:
        PolarError: the name is another, or the device has no bfloat16.
    """
    if device == "mps" and precision == "bf16" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise PolarError("precision bf16 on device mps needs macOS 14 or newer; use fp32 or fp16")
    if precision == "auto":
        # On GPUs before Ampere torch emulates bfloat16, and by default counts that as support.
        on_gpu = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        native = on_gpu or (device == "cpu" and _cpu_has_bf16())
        precision = "bf16" if native else "fp32"
    if precision not in DTYPES:
        raise PolarError(f"unknown precision {precision!r}; known: auto, {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, DTYPES[precision])
    return dtype


def dtype_name(precision: str, device: str) -> str:
    """The name of :func:`compute_dtype` in PyTorch and transformers, such as ``bfloat16``; or ``int8``, for inference.

    Raises:
        PolarError: as :func:`compute_dtype`, or int8 can't be used on this device.
    """
    if precision == "int8":
        check_int8(device)
        return precision
    return str(compute_dtype(precision, device)).removeprefix("torch.")


def _cpu_has_bf16() -> bool:
    """Whether the CPU has bfloat16 instructions; emulated bfloat16 is several times slower than float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))

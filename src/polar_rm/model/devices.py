"""The device that a verb runs on, and its precision."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import torch

from polar_rm.common.memory import machine_memory
from polar_rm.errors import PolarError

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

# Variables of oneDNN and of PyTorch's layer above it, which both read at the first matrix product.
_PRODUCT_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


DTYPES = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}
"""The precisions' names in our options -> their names in PyTorch and transformers."""


def pick_device(name: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes CUDA if there is a CUDA device.

    Raises:
        PolarError: the name is unknown, or torch sees no CUDA device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise PolarError(f"unknown device {name!r}; known: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise PolarError("device cuda was requested, but torch sees no CUDA device")
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
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory, "this GPU"
    return machine_memory(), "this machine"


def compute_dtype(precision: str, device: str) -> torch.dtype:
    """The type of matrix products: ``bf16``, ``fp32``, ``fp16``; ``auto`` is bf16 where the hardware has it, else fp32.

    Raises:
        PolarError: the name is another.
    """
    if precision == "auto":
        # On GPUs before Ampere torch emulates bfloat16, and by default counts that as support.
        native = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else _cpu_has_bf16()
        precision = "bf16" if native else "fp32"
    if precision not in DTYPES:
        raise PolarError(f"unknown precision {precision!r}; known: auto, {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, DTYPES[precision])
    return dtype


def dtype_name(precision: str, device: str) -> str:
    """The name of :func:`compute_dtype` in PyTorch and transformers, such as ``bfloat16``."""
    return str(compute_dtype(precision, device)).removeprefix("torch.")


def _cpu_has_bf16() -> bool:
    """Whether the CPU has bfloat16 instructions; emulated bfloat16 is several times slower than float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))

"""Which device a verb runs on, and in which precision."""

from __future__ import annotations

from typing import Any

import torch

from polar_rm.errors import PolarError


def pick_device(name: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes CUDA where there is one.

    Raises:
        PolarError: another name, or CUDA where torch sees none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise PolarError(f"unknown device {name!r}; known: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise PolarError("device cuda was asked for, but torch sees no CUDA device here")
    return name


def compute_dtype(precision: str, device: str) -> torch.dtype:
    """Of matrix products: ``bf16``, ``fp32``, or with ``auto`` bf16 where the hardware has it."""
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device == "cuda" else _cpu_has_bf16()
        precision = "bf16" if native else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _cpu_has_bf16() -> bool:
    """Emulated bfloat16 is several times slower than float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))

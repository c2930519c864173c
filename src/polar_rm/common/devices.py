"""The names of devices, as options and configs have them; :mod:`polar_rm.model.devices` finds them."""

from __future__ import annotations

from typing import Literal

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
"""``mps`` is the GPU of a Mac."""
DEVICE_HELP = "`auto` takes a CUDA GPU where there is one, else the GPU of a Mac (mps), else the CPU."

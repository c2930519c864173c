"""Measured values in words, the same everywhere: in tables, on pages and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def interval(bounds: Sequence[float] | None, form: str = ".3f", *, missing: str = "") -> str:
    """``[low, high]``, each as ``form`` says. missing: for None, which stands for an interval that there is not."""
    return missing if bounds is None else f"[{bounds[0]:{form}}, {bounds[1]:{form}}]"


def measure(value: Any) -> str:
    """A :class:`polar_rm.reporting.measures.Measure` as ``0.812 [0.790, 0.834]``; without an interval the accuracy alone."""
    bounds = interval(value["ci95"])
    return f"{value['accuracy']:.3f} {bounds}" if bounds else f"{value['accuracy']:.3f}"

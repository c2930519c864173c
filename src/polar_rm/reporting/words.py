"""Formatting of measured values, the same in tables, on pages and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def interval(bounds: Sequence[float] | None, form: str = ".3f", *, missing: str = "") -> str:
    """``[low, high]``, both in the format ``form``. missing: the text for None, where there is no interval."""
    return missing if bounds is None else f"[{bounds[0]:{form}}, {bounds[1]:{form}}]"


def measure(value: Any) -> str:
    """A :class:`polar_rm.reporting.measures.Measure` as ``0.812 [0.790, 0.834]``, or only the accuracy without an interval."""
    bounds = interval(value["ci95"])
    return f"{value['accuracy']:.3f} {bounds}" if bounds else f"{value['accuracy']:.3f}"

"""A measured value with its interval."""

from __future__ import annotations

from typing import TypedDict


class Measure(TypedDict):
    """A pairwise accuracy (ties count half) with its 95% bootstrap interval over prompts, [low, high]."""

    accuracy: float
    ci95: list[float] | None  # None: a single prompt, or an interval that was not computed

"""The results of the routes, as data and as a table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

BASELINE = "transformers"


@dataclass(frozen=True, slots=True)
class Route:
    """The results of one route. scores: of the items that the route can carry, NaN for a missing score. difference: the largest
    absolute difference from the baseline's scores. refused: the first reason for a missing score, or ""."""

    name: str
    scores: list[float]
    difference: float
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Parity:
    """The results of all routes. n_cut: number of truncated items. ids_differ: see :func:`polar_rm.parity.items.ids_differ`."""

    model: str
    n_items: int
    n_cut: int
    n_tokens: int
    tolerance: float
    ids_differ: list[int]
    routes: list[Route]

    @property
    def ok(self) -> bool:
        """Whether every route gave every score within the tolerance, and every text has the same ids."""
        within = all(not route.refused and route.difference <= self.tolerance for route in self.routes)
        return within and not self.ids_differ

    def to_json(self) -> dict[str, Any]:
        """The result as standard JSON: numbers that are not finite become null."""
        routes = [
            {**asdict(route), "scores": [*map(_or_null, route.scores)], "difference": _or_null(route.difference)}
            for route in self.routes
        ]
        return {**asdict(self), "routes": routes, "ok": self.ok}


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def render(result: Parity) -> RenderableType:
    """The table for the terminal, with the deviations below it."""
    table = Table("route", "items", "largest difference", "")
    for route in result.routes:
        n_scored = sum(map(math.isfinite, route.scores))
        within = not route.refused and route.difference <= result.tolerance
        table.add_row(route.name, str(n_scored), f"{route.difference:.1e}", "ok" if within else "DIFFERS")
    equal = result.n_items - len(result.ids_differ)
    lines = [
        f"{result.n_items} items, {result.n_cut} of them truncated, {result.n_tokens:,} tokens; tolerance {result.tolerance:g}",
        f"ids: transformers' tokenizer gives the same ids for {equal} of {result.n_items} texts",
        *(f"ids differ: item {number}" for number in result.ids_differ),
        *(f"{route.name}: {route.refused}" for route in result.routes if route.refused),
    ]
    return Group(table, Text("\n".join(lines)))

"""What a published benchmark is here: how its files are read, and its own rule from scores to figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from polar_rm.records import Comparison

References = Literal["gold", "given", "none"]
"""Of a suite's comparisons. ``gold``: each has the right answer as its reference; ``given``: some have one; ``none``: none."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One scored comparison.

    comparison: as the suite's ``read`` gave it. scores: one a candidate, finite; higher is better.
    """

    comparison: Comparison
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a suite's report.

    value: as published: a share in 0..1, which publishers print as a percentage. Kendall's tau lies in -1..1, and the Ties of
        RewardBench 2 may reach 1.01. n: comparisons (or candidates, where the figure counts these) that it rests on.
    correct: float64 [n'], outcomes whose plain mean is ``value``; None where it is no plain mean, such as a mean of means.
    prompts: int64 [n'], equal for outcomes of one prompt; prompts are counted in the order of the data, so that two models'
        figures on the same data can be compared in pairs. None where ``correct`` is.
    parts: weights and figures whose weighted sum is ``value``, where it is one; it then has the interval of that sum.
    """

    name: str
    value: float
    n: int
    correct: NDArray[Any] | None
    prompts: NDArray[Any] | None
    parts: tuple[tuple[float, Figure], ...] = ()


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """figures: the official headline comes first. ties: exactly equal scores among the pairs that decide. notes: what keeps a
    figure from being the published one (missing parts, other counts), and what else a reader should know."""

    figures: tuple[Figure, ...]
    ties: int
    notes: tuple[str, ...]


class Suite(Protocol):
    """A published benchmark: one file each in this folder, a frozen dataclass with one instance."""

    @property
    def name(self) -> str:
        """On the command line."""
        ...

    @property
    def title(self) -> str:
        """In reports."""
        ...

    @property
    def source(self) -> str:
        """Where a person gets the files."""
        ...

    @property
    def licence(self) -> str:
        """Of the data, as the publisher says."""
        ...

    @property
    def rule(self) -> str:
        """The official rule, in words."""
        ...

    @property
    def references(self) -> References:
        """Whether its comparisons have references."""
        ...

    def read(self, path: Path) -> Iterator[Comparison]:
        """Comparisons of the files that the publisher ships, unchanged: one file, or the folder of them.

        Metadata hold ``suite``, ``id``, ``subset`` or ``domain``, and what the rule needs. Candidates may be equal, and may be a
        single one, where the publisher's are.

        Raises:
            BadRow: names file, row and field of what is of another version or schema, or an id that came before.
            PolarError: nothing of this benchmark is there.
        """
        ...

    def measure(self, judged: Iterable[Judged]) -> SuiteResult:
        """The figures, by the official rule.

        Raises:
            ScoreError: not one finite score a candidate. PolarError: no comparisons, or those of another suite.
        """
        ...

"""The interface of published benchmarks: reading of their files, and the official rule from scores to figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from polar_rm.records import Comparison

References = Literal["gold", "given", "none"]
"""The references of a suite. ``gold``: all comparisons have the correct answer as reference; ``given``: some have a reference;
``none``: no comparison has one."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One scored comparison.

    comparison: as the suite's ``read`` returned it. scores: one for each candidate, finite; higher is better.
    """

    comparison: Comparison
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a suite's report.

    value: as published: a share in 0..1, which publishers print as a percentage. Kendall's tau is in -1..1, and the Ties of
        RewardBench 2 may reach 1.01. n: the number of comparisons, or of candidates if the figure counts these.
    correct: float64 [n'], outcomes whose mean is ``value``; None if ``value`` is not a mean of outcomes, such as a mean of means.
    prompts: int64 [n'], equal for outcomes of one prompt. Prompts are numbered in the order of the data, so that figures of two
        models on the same data can be paired. None if ``correct`` is None.
    parts: weights and figures, if ``value`` is their weighted sum; the interval is then that of the sum.
    """

    name: str
    value: float
    n: int
    correct: NDArray[Any] | None
    prompts: NDArray[Any] | None
    parts: tuple[tuple[float, Figure], ...] = ()


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """The result of one contender on a suite.

    figures: all figures, the official headline first. ties: the number of exactly equal scores among the pairs that decide.
    notes: differences from the published figure (missing parts, other counts), and other facts for the reader.
    """

    figures: tuple[Figure, ...]
    ties: int
    notes: tuple[str, ...]


class Suite(Protocol):
    """A published benchmark. Each has a file in this folder with a frozen dataclass and one instance of it."""

    @property
    def name(self) -> str:
        """The name on the command line."""
        ...

    @property
    def title(self) -> str:
        """The name in reports."""
        ...

    @property
    def source(self) -> str:
        """The address of the publisher's files."""
        ...

    @property
    def licence(self) -> str:
        """The licence of the data, according to the publisher."""
        ...

    @property
    def rule(self) -> str:
        """A description of the official rule."""
        ...

    @property
    def references(self) -> References:
        """Whether its comparisons have references."""
        ...

    def read(self, path: Path) -> Iterator[Comparison]:
        """Read the publisher's unchanged files. path: one file, or the folder of all files.

        The metadata of a comparison has ``suite``, ``id``, ``subset`` or ``domain``, and the values that the rule needs.
        Candidates may be equal, and there may be a single one, as in the publisher's files.

        Raises:
            BadRow: a row has another version or schema, or an id occurs twice; the message names file, row and field.
            PolarError: the path has no file of this benchmark.
        """
        ...

    def measure(self, judged: Iterable[Judged]) -> SuiteResult:
        """Compute the figures by the official rule.

        Raises:
            ScoreError: a candidate has no finite score. PolarError: there are no comparisons, or they belong to another suite.
        """
        ...

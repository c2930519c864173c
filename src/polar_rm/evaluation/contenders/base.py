"""What a contender is: something with a name that gives every candidate of a comparison a number, and that is in memory only
while it does so: of two models of 7B there is never more than one.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict

from polar_rm.evaluation.references import ComparisonScorer
from polar_rm.records import Comparison

Kind = Literal["native", "stock", "server", "stored", "baseline", "object"]
"""native: a model saved by polar. stock: an ordinary classifier. server: behind an address. stored: scores of a file. baseline:
what a model must beat. object: anything that a program hands over."""


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How contenders with weights compute, and what servers are told.

    precision, device: as the options of the verbs. row_tokens: most tokens of one row or padded batch; decides memory. api_key:
    for servers.
    """

    precision: str = "fp32"
    device: str = "auto"
    row_tokens: int = 8192
    api_key: str | None = None

    def placement(self) -> Placement:
        """As ``RewardModel.from_pretrained`` takes it.

        Raises:
            PolarError: another name, or CUDA where torch sees none.
        """
        from polar_rm.model.devices import dtype_name, pick_device

        device = pick_device(self.device)
        return {"dtype": dtype_name(self.precision, device), "device": device}


class Placement(TypedDict):
    """dtype: float32, bfloat16 or float16. device: cpu or cuda."""

    dtype: str
    device: str


class Contender(ABC):
    """One scorer to be compared with others.

    name: in every table, each contender's own. kind: see :data:`Kind`. source: what it is made from, for the report.
    reads_references: whether its scores depend on them. has_weights: whether it takes memory, and is therefore open alone.
    has_scale: whether differences of its scores are log-odds, so that they have a Bradley-Terry loss.
    is_partial: only the first comparisons are taken, so it may know of more.
    facts: what the report says of it besides, such as ``encoder_hash``; complete when it has scored.
    warnings: one line each, of what limits its numbers.
    """

    kind: Kind = "object"
    source: str | None = None
    reads_references: bool = True
    has_weights: bool = False
    has_scale: bool = True
    is_partial: bool = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.facts: dict[str, Any] = {}
        self.warnings: list[str] = []

    def renamed(self, name: str) -> Self:
        """The same under another name."""
        other = copy.copy(self)
        other.name = name
        return other

    def check(self) -> None:  # noqa: B027
        """Whatever can be refused before data is read and weights are loaded.

        Raises:
            PolarError: it can't be used.
        """

    def fit(self, comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
        """Look at all comparisons, without their ranks, while passing them on; is exhausted before anything is scored."""
        return iter(comparisons)

    @abstractmethod
    def load(self) -> ComparisonScorer:
        """The scorer, with its weights in memory."""

    def release(self) -> None:  # noqa: B027
        """Give back what :meth:`load` took; nobody holds the scorer any more."""


class Given(Contender):
    """A scorer that a program made itself. It stays in memory, as it is the program's."""

    def __init__(self, name: str, scorer: ComparisonScorer) -> None:
        super().__init__(name)
        self._scorer = scorer

    def load(self) -> ComparisonScorer:
        """The scorer itself."""
        return self._scorer

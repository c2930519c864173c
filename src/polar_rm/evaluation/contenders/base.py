"""The base class of contenders. A contender is a named scorer whose weights are in memory only while it scores, so that two 7B
models are never in memory together.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict

from polar_rm.errors import PolarError
from polar_rm.evaluation.references import ComparisonScorer
from polar_rm.records import Comparison

Kind = Literal["native", "stock", "server", "stored", "baseline", "object"]
"""native: a model saved by polar. stock: an ordinary classifier. server: a reward server. stored: scores of a file. baseline: a
simple scorer that a model must beat. object: a scorer that a program passes."""


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Options of contenders with weights and of servers.

    precision, device: as the options of the verbs. row_tokens: maximum number of tokens of one row or padded batch; it determines
    memory. api_key: the key for servers.
    """

    precision: str = "fp32"
    device: str = "auto"
    row_tokens: int = 8192
    api_key: str | None = None

    def placement(self, *, own: bool = False) -> Placement:
        """dtype and device, as ``RewardModel.from_pretrained`` takes them. own: for a reward model of ours.

        Raises:
            PolarError: a name is unknown, the device is not there, or the precision can't be used.
        """
        from polar_rm.model.devices import dtype_name, pick_device

        if self.precision == "int8" and not own:
            raise PolarError("precision int8 is for models saved by polar; use bf16 or fp32 for others")
        device = pick_device(self.device)
        return {"dtype": dtype_name(self.precision, device), "device": device}


class Placement(TypedDict):
    """dtype: float32, bfloat16, float16 or int8. device: cpu, cuda or mps."""

    dtype: str
    device: str


class Contender(ABC):
    """One scorer that is compared with others.

    name: unique name in tables. kind: see :data:`Kind`. source: its folder, address or file, for the report.
    reads_references: whether its scores depend on references. has_weights: whether it takes much memory and is loaded alone.
    has_scale: whether differences of its scores are log-odds, so that they have a Bradley-Terry loss.
    is_partial: whether only the first comparisons are used, so that it may have scores of more.
    facts: more facts for the report, such as ``encoder_hash``; complete after scoring.
    warnings: one line for each limitation of its numbers.
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

    @property
    def needs_references(self) -> bool:
        """Whether it can't score without references."""
        return self.reads_references

    def renamed(self, name: str) -> Self:
        """A copy with another name."""
        other = copy.copy(self)
        other.name = name
        return other

    def check(self) -> None:  # noqa: B027
        """Check everything that can be checked before data is read and weights are loaded.

        Raises:
            PolarError: the contender can't be used.
        """

    def fit(self, comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
        """Fit the contender to all comparisons, without use of their ranks, and yield them; exhausted before scoring begins."""
        return iter(comparisons)

    @abstractmethod
    def load(self) -> ComparisonScorer:
        """The scorer, with its weights in memory."""

    def release(self) -> None:  # noqa: B027
        """Free the memory of :meth:`load`. The caller has no reference to the scorer any more."""


class Given(Contender):
    """A scorer that a program passes. It stays in memory, because the program owns it."""

    def __init__(self, name: str, scorer: ComparisonScorer) -> None:
        super().__init__(name)
        self._scorer = scorer

    def load(self) -> ComparisonScorer:
        """The scorer itself."""
        return self._scorer

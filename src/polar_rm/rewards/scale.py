"""The scale of a model's rewards, as its folder records it, and the anchored rewards that it gives.

Clients import this file where numpy may be missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.outcomes import Failure, Outcome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from polar_rm.rewards.uncertainty import Uncertainty


@dataclass(frozen=True, slots=True)
class Scale:
    """A model's calibration card and the uncertainty of its head; None where the folder has none."""

    calibration: Calibration | None = None
    uncertainty: Uncertainty | None = None

    @classmethod
    def load(cls, model: str | Path) -> Self:
        """Load the files that ``polar calibrate`` wrote into a checkpoint folder.

        Raises:
            PolarError: one of the files is damaged or belongs to another model.
        """
        from polar_rm.rewards.uncertainty import Uncertainty

        return cls(Calibration.load(model), Uncertainty.load(model))

    def anchor(
        self, outcomes: Sequence[Outcome], anchors: Sequence[Outcome], differences: NDArray[np.float32] | None = None
    ) -> list[Outcome]:
        """Return the outcomes with their anchors, and with the probability and the deviation if this model has them.

        anchors: for each item the outcome of its reference as a candidate. An item whose anchor failed fails for the same reason.
        differences: the features of each item minus those of its anchor, float32 [n_items, hidden]; rows of failures are not
        used.
        """
        deviations = self.uncertainty.deviations(differences) if self.uncertainty and differences is not None else None
        return [
            self._anchor_one(outcome, anchor, None if deviations is None else float(deviations[index]))
            for index, (outcome, anchor) in enumerate(zip(outcomes, anchors, strict=True))
        ]

    def _anchor_one(self, outcome: Outcome, anchor: Outcome, deviation: float | None) -> Outcome:
        if isinstance(outcome, Failure):
            return outcome
        if isinstance(anchor, Failure):
            return Failure(anchor.code, f"the reference itself: {anchor.message}")
        has_temperature = self.calibration and self.calibration.temperature
        probability = (
            self.calibration.probability(outcome.reward - anchor.reward) if has_temperature and self.calibration else None
        )
        return replace(outcome, anchor=anchor.reward, probability=probability, deviation=deviation)

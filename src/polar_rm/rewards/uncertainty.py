"""The uncertainty of a model's head: the Laplace posterior that ``polar calibrate`` writes, and deviations computed from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polar_rm.common.files import write_file
from polar_rm.common.identity import check_identity, model_identity
from polar_rm.errors import PolarError

UNCERTAINTY = "calibration/uncertainty.safetensors"
"""The file's path in a checkpoint folder. It is not beside the weights, because vLLM and SGLang load every ``*.safetensors``
there."""
_SCHEMA = "polar-rm/uncertainty/1"

Measured = tuple[float, NDArray[np.float32]]
"""A raw reward, and the head's input for it: float32 [hidden]."""


@dataclass(frozen=True, slots=True, eq=False)
class Uncertainty:
    """The posterior w ~ N(w*, S) of a linear head.

    factor: A of S = A^T A, float32 [hidden, hidden]. prior_precision: the precision of w before any pairs were used.

    With d the difference of two sequences' features (the head's inputs, [hidden]), their reward difference w . d has the standard
    deviation sqrt(d^T S d) = ||A d||, in units of the reward.
    """

    factor: NDArray[np.float32]
    prior_precision: float

    def __post_init__(self) -> None:
        factor = self.factor
        if factor.ndim != 2 or factor.shape[0] != factor.shape[1] or factor.dtype != np.float32 or not np.isfinite(factor).all():
            raise PolarError("the uncertainty of a head needs a finite float32 factor [hidden, hidden]")

    def deviations(self, differences: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standard deviations of reward differences, float32 [n]. differences: of features, float32 [n, hidden].

        Raises:
            PolarError: the features have another width.
        """
        if differences.shape[-1] != len(self.factor):
            raise PolarError(
                f"the uncertainty is of a head with {len(self.factor)} features, the model has {differences.shape[-1]}"
            )
        deviations: NDArray[np.float32] = np.linalg.norm(differences @ self.factor.T, axis=-1)
        return deviations

    @classmethod
    def load(cls, model: str | Path) -> Self | None:
        """Load the file that ``polar calibrate`` wrote into a checkpoint folder; None if there is none.

        Raises:
            PolarError: the file was not written by :meth:`save`, or it belongs to another model.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(model) / UNCERTAINTY
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="np") as file:
                metadata: dict[str, Any] = file.metadata() or {}
                uncertainty = cls(file.get_tensor("factor"), float(metadata["prior_precision"]))
            saved = {part: metadata[part] for part in ("encoder", "weights")}
        except (SafetensorError, OSError, KeyError, ValueError, PolarError) as error:
            raise PolarError(f"{path}: not the uncertainty of a head: {error}") from error
        check_identity(path, saved, Path(model), "the uncertainty", "calibrate")
        return uncertainty

    def save(self, model: str | Path) -> None:
        """Write the file into the folder of the checkpoint that computed the features."""
        from safetensors.numpy import save

        metadata = {"schema": _SCHEMA, "prior_precision": repr(self.prior_precision), **model_identity(Path(model))}
        # safetensors writes an array's bytes in their order in memory, whatever its strides.
        write_file(Path(model) / UNCERTAINTY, save({"factor": np.ascontiguousarray(self.factor)}, metadata))

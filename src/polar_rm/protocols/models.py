"""Our own ``/v1/models``: what clients know a server and its model by."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class DistributionReply(BaseModel):
    """Rewards on a representative set; quantiles: the 0th to the 100th percentile."""

    n: int
    mean: float
    std: float
    quantiles: list[float]


class CalibrationReply(DistributionReply):
    """The model's calibration card: of raw rewards, of anchored ones, and the temperature of probabilities."""

    anchored: DistributionReply | None
    temperature: float | None
    n_pairs: int
    n_prompts: int
    ece_before: float | None
    ece_after: float | None
    encoder: str
    weights: str


class ModelCard(BaseModel):
    """owned_by: identifies the server to clients. encoder_hash: lets clients check that they encode as the server does.
    dtype, device: of the backbone. calibration: only of a model that has a card."""

    id: str
    object: Literal["model"]
    owned_by: Literal["polar-rm"]
    max_model_len: int
    encoder_hash: str
    transforms: list[str]
    dtype: str | None = None
    device: str | None = None
    calibration: CalibrationReply | None = None


class ModelsReply(BaseModel):
    """A list with the one model."""

    object: Literal["list"]
    data: list[ModelCard]

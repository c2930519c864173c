"""Replies as the OpenAPI document describes them. Those of foreign protocols are checked in tests, not while serving."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: int


class ErrorReply(BaseModel):
    """Every error of this server, in the form that vLLM and OpenAI use."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "The request is at fault, or there are too many (429)."},
    "5XX": {"model": ErrorReply, "description": "No score: the model failed, or the server is overloaded or stopping."},
}


class CutReply(BaseModel):
    """Tokens cut away: from the prompt's beginning and from the end of reference and output."""

    prompt: int
    reference: int
    output: int


class ScoredOutput(BaseModel):
    """reward: raw. score: after the transform. n_tokens: of the whole sequence."""

    index: int
    reward: float
    score: float
    n_tokens: int
    cut: CutReply


class ItemError(BaseModel):
    code: Literal["invalid_item", "non_finite", "model_error"]
    message: str


class FailedOutput(BaseModel):
    index: int
    error: ItemError


class ScoredItem(BaseModel):
    index: int
    outputs: list[ScoredOutput | FailedOutput]


class FailedItem(BaseModel):
    index: int
    error: ItemError


class ScoreReply(BaseModel):
    """Results in the order of the request."""

    model: str
    transform: str
    results: list[ScoredItem | FailedItem]


OneScore = list[float]


class SglangMeta(BaseModel):
    id: str
    prompt_tokens: int


class SglangReply(BaseModel):
    """The raw score as an embedding of length one."""

    embedding: OneScore = Field(min_length=1, max_length=1)
    meta_info: SglangMeta


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class _OpenAIList(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: Usage


class ClassifiedRow(BaseModel):
    index: int
    label: str
    probs: OneScore = Field(min_length=1, max_length=1)
    num_classes: Literal[1]


class ClassifyReply(_OpenAIList):
    """vLLM's ClassificationResponse."""

    data: list[ClassifiedRow]


class PooledRow(BaseModel):
    """data: `[[score]]`, `score` or `[score]` as `--pooling-flavour` says, or its float32 in base64."""

    index: int
    object: Literal["pooling"]
    data: float | list[float] | list[list[float]] | str


class PoolingReply(_OpenAIList):
    """vLLM's and LMDeploy's PoolingResponse."""

    data: list[PooledRow]


class EmbeddingRow(BaseModel):
    index: int
    object: Literal["embedding"]
    embedding: OneScore | str


class EmbeddingsReply(_OpenAIList):
    """OpenAI's list of embeddings."""

    data: list[EmbeddingRow]


class ExtraLogs(BaseModel):
    n_tokens: list[int]
    truncated: list[Literal[0, 1]]


class RewardsReply(BaseModel):
    """OpenRLHF's lists: raw rewards, the same between 0 and 1 as `scores`, and what its logs should hold."""

    rewards: list[float]
    scores: list[float]
    extra_logs: ExtraLogs


class StatusReply(BaseModel):
    status: str


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    owned_by: Literal["polar-rm"]
    max_model_len: int
    encoder_hash: str
    transforms: list[str]


class ModelsReply(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


def reply(kind: Any) -> dict[int | str, dict[str, Any]]:
    """For a route's ``responses``: documents what it answers without validating it again on every request."""
    return {200: {"model": kind}}

"""vLLM's ``/classify`` and ``/pooling``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from polar_rm.protocols.base import (
    Answering,
    Foreign,
    Input,
    InputProtocol,
    OneScore,
    OpenAIList,
    activated,
    float32_in_base64,
    openai_list,
    part_of,
    read_rows,
)
from polar_rm.rewards.outcomes import Failure, Reward


class VllmClassify(Foreign):
    """vLLM's body of ``/classify``. Unlike vLLM's, the default is the raw score; a sigmoid only on request."""

    input: Input
    use_activation: bool | None = Field(None, description="True asks for sigmoid(score) instead of the raw score.")
    add_special_tokens: bool = Field(True, description="Put BOS before a text. Token ids are taken as they are.")
    truncate_prompt_tokens: Literal[-1] | None = Field(None, description="Cutting here would lose the scoring token.")


class PoolingRequest(VllmClassify):
    """Body of ``/pooling``, the same for vLLM and LMDeploy."""

    encoding_format: Literal["float", "base64"] = "float"


class ClassifiedRow(BaseModel):
    """The one "probability": the raw score, or its sigmoid."""

    index: int
    label: str
    probs: OneScore = Field(min_length=1, max_length=1)
    num_classes: Literal[1]


class ClassifyReply(OpenAIList):
    """vLLM's ClassificationResponse."""

    data: list[ClassifiedRow]


class PooledRow(BaseModel):
    """data: `[[score]]`, `score` or `[score]` as `--pooling-flavour` says, or its float32 in base64."""

    index: int
    object: Literal["pooling"]
    data: float | list[float] | list[list[float]] | str


class PoolingReply(OpenAIList):
    """vLLM's and LMDeploy's PoolingResponse."""

    data: list[PooledRow]


def ask(model: str | None, values: Sequence[Any]) -> dict[str, Any]:
    """For raw scores: a sigmoid is vLLM's default."""
    return {**({"model": model} if model else {}), "input": list(values), "use_activation": False}


def inputs(body: VllmClassify) -> tuple[Input, bool]:
    """Of either route."""
    return body.input, body.add_special_tokens


def _classified(body: VllmClassify, results: Sequence[Reward], answering: Answering) -> dict[str, Any]:
    rows = [
        {"index": index, "label": "LABEL_0", "probs": [activated(result.reward, body.use_activation)], "num_classes": 1}
        for index, result in enumerate(results)
    ]
    return openai_list("classify", answering.model, rows, results)


def pooled(body: PoolingRequest, results: Sequence[Reward], answering: Answering) -> dict[str, Any]:
    """``data`` of each row in the shape that the server's flavour names. In base64 it is always the one float32."""
    rows: list[dict[str, Any]] = []
    for index, result in enumerate(results):
        score = activated(result.reward, body.use_activation)
        shaped: Any = {"vllm": [[score]], "lmdeploy": score, "vllm-classify": [score]}[answering.flavour]
        data = float32_in_base64(score) if body.encoding_format == "base64" else shaped
        rows.append({"index": index, "object": "pooling", "data": data})
    return openai_list("pool", answering.model, rows, results)


def _read_classified(reply: Any, count: int) -> list[float | Failure]:
    return read_rows(part_of(reply, "data"), count, lambda row: row["probs"])


def _read_pooled(reply: Any, count: int) -> list[float | Failure]:
    return read_rows(part_of(reply, "data"), count, _listed)


def _listed(row: Any) -> Any:
    if not isinstance(row["data"], list):  # the official client takes the last of a list
        raise TypeError
    return row["data"]


CLASSIFY = InputProtocol(
    "vLLM /classify", "/classify", "vLLM", VllmClassify, ClassifyReply, ask, _read_classified, inputs, _classified
)
POOLING = InputProtocol("vLLM /pooling", "/pooling", "vLLM", PoolingRequest, PoolingReply, ask, _read_pooled, inputs, pooled)

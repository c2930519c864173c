"""vLLM's ``/classify`` and ``/pooling``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from polar_rm.protocols.base import (
    ForeignRequest,
    Input,
    InputProtocol,
    OneScore,
    OpenAIList,
    ReplyContext,
    activated,
    field_of,
    float32_in_base64,
    openai_list,
    read_rows,
)
from polar_rm.rewards.outcomes import Failure, Reward


class VllmClassify(ForeignRequest):
    """vLLM's body of ``/classify``. Unlike in vLLM, the default is the raw score, and a sigmoid must be requested."""

    input: Input
    use_activation: bool | None = Field(None, description="true: reply with sigmoid(score) instead of the raw score.")
    add_special_tokens: bool = Field(True, description="Put BOS before a text. Token ids are used unchanged.")
    truncate_prompt_tokens: Literal[-1] | None = Field(
        None, description="Only null and -1 are allowed: truncation here would remove the scoring token."
    )


class PoolingRequest(VllmClassify):
    """Body of ``/pooling``, the same for vLLM and LMDeploy."""

    encoding_format: Literal["float", "base64"] = "float"


class ClassifiedRow(BaseModel):
    """probs: a list of one number, the raw score or its sigmoid."""

    index: int
    label: str
    probs: OneScore = Field(min_length=1, max_length=1)
    num_classes: Literal[1]


class ClassifyReply(OpenAIList):
    """vLLM's ClassificationResponse."""

    data: list[ClassifiedRow]


class PooledRow(BaseModel):
    """data: `[[score]]`, `score` or `[score]`, depending on `--pooling-flavour`, or the score as float32 in base64."""

    index: int
    object: Literal["pooling"]
    data: float | list[float] | list[list[float]] | str


class PoolingReply(OpenAIList):
    """vLLM's and LMDeploy's PoolingResponse."""

    data: list[PooledRow]


def build_request(model: str | None, values: Sequence[Any]) -> dict[str, Any]:
    """The body for raw scores; vLLM's default is a sigmoid."""
    return {**({"model": model} if model else {}), "input": list(values), "use_activation": False}


def inputs(body: VllmClassify) -> tuple[Input, bool]:
    """The inputs of a body of either route, and whether BOS is put before texts."""
    return body.input, body.add_special_tokens


def _classify_reply(body: VllmClassify, results: Sequence[Reward], context: ReplyContext) -> dict[str, Any]:
    rows = [
        {"index": index, "label": "LABEL_0", "probs": [activated(result.reward, body.use_activation)], "num_classes": 1}
        for index, result in enumerate(results)
    ]
    return openai_list("classify", context.model, rows, results)


def pooling_reply(body: PoolingRequest, results: Sequence[Reward], context: ReplyContext) -> dict[str, Any]:
    """The reply; ``data`` of each row has the shape of the server's flavour. In base64 it is always a single float32."""
    rows: list[dict[str, Any]] = []
    for index, result in enumerate(results):
        score = activated(result.reward, body.use_activation)
        nested: Any = {"vllm": [[score]], "lmdeploy": score, "vllm-classify": [score]}[context.flavour]
        data = float32_in_base64(score) if body.encoding_format == "base64" else nested
        rows.append({"index": index, "object": "pooling", "data": data})
    return openai_list("pool", context.model, rows, results)


def _read_classify(reply: Any, count: int) -> list[float | Failure]:
    return read_rows(field_of(reply, "data"), count, lambda row: row["probs"])


def _read_pooling(reply: Any, count: int) -> list[float | Failure]:
    return read_rows(field_of(reply, "data"), count, _list_of_row)


def _list_of_row(row: Any) -> Any:
    if not isinstance(row["data"], list):  # the official client takes the last element of a list
        raise TypeError
    return row["data"]


CLASSIFY = InputProtocol(
    "vLLM /classify", "/classify", "vLLM", VllmClassify, ClassifyReply, build_request, _read_classify, inputs, _classify_reply
)
POOLING = InputProtocol(
    "vLLM /pooling", "/pooling", "vLLM", PoolingRequest, PoolingReply, build_request, _read_pooling, inputs, pooling_reply
)

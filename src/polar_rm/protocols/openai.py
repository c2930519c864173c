"""OpenAI's ``/v1/embeddings``, a route of SGLang for reward models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from polar_rm.protocols.base import (
    ForeignRequest,
    Input,
    InputProtocol,
    OneScore,
    OpenAIList,
    ReplyContext,
    field_of,
    float32_in_base64,
    openai_list,
    read_rows,
)
from polar_rm.rewards.outcomes import Failure, Reward


class EmbeddingsRequest(ForeignRequest):
    """OpenAI's body of ``/v1/embeddings``."""

    input: Input
    encoding_format: Literal["float", "base64"] = "float"


class EmbeddingRow(BaseModel):
    """The raw score as an embedding of length one; OpenAI's own client asks for base64."""

    index: int
    object: Literal["embedding"]
    embedding: OneScore | str


class EmbeddingsReply(OpenAIList):
    """OpenAI's list of embeddings."""

    data: list[EmbeddingRow]


def _build_request(model: str | None, values: Sequence[Any]) -> dict[str, Any]:
    return {**({"model": model} if model else {}), "encoding_format": "float", "input": list(values)}


def _build_reply(body: EmbeddingsRequest, results: Sequence[Reward], context: ReplyContext) -> dict[str, Any]:
    in_base64 = body.encoding_format == "base64"
    rows = [
        {
            "index": index,
            "object": "embedding",
            "embedding": float32_in_base64(result.reward) if in_base64 else [result.reward],
        }
        for index, result in enumerate(results)
    ]
    return openai_list("embd", context.model, rows, results)


def _read_reply(reply: Any, count: int) -> list[float | Failure]:
    return read_rows(field_of(reply, "data"), count, lambda row: row["embedding"])


def _inputs(body: EmbeddingsRequest) -> tuple[Input, bool]:
    return body.input, True


EMBEDDINGS = InputProtocol(
    "/v1/embeddings",
    "/v1/embeddings",
    "SGLang and OpenAI",
    EmbeddingsRequest,
    EmbeddingsReply,
    _build_request,
    _read_reply,
    _inputs,
    _build_reply,
)

"""OpenAI's ``/v1/embeddings``, by which SGLang serves reward models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from polar_rm.protocols.base import (
    Answering,
    Foreign,
    Input,
    InputProtocol,
    OneScore,
    OpenAIList,
    float32_in_base64,
    openai_list,
    part_of,
    read_rows,
)
from polar_rm.rewards.outcomes import Failure, Reward


class EmbeddingsRequest(Foreign):
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


def _ask(model: str | None, values: Sequence[Any]) -> dict[str, Any]:
    return {**({"model": model} if model else {}), "encoding_format": "float", "input": list(values)}


def _answer(body: EmbeddingsRequest, results: Sequence[Reward], answering: Answering) -> dict[str, Any]:
    packed = body.encoding_format == "base64"
    rows = [
        {
            "index": index,
            "object": "embedding",
            "embedding": float32_in_base64(result.reward) if packed else [result.reward],
        }
        for index, result in enumerate(results)
    ]
    return openai_list("embd", answering.model, rows, results)


def _read(reply: Any, count: int) -> list[float | Failure]:
    return read_rows(part_of(reply, "data"), count, lambda row: row["embedding"])


def _inputs(body: EmbeddingsRequest) -> tuple[Input, bool]:
    return body.input, True


EMBEDDINGS = InputProtocol(
    "/v1/embeddings",
    "/v1/embeddings",
    "SGLang and OpenAI",
    EmbeddingsRequest,
    EmbeddingsReply,
    _ask,
    _read,
    _inputs,
    _answer,
)

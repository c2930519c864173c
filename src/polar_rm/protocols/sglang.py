"""SGLang's ``/classify``."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from polar_rm.errors import PolarError
from polar_rm.protocols.base import ForeignRequest, IdLists, Ids, Input, InputProtocol, OneScore, ReplyContext, Texts, read_rows
from polar_rm.rewards.outcomes import Failure, Reward


class SglangClassify(ForeignRequest):
    """SGLang's body of ``/classify``: rendered texts or token ids."""

    text: str | Texts | None = None
    input_ids: Ids | IdLists | None = None


class SglangMeta(BaseModel):
    """The metadata of one input."""

    id: str
    prompt_tokens: int


class SglangReply(BaseModel):
    """The raw score as an embedding of length one."""

    embedding: OneScore = Field(min_length=1, max_length=1)
    meta_info: SglangMeta


def is_sglang(body: Any) -> bool:
    """Whether a body of ``/classify`` is SGLang's."""
    return isinstance(body, dict) and ("text" in body or "input_ids" in body)


def _build_request(model: str | None, values: Sequence[Any]) -> dict[str, Any]:
    key = "text" if values and isinstance(values[0], str) else "input_ids"
    return {key: list(values)}


def _inputs(body: SglangClassify) -> tuple[Input, bool]:
    """Raises PolarError unless exactly one of ``text`` and ``input_ids`` is set."""
    inputs = [value for value in (body.text, body.input_ids) if value is not None]
    if len(inputs) != 1:
        raise PolarError("expected exactly one of text and input_ids")
    return inputs[0], True


def _build_reply(body: SglangClassify, results: Sequence[Reward], context: ReplyContext) -> Any:
    """A list of objects, or one object for a single input, as SGLang does."""
    rows = [
        {"embedding": [result.reward], "meta_info": {"id": uuid.uuid4().hex, "prompt_tokens": result.n_tokens}}
        for result in results
    ]
    return rows[0] if context.single else rows


def _read_reply(reply: Any, count: int) -> list[float | Failure]:
    return read_rows(reply, count, lambda row: row["embedding"])


CLASSIFY = InputProtocol(
    "SGLang /classify",
    "/classify",
    "SGLang",
    SglangClassify,
    list[SglangReply] | SglangReply,
    _build_request,
    _read_reply,
    _inputs,
    _build_reply,
)

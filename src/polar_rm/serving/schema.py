"""What the OpenAPI document says of replies that belong to no protocol. Replies are checked in tests, not while serving."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """type: a word for programs. code: the status."""

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


class StatusReply(BaseModel):
    """What load balancers read."""

    status: str


def reply(kind: Any) -> dict[int | str, dict[str, Any]]:
    """For a route's ``responses``: documents what it answers without validating it again on every request."""
    return {200: {"model": kind}}

"""Schemas of replies that belong to no protocol, for the OpenAPI document. Tests validate the replies; the server does not."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """type: the kind of error, for programs. code: the HTTP status."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorReply(BaseModel):
    """The body of every error, in the format of vLLM and OpenAI."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "The request is invalid, or there are too many requests (429)."},
    "5XX": {"model": ErrorReply, "description": "No score: the model failed, or the server is overloaded or stopping."},
}


class StatusReply(BaseModel):
    """The status, for load balancers."""

    status: str


def reply(kind: Any) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route: they document the reply without validating it on every request."""
    return {200: {"model": kind}}

"""Schemas of replies that belong to no protocol, for the OpenAPI document. Tests validate the replies; the server does not."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
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


_MEANT = {"/": " (a page for a browser)", "/openapi.json": " (describes all bodies and replies)"}


class StatusReply(BaseModel):
    """The status, for load balancers."""

    status: str


def paths_of(app: FastAPI) -> str:
    """The paths of a server with their methods, for a message."""
    described = {path: sorted(row)[-1].upper() for path, row in app.openapi()["paths"].items()}
    methods = {"/": "GET", **described, "/openapi.json": "GET"}
    return ", ".join(f"{method} {path}{_MEANT.get(path, '')}" for path, method in methods.items())


def reply(kind: Any) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route: they document the reply without validating it on every request."""
    return {200: {"model": kind}}

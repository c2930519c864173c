"""What the protocols share: inputs, numbers, base64, and how an error is told. Nothing here knows the model.

Each protocol has a file of its own with both directions: the request's model and how a client builds it, the reply's model, how
the server builds it and how a client reads it. Sources: SGLang 0.5 ``EmbeddingReqInput``, vLLM 0.33 pooling protocol, LMDeploy
0.18 ``/pooling``, OpenRLHF 0.11 ``utils/agent.py`` and ``cli/serve_rm.py``, and the request methods of the official client.
Foreign bodies may hold keys that we don't know (those protocols ignore them too); our own may not.
"""

from __future__ import annotations

import base64
import math
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, Strict

from polar_rm.errors import PolarError
from polar_rm.rewards.outcomes import Failure, Reward

PoolingFlavour = Literal["vllm", "lmdeploy", "vllm-classify"]
"""Shape of ``/pooling`` replies: ``[[s]]`` (official client with vLLM), ``s`` (with LMDeploy), ``[s]`` (vLLM's classify task)."""

TokenId = Annotated[int, Strict(), Field(ge=0, lt=2**31)]


class BadReply(Exception):
    """A reply that is not what the protocol says."""


class _FirstError(FailFast):
    """The first wrong element ends the check: otherwise a list of ids gives an error for each id when it is tried as texts."""

    __hash__ = object.__hash__  # pydantic's own can't stand in a union before Python 3.13


Texts = Annotated[list[str], _FirstError()]
# No model takes as many; a limit of its own ends the check of more.
Ids = Annotated[list[TokenId], Field(max_length=1 << 20), _FirstError()]
IdLists = Annotated[list[Ids], _FirstError()]
Input = str | Texts | Ids | IdLists


class Foreign(BaseModel):
    """A body of another engine's protocol."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = Field(None, description="Ignored: the server has one model.")


@dataclass(frozen=True, slots=True)
class Answering:
    """What a reply says of the server besides the scores. single: the request held one input, not in a list."""

    model: str
    flavour: PoolingFlavour = "vllm"
    single: bool = False


@dataclass(frozen=True, slots=True)
class Protocol:
    """One route of one engine, in both directions.

    name: for people. summary: whose it is. request, reply: the body's model and the reply's type. ask: the body that asks for the
    raw scores of values (items whose texts the server renders), of the model that it serves under a name; None where it can't
    carry one of them. read: the scores in a reply to so many values, in order; it raises BadReply at another shape or number.
    """

    name: str
    path: str
    summary: str
    request: type[BaseModel]
    reply: Any
    ask: Callable[[str | None, Sequence[Any]], dict[str, Any] | None]
    read: Callable[[Any, int], list[float | Failure]]


@dataclass(frozen=True, slots=True)
class InputProtocol(Protocol):
    """One that carries rendered texts or token ids.

    inputs: those of a checked body, and whether BOS is put before texts. answer: the reply to a body.
    """

    inputs: Callable[[Any], tuple[Input, bool]]
    answer: Callable[[Any, Sequence[Reward], Answering], Any]


OneScore = list[float]


class Usage(BaseModel):
    """Tokens that were scored."""

    prompt_tokens: int
    total_tokens: int


class OpenAIList(BaseModel):
    """The frame of OpenAI's lists, which vLLM and LMDeploy use, too."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: Usage


def openai_list(kind: str, model: str, rows: list[dict[str, Any]], results: Sequence[Reward]) -> dict[str, Any]:
    """A reply in that frame."""
    n_tokens = sum(result.n_tokens for result in results)
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": rows,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


def inputs_of(value: Input) -> tuple[list[str] | list[list[int]], bool]:
    """The texts or id lists of a request, and whether it held a single one, not in a list.

    Raises:
        PolarError: there are none.
    """
    if isinstance(value, str):
        return [value], True
    if value and isinstance(value[0], int):
        return [value], True
    if not value:
        raise PolarError("the list of inputs is empty")
    return value, False  # type: ignore[return-value]


def read_rows(rows: Any, count: int, score: Callable[[Any], Any]) -> list[float | Failure]:
    """The scores of rows, by their index where they have one. ``score`` takes the number out of a row, or a list that ends in it.

    Raises:
        BadReply: another shape or another number of scores.
    """
    try:
        scores = {row.get("index", place): number(last(score(row))) for place, row in enumerate(rows)}
        complete = len(rows) == count and scores.keys() == set(range(count))
    except (TypeError, KeyError, IndexError, AttributeError, ValueError, OverflowError) as error:
        raise BadReply(f"scores can't be read from the reply: {type(error).__name__}") from None
    if not complete:
        raise BadReply(f"the reply has rows {list(scores)[:5]}... for {count} items")
    return [finite(scores[index]) for index in range(count)]


def part_of(reply: Any, key: str) -> Any:
    """A value of an object.

    Raises:
        BadReply: it is no object, or has no such value.
    """
    try:
        return reply[key]
    except (TypeError, KeyError, IndexError):
        raise BadReply(f"the reply has no {key!r}") from None


def last(value: Any) -> Any:
    """The number at the end of a list, at any depth: ``[s]``, or ``[[...], [s]]`` with one for every token, the last token's."""
    while isinstance(value, list):
        value = value[-1]
    return value


def number(value: Any) -> float:
    """Raises ValueError where the value is no number, as text and booleans are not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    return float(value)


def finite(value: float) -> float | Failure:
    """The score, or the failure that it is."""
    return value if math.isfinite(value) else Failure("non_finite", f"the server gave the score {value}")


def sigmoid(value: float) -> float:
    """Without overflow for very negative values."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def activated(value: float, use_activation: bool | None) -> float:
    """The raw score, or its sigmoid on request."""
    return sigmoid(value) if use_activation else value


def float32_in_base64(value: float) -> str:
    """As OpenAI's clients ask for embeddings."""
    return base64.b64encode(struct.pack("<f", value)).decode()


_JSON_KINDS = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
# What FastAPI and a choice by tag put before the place of an error.
_FRAMES = ("body", "sglang", "vllm")
# What pydantic says where a value is of another kind than a type takes.
_WRONG_KIND = {
    "string_type": "a string",
    "list_type": "a list",
    "int_type": "an integer",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def explain(errors: Sequence[Any]) -> str:
    """A validation error as one line, without the user's input in it.

    Of a union, pydantic tells what each of its types finds wrong. The one that came farthest in the value knows the reason; where
    none takes values of this kind, all of them together say what was expected.
    """
    chosen = _chosen(errors, 0)
    more = len({error["loc"][: _union_at(error, 0)] for error in errors}) - 1
    place = ".".join(str(part) for part in chosen[0]["loc"] if not _is_branch(part) and part not in _FRAMES)
    if chosen[0]["type"] == "extra_forbidden" and _is_branch(key := chosen[0]["loc"][-1]):  # a user's key may look like anything
        place = f"{place}.{key}" if place else key
    message = chosen[0]["msg"]
    if len(chosen) > 1 and all(error["type"] in _WRONG_KIND for error in chosen):
        expected = " or ".join(dict.fromkeys(_WRONG_KIND[error["type"]] for error in chosen))
        message = f"expected {expected}, not {_JSON_KINDS.get(type(chosen[0].get('input')), 'null')}"
    return f"{place or 'body'}: {message}{f' (and {more} more)' if more else ''}"


def _chosen(errors: Sequence[Any], start: int) -> list[Any]:
    """The error that tells most, or one of each type of a union, of which none fits the value."""
    at = _union_at(errors[0], start)
    if at == len(errors[0]["loc"]):
        return [errors[0]]
    branches: dict[str, list[Any]] = {}
    for error in errors:
        if error["loc"][:at] == errors[0]["loc"][:at] and len(error["loc"]) > at:
            branches.setdefault(error["loc"][at], []).append(error)
    reach = {name: max(map(_reach, found)) for name, found in branches.items()}
    best = [found for name, found in branches.items() if reach[name] == max(reach.values())]
    return _chosen(best[0], at + 1) if len(best) == 1 else [found[0] for found in best]


def _union_at(error: Any, start: int) -> int:
    """Where the name of a union's type stands in the place of an error, its length where it holds none."""
    loc = error["loc"]
    return next((index for index in range(start, len(loc)) if _is_branch(loc[index])), len(loc))


def _reach(error: Any) -> tuple[int, tuple[int, ...]]:
    return len(error["loc"]), tuple(part for part in error["loc"] if isinstance(part, int))


def _is_branch(part: Any) -> bool:
    return isinstance(part, str) and (not part.isidentifier() or part == "str")

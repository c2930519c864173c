"""Shared parts of the protocols: inputs, numbers, base64 and error messages. Nothing here depends on the model.

Each protocol has its own file with both directions: the schema of the request and how a client builds it, and the schema of the
reply, how the server builds it and how a client reads it. Sources: SGLang 0.5 ``EmbeddingReqInput``, vLLM 0.33 pooling protocol,
LMDeploy 0.18 ``/pooling``, OpenRLHF 0.11 ``utils/agent.py`` and ``cli/serve_rm.py``, and the request methods of the official
client. Bodies of foreign protocols may hold unknown keys (their servers ignore them too); bodies of our own may not.
"""

from __future__ import annotations

import base64
import math
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, FailFast, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

from polar_rm.errors import PolarError
from polar_rm.rewards.calibration import sigmoid
from polar_rm.rewards.outcomes import Failure, Reward

PoolingFlavour = Literal["vllm", "lmdeploy", "vllm-classify"]
"""Shape of a score in ``/pooling`` replies: ``[[s]]`` for the official client with vLLM, ``s`` with LMDeploy, ``[s]`` for vLLM's
classify task."""

TokenId = Annotated[int, Strict(), Field(ge=0, lt=2**31)]


class BadReply(Exception):
    """A reply that does not follow the protocol."""


class FirstError(FailFast):
    """Ends the check of a list at its first wrong element. Otherwise a list of ids, checked as texts, gives one error per id."""

    __hash__ = object.__hash__  # before Python 3.13, pydantic's FailFast is unhashable and can't be part of a union


_MAX_KEYS = 100  # in an object of ours, which has four
_MAX_KEY = 100  # characters of a key that are compared with our names


Texts = Annotated[list[str], FirstError()]
# No model takes this many ids. The limit ends the check of longer lists early.
Ids = Annotated[list[TokenId], Field(max_length=1 << 20), FirstError()]
IdLists = Annotated[list[Ids], FirstError()]
Input = str | Texts | Ids | IdLists


class OwnBody(BaseModel):
    """An object of our own protocol, in which an unknown key is an error that names the known key near it."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if len(value) > _MAX_KEYS:  # each unknown key would become an error of its own
            raise PydanticCustomError("too_many_keys", "an object with more than {most} keys", {"most": _MAX_KEYS})
        free = [name for name in cls.model_fields if name not in value]
        for key in value:
            if key not in cls.model_fields and (near := get_close_matches(key[:_MAX_KEY], free, n=1)):
                meant = f"{near[0]}: [...]" if _is_list(cls.model_fields[near[0]].annotation) else near[0]
                raise PydanticCustomError("unknown_key", "unknown key; did you mean {meant}?", {"at": key, "meant": meant})
        return value


def _is_list(annotation: Any) -> bool:
    """Whether the values of a field's type are lists, or lists and null."""
    origin, types = get_origin(annotation), [each for each in get_args(annotation) if each is not type(None)]
    if origin is Annotated:
        return _is_list(types[0])
    return origin is list or (bool(types) and all(map(_is_list, types)))


class ForeignRequest(BaseModel):
    """A request body of another engine's protocol."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = Field(None, description="Ignored: the server has one model.")


@dataclass(frozen=True, slots=True)
class ReplyContext:
    """What a reply needs besides the scores. single: the request held one input that was not in a list."""

    model: str
    flavour: PoolingFlavour = "vllm"
    single: bool = False


@dataclass(frozen=True, slots=True)
class Protocol:
    """One route of one engine, in both directions.

    name: shown to users. summary: the engine that defines the route. request, reply: the schemas of body and reply.
    build_request: (name of the served model, values) to a body that asks for the raw scores of the values, which are items that
    the server renders; None if the protocol can't carry one of them. read_reply: (reply, number of values) to the scores in
    order; it raises BadReply for another shape or number.
    """

    name: str
    path: str
    summary: str
    request: type[BaseModel]
    reply: Any
    build_request: Callable[[str | None, Sequence[Any]], dict[str, Any] | None]
    read_reply: Callable[[Any, int], list[float | Failure]]


@dataclass(frozen=True, slots=True)
class InputProtocol(Protocol):
    """A protocol that carries rendered texts or token ids.

    inputs: a validated body to its inputs, and whether BOS is put before texts. build_reply: the reply to a body.
    """

    inputs: Callable[[Any], tuple[Input, bool]]
    build_reply: Callable[[Any, Sequence[Reward], ReplyContext], Any]


OneScore = list[float]


class Usage(BaseModel):
    """Numbers of scored tokens."""

    prompt_tokens: int
    total_tokens: int


class OpenAIList(BaseModel):
    """The common fields of OpenAI's list replies, which vLLM and LMDeploy use too."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: Usage


def openai_list(kind: str, model: str, rows: list[dict[str, Any]], results: Sequence[Reward]) -> dict[str, Any]:
    """A reply with the fields of :class:`OpenAIList`."""
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
    """The texts or id lists of a request, and whether it held a single input that was not in a list.

    Raises:
        PolarError: the list is empty.
    """
    if isinstance(value, str):
        return [value], True
    if value and isinstance(value[0], int):
        return [value], True
    if not value:
        raise PolarError("the list of inputs is empty")
    return value, False  # type: ignore[return-value]


def read_rows(rows: Any, count: int, score: Callable[[Any], Any]) -> list[float | Failure]:
    """The scores of rows, ordered by ``index`` where rows have one. score: a row to its number, or to a list that ends in it.

    Raises:
        BadReply: another shape or another number of scores.
    """
    try:
        scores = {row.get("index", position): number(last_number(score(row))) for position, row in enumerate(rows)}
        complete = len(rows) == count and scores.keys() == set(range(count))
    except (TypeError, KeyError, IndexError, AttributeError, ValueError, OverflowError) as error:
        raise BadReply(f"scores can't be read from the reply: {type(error).__name__}") from None
    if not complete:
        raise BadReply(f"the reply has rows {list(scores)[:5]}... for {count} items")
    return [finite(scores[index]) for index in range(count)]


def field_of(reply: Any, key: str) -> Any:
    """A field of a reply.

    Raises:
        BadReply: the reply is no object or lacks the field.
    """
    try:
        return reply[key]
    except (TypeError, KeyError, IndexError):
        raise BadReply(f"the reply has no {key!r}") from None


def last_number(value: Any) -> Any:
    """The last number of a list of any depth: ``[s]``, or ``[[...], [s]]`` with one number per token."""
    while isinstance(value, list):
        value = value[-1]
    return value


def number(value: Any) -> float:
    """The value as a float. Raises ValueError if it is not a number, such as a text or a boolean."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    return float(value)


def finite(value: float) -> float | Failure:
    """The score, or a Failure if it is not finite."""
    return value if math.isfinite(value) else Failure("non_finite", f"the server gave the score {value}")


def activated(value: float, use_activation: bool | None) -> float:
    """The raw score, or its sigmoid if ``use_activation`` is true."""
    return sigmoid(value) if use_activation else value


def float32_in_base64(value: float) -> str:
    """The encoding in which OpenAI's clients ask for embeddings."""
    return base64.b64encode(struct.pack("<f", value)).decode()


_JSON_TYPES = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
# Parts of an error's location that FastAPI and pydantic's tagged unions add.
_ADDED_PARTS = ("body", "sglang", "vllm")
# pydantic's error types for a value of a wrong JSON type, with the expected type.
_WRONG_TYPE = {
    "string_type": "a string",
    "list_type": "a list",
    "int_type": "an integer",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def explain(errors: Sequence[Any]) -> str:
    """A validation error as one line, without the user's input.

    For a union, pydantic reports the errors of each of its types. The type whose error is deepest in the value gives the reason;
    if no type of the union fits the value's JSON type, the message lists all expected types.
    """
    chosen = _most_specific(errors, 0)
    more = len({error["loc"][: _union_at(error, 0)] for error in errors}) - 1
    path = ".".join(str(part) for part in chosen[0]["loc"] if not _is_union_type(part) and part not in _ADDED_PARTS)
    if chosen[0]["type"] == "extra_forbidden" and _is_union_type(key := chosen[0]["loc"][-1]):  # a user's key may have any name
        path = f"{path}.{key}" if path else key
    if key := chosen[0].get("ctx", {}).get("at"):  # an error of ours about one key of an object
        path = f"{path}.{key}" if path else key
    message = chosen[0]["msg"]
    if len(chosen) > 1 and all(error["type"] in _WRONG_TYPE for error in chosen):
        expected = " or ".join(dict.fromkeys(_WRONG_TYPE[error["type"]] for error in chosen))
        message = f"expected {expected}, not {_JSON_TYPES.get(type(chosen[0].get('input')), 'null')}"
    return f"{path or 'body'}: {message}{f' (and {more} more)' if more else ''}"


def is_of_shape(errors: Sequence[Any]) -> bool:
    """Whether a validation error is of a body as a whole, which has other keys than it should, rather than of a value in it."""

    def is_one(error: Any) -> bool:
        depth = sum(not _is_union_type(part) and part not in _ADDED_PARTS for part in error["loc"])
        if error["type"] in ("missing", "extra_forbidden"):
            return depth <= 1
        return not depth and (error["type"] in _WRONG_TYPE or error["type"] == "unknown_key")

    return any(map(is_one, errors))


def _most_specific(errors: Sequence[Any], start: int) -> list[Any]:
    """The most specific error, or one for each type of a union of which no type fits the value."""
    at = _union_at(errors[0], start)
    if at == len(errors[0]["loc"]):
        return [errors[0]]
    branches: dict[str, list[Any]] = {}
    for error in errors:
        if error["loc"][:at] == errors[0]["loc"][:at] and len(error["loc"]) > at:
            branches.setdefault(error["loc"][at], []).append(error)
    depths = {name: max(map(_depth, of_type)) for name, of_type in branches.items()}
    deepest = [of_type for name, of_type in branches.items() if depths[name] == max(depths.values())]
    return _most_specific(deepest[0], at + 1) if len(deepest) == 1 else [of_type[0] for of_type in deepest]


def _union_at(error: Any, start: int) -> int:
    """Index of the first name of a union's type in an error's location, or the location's length if there is none."""
    loc = error["loc"]
    return next((index for index in range(start, len(loc)) if _is_union_type(loc[index])), len(loc))


def _depth(error: Any) -> tuple[int, tuple[int, ...]]:
    """The length of the location, then its list indices."""
    return len(error["loc"]), tuple(part for part in error["loc"] if isinstance(part, int))


def _is_union_type(part: Any) -> bool:
    return isinstance(part, str) and (not part.isidentifier() or part == "str")

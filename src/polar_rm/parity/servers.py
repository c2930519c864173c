"""The routes of a server: every protocol that it speaks, with token ids and with text."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from polar_rm.common.http import NoReply, Transport, checked_key, server_url
from polar_rm.errors import PolarError
from polar_rm.parity.items import Encoded
from polar_rm.protocols import PROTOCOLS, BadReply, InputProtocol, Protocol
from polar_rm.rewards.outcomes import Failure

_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one route gave: scores by the item's index, and the first reason for which one has none."""

    name: str
    scores: dict[int, float]
    refused: str = ""


@dataclass(frozen=True, slots=True)
class _Wire:
    """One protocol with one kind of value."""

    name: str
    protocol: Protocol
    value: Callable[[Encoded], Any]

    def body(self, one: Encoded, model: str | None) -> dict[str, Any] | None:
        return self.protocol.build_request(model, [self.value(one)])


class _Refused(Exception):
    """An HTTP error or a reply without a score; the message is what the server said."""


def ask_server(
    url: str, encoded: Sequence[Encoded], *, api_key: str | None = None, protocols: Sequence[Protocol] = PROTOCOLS
) -> list[Answer]:
    """One answer for each protocol in which the server can score the shortest item that the protocol can carry.

    Raises:
        PolarError: the address is none, the server does not answer, wants another key, or speaks none of the protocols.
    """
    root = server_url(url)
    key = None if api_key is None else checked_key(api_key, "api_key")

    async def ask() -> list[Answer]:
        async with Transport(root, api_key=key, timeout=_TIMEOUT_S) as transport:
            return await _answers(transport, encoded, protocols)

    # In a thread of its own, since a notebook has a running loop already.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, ask()).result()


async def _answers(transport: Transport, encoded: Sequence[Encoded], protocols: Sequence[Protocol]) -> list[Answer]:
    by_length = sorted(encoded, key=lambda one: len(one.ids))
    try:
        model = (await _send(transport, "GET", "/v1/models", None))["data"][0]["id"]
    except (_Refused, LookupError, TypeError):
        model = None  # LightLLM and old SGLang servers have no such route; one model needs no name
    answers, refusals = [], []
    for wire in _wires(protocols):
        shortest = next((one for one in by_length if wire.body(one, model)), None)
        if shortest is None:
            continue
        try:
            await _score(transport, wire, shortest, model)
        except _Refused as refusal:
            refusals.append(f"{wire.name}: {refusal}")
            continue
        answers.append(await _asked(transport, wire, encoded, model))
    if not answers:
        raise PolarError(f"{transport.url}: speaks none of the known protocols ({'; '.join(refusals)})")
    return answers


def _wires(protocols: Sequence[Protocol]) -> Iterator[_Wire]:
    for protocol in protocols:
        if isinstance(protocol, InputProtocol):
            yield _Wire(f"{protocol.name}, ids", protocol, lambda one: one.ids)
            yield _Wire(f"{protocol.name}, text", protocol, lambda one: one.text)
        else:
            yield _Wire(protocol.name, protocol, lambda one: one.item)


async def _asked(transport: Transport, wire: _Wire, encoded: Sequence[Encoded], model: str | None) -> Answer:
    scores, refused = {}, ""
    for index, one in enumerate(encoded):
        if wire.body(one, model) is None:
            continue
        try:
            scores[index] = await _score(transport, wire, one, model)
        except _Refused as refusal:
            scores[index] = math.nan
            refused = refused or f"item {index + 1}: {refusal}"
    return Answer(wire.name, scores, refused)


async def _score(transport: Transport, wire: _Wire, one: Encoded, model: str | None) -> float:
    reply = await _send(transport, "POST", wire.protocol.path, wire.body(one, model))
    try:
        [score] = wire.protocol.read_reply(reply, 1)
    except BadReply as error:
        raise _Refused(f"no score in the reply {json.dumps(reply)[:200]}: {error}") from error
    if isinstance(score, Failure):
        if score.code == "non_finite":  # an answer, with which nothing agrees
            return math.nan
        raise _Refused(f"{score.code}: {score.message}")
    return score


async def _send(transport: Transport, method: str, path: str, body: dict[str, Any] | None) -> Any:
    reply = await transport.send(method, path, body)
    if isinstance(reply, NoReply):
        raise PolarError(f"{transport.url}{path}: no answer: {reply.message}")
    if reply.status == 401:
        raise PolarError(f"{reply.url}: HTTP 401: the server wants {'another' if transport.has_key else 'an'} API key")
    if reply.status >= 300:
        raise _Refused(f"HTTP {reply.status} {transport.error_text(reply)}")
    try:
        return json.loads(reply.content)
    except (ValueError, RecursionError) as error:
        raise _Refused("the reply is not JSON") from error

"""The routes of a server: every protocol that it supports, with token ids and with text."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from polar_rm.common.http import NoReply, Transport, checked_key, server_url
from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.parity.items import Encoded
from polar_rm.protocols import PROTOCOLS, BadReply, InputProtocol, Protocol
from polar_rm.rewards.outcomes import Failure

_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The scores of one route by item index, and the first reason for a missing score."""

    name: str
    scores: dict[int, float]
    refused: str = ""


@dataclass(frozen=True, slots=True)
class _Route:
    """One protocol with one kind of value."""

    name: str
    protocol: Protocol
    value: Callable[[Encoded], Any]

    def body(self, item: Encoded, model: str | None) -> dict[str, Any] | None:
        return self.protocol.build_request(model, [self.value(item)])


class _Refused(Exception):
    """An HTTP error or a reply without a score; with the server's message."""


def ask_server(
    url: str,
    encoded: Sequence[Encoded],
    *,
    api_key: str | None = None,
    protocols: Sequence[Protocol] = PROTOCOLS,
    progress: Progress = silent,
) -> list[Answer]:
    """One answer for each supported protocol: one by which the server scores the shortest item that the protocol can carry.

    progress: a task for each route, in items; it is called in another thread.

    Raises:
        PolarError: the address is invalid, or the server does not answer, wants another key, or supports none of the protocols.
    """
    root = server_url(url)
    key = None if api_key is None else checked_key(api_key, "api_key")

    async def ask() -> list[Answer]:
        async with Transport(root, api_key=key, timeout=_TIMEOUT_S) as transport:
            return await _answers(transport, encoded, protocols, progress)

    # In another thread, because a notebook already has a running event loop.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, ask()).result()


async def _answers(
    transport: Transport, encoded: Sequence[Encoded], protocols: Sequence[Protocol], progress: Progress
) -> list[Answer]:
    by_length = sorted(encoded, key=lambda item: len(item.ids))
    try:
        model = (await _send(transport, "GET", "/v1/models", None))["data"][0]["id"]
    except (_Refused, LookupError, TypeError):
        model = None  # LightLLM and old SGLang servers have no such route; one model needs no name
    answers, refusals = [], []
    for route in _routes(protocols):
        shortest = next((item for item in by_length if route.body(item, model)), None)
        if shortest is None:
            continue
        try:
            await _score(transport, route, shortest, model)
        except _Refused as refusal:
            refusals.append(f"{route.name}: {refusal}")
            continue
        answers.append(await _answer(transport, route, encoded, model, progress))
    if not answers:
        raise PolarError(f"{transport.url}: the server supports none of the known protocols ({'; '.join(refusals)})")
    return answers


def _routes(protocols: Sequence[Protocol]) -> Iterator[_Route]:
    for protocol in protocols:
        if isinstance(protocol, InputProtocol):
            yield _Route(f"{protocol.name}, ids", protocol, lambda item: item.ids)
            yield _Route(f"{protocol.name}, text", protocol, lambda item: item.text)
        else:
            yield _Route(protocol.name, protocol, lambda item: item.item)


async def _answer(
    transport: Transport, route: _Route, encoded: Sequence[Encoded], model: str | None, progress: Progress
) -> Answer:
    scores, refused = {}, ""
    for index, item in enumerate(encoded):
        progress(route.name, index, len(encoded), f"now {len(item.ids):,} tokens")
        if route.body(item, model) is None:
            continue
        try:
            scores[index] = await _score(transport, route, item, model)
        except _Refused as refusal:
            scores[index] = math.nan
            refused = refused or f"item {index + 1}: {refusal}"
    progress(route.name, len(encoded), len(encoded))
    return Answer(route.name, scores, refused)


async def _score(transport: Transport, route: _Route, item: Encoded, model: str | None) -> float:
    reply = await _send(transport, "POST", route.protocol.path, route.body(item, model))
    try:
        [score] = route.protocol.read_reply(reply, 1)
    except BadReply as error:
        raise _Refused(f"no score in the reply {json.dumps(reply)[:200]}: {error}") from error
    if isinstance(score, Failure):
        if score.code == "non_finite":  # a score that agrees with no other
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

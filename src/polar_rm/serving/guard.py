"""Middleware of all routes: the key, limits on body, time and memory, draining, one log line per request, and the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polar_rm.serving.batching import Batcher, BatchStats
from polar_rm.serving.bodies import Turns, excess
from polar_rm.serving.hosts import Hosts

_log = logging.getLogger("polar_rm.serving.requests")

# Paths that need no key: the page, the OpenAPI document, and the probes of load balancers.
_OPEN_PATHS = {"/", "/health", "/ready", "/openapi.json"}

_MAX_LOGGED_BYTES = 1 << 20
_LISTS_PER_ITEM = 64  # lists and objects, for messages and their parts
_MAX_DISCARDED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of requests.

    body_bytes: of one request; also the maximum number of its characters, where a prompt counts once for each of its outputs.
    items: sequences to score in one request. seconds: from the first byte to the answer; also the maximum time for draining.
    All bodies that are in memory at the same time may have eight times ``body_bytes`` together.
    """

    body_bytes: int = 32 << 20
    items: int = 4096
    seconds: float = 300.0


def error_reply(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error reply in the format of vLLM and OpenAI."""
    content = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return JSONResponse(content, status, headers)


class Metrics:
    """Prometheus metrics of one server, in their own registry."""

    def __init__(self, batcher: Batcher) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("polar_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "polar_request_seconds",
            "Time from the request to its answer.",
            ["route"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=self.registry,
        )
        self.items = Counter("polar_items", "Items by outcome: ok or the code of a failure.", ["outcome"], registry=self.registry)
        self._batches = Counter("polar_batches", "Calls of the model.", registry=self.registry)
        self._scored = Counter("polar_batched_sequences", "Sequences in the calls of the model.", registry=self.registry)
        self._tree_tokens = Counter("polar_computed_tokens", "Tokens that the model computed.", registry=self.registry)
        self._tokens = Counter("polar_sequence_tokens", "Tokens without sharing prefixes.", registry=self.registry)
        self._model_seconds = Counter("polar_model_seconds", "Time in the model.", registry=self.registry)
        waiting = Gauge("polar_waiting_sequences", "Sequences in the queue.", registry=self.registry)
        waiting.set_function(lambda: batcher.waiting_sequences)
        tokens = Gauge("polar_waiting_tokens", "Tokens of the sequences in the queue.", registry=self.registry)
        tokens.set_function(lambda: batcher.waiting_tokens)
        if (prefixes := batcher.prefixes) is not None:
            kept = Gauge("polar_kept_prefix_bytes", "Memory of the prefixes that are kept.", registry=self.registry)
            kept.set_function(lambda: prefixes.n_bytes)

    def count_batch(self, stats: BatchStats) -> None:
        """Count one call of the model."""
        self._batches.inc()
        self._scored.inc(stats.sequences)
        self._tree_tokens.inc(stats.tree_tokens)
        self._tokens.inc(stats.sequence_tokens)
        self._model_seconds.inc(stats.seconds)


class Guard:
    """ASGI middleware. Every accepted request is answered, also while the server drains. active: number of accepted POSTs that
    are not answered yet."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: Metrics,
        api_key: str | None,
        log_texts: bool,
        hosts: Hosts | None = None,
    ) -> None:
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.json_paths: frozenset[str] = frozenset()  # paths whose POST has a JSON body
        self._key = api_key.encode() if api_key else None
        self._hosts = hosts or Hosts()
        self._log_texts = log_texts
        self.draining = False
        self.active = 0
        self._held_bytes = 0
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = _Record(scope, send)
        body = _Body(receive, self.limits.body_bytes)
        refusal = self._refusal(scope, record.headers)
        accepted = refusal is None and scope["method"] == "POST"
        self.active += accepted
        try:
            if accepted:
                refusal = await self._read(body)
            elif refusal is not None:
                await _discard(record.headers, receive)
            if refusal is not None:
                await refusal(scope, receive, record.send)
            else:
                await self._answer(scope, body, record)
        finally:
            self.active -= accepted
            self._held_bytes -= body.held
            self._finish(record, body)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> JSONResponse | None:
        # With a key the host need not be checked: a foreign page does not know the key.
        if self._key is None and (reason := self._hosts.refusal(scope["path"], headers)):
            return error_reply(403, "forbidden", reason)
        if scope["path"] in _OPEN_PATHS and scope["method"] != "POST":
            return None
        if self._key is not None:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key, self._key):
                message = "missing or wrong API key; send Authorization: Bearer KEY"
                return error_reply(401, "authentication_error", message, {"WWW-Authenticate": "Bearer"})
        if self.draining and scope["method"] == "POST":
            return error_reply(503, "unavailable", "the server is shutting down", {"Connection": "close"})
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self.limits.body_bytes:
            return _too_large(self.limits.body_bytes)
        if (coding := headers.get(b"content-encoding", b"identity")).lower() != b"identity":
            message = f"Content-Encoding {coding.decode('latin-1')!r} is not supported: send uncompressed JSON"
            return error_reply(415, "invalid_request", message)
        if scope["method"] == "POST" and scope["path"] in self.json_paths:
            # A page of another origin may send other types without a CORS preflight request.
            kind = headers.get(b"content-type", b"").decode("latin-1")
            if kind.partition(";")[0].strip().lower() != "application/json":
                return error_reply(400, "invalid_request", f"Content-Type is {kind!r}; send JSON as application/json")
        return None

    async def _read(self, body: _Body) -> JSONResponse | None:
        def hold(n_bytes: int) -> bool:
            self._held_bytes += n_bytes
            return self._held_bytes <= 8 * self.limits.body_bytes

        try:
            async with asyncio.timeout(min(30.0, self.limits.seconds)):
                refusal = await body.read(hold)
        except TimeoutError:
            return error_reply(408, "timeout", "the request's body did not arrive in time", {"Connection": "close"})
        if refusal is not None:
            return refusal
        if b"\0" in body.content:  # not in JSON; in UTF-16, where the next check would not count right
            return error_reply(400, "invalid_request", "the body is not JSON in UTF-8")
        reason = await excess(body.content, _LISTS_PER_ITEM * self.limits.items + 10_000)
        return error_reply(413, "too_large", reason) if reason else None

    async def _answer(self, scope: Scope, body: _Body, record: _Record) -> None:
        try:
            async with asyncio.timeout(self.limits.seconds), self._turns.turn(len(body.content)) as end_turn:
                body.on_parsed = end_turn
                await self.app(scope, body.replay, record.send)
        except TimeoutError:
            if not record.status:
                message = f"no answer within {self.limits.seconds:g} s; the server is overloaded or the request is too large"
                await error_reply(503, "timeout", message, {"Retry-After": "5"})(scope, body.replay, record.send)

    def _finish(self, record: _Record, body: _Body) -> None:
        # Unknown paths are no labels, or clients could create any number of time series.
        route = getattr(record.scope.get("route"), "path", "other")
        seconds = time.perf_counter() - record.started
        self.metrics.requests.labels(route, record.status).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        fields: dict[str, Any] = {
            "request": record.id,
            "method": record.scope["method"],
            "route": route,
            "status": record.status,
            "seconds": round(seconds, 4),
            "bytes": len(body.content),
            **record.scope.get("state", {}).get("log", {}),
        }
        if self._log_texts:
            fields["body"] = body.content[:_MAX_LOGGED_BYTES].decode(errors="replace")
            if len(body.content) > _MAX_LOGGED_BYTES:
                fields["body_cut_to"] = _MAX_LOGGED_BYTES
        _log.info("request", extra={"fields": fields})


class _Record:
    """Records the status of the reply, and adds a request id for the client."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self._send = send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.id = uuid.uuid4().hex[:16]
        self.status = 0
        self.started = time.perf_counter()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = _with_header(message, (b"x-request-id", self.id.encode()))
        await self._send(message)


class _Body:
    """A request's body, which is read completely before the request is processed."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self.content = b""
        self.held = 0
        self.on_parsed: Callable[[], None] = lambda: None  # called when whoever reads the body asks for more
        self._replayed = False

    async def read(self, hold: Any) -> JSONResponse | None:
        chunks: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":  # an incomplete body must not be taken for a complete one
                return error_reply(499, "client_closed_request", "the client closed the connection")
            chunk = message.get("body", b"")
            chunks.append(chunk)
            self.held += len(chunk)
            enough_memory = hold(len(chunk))
            if self.held > self._limit:
                return _too_large(self._limit)
            if not enough_memory:
                return error_reply(503, "unavailable", "the server holds too many bytes of other requests", {"Retry-After": "1"})
            if not message.get("more_body", False):
                self.content = b"".join(chunks)
                return None

    async def replay(self) -> Message:
        if self._replayed:
            self.on_parsed()
            return await self._receive()  # reports when the client disconnects
        self._replayed = True
        return {"type": "http.request", "body": self.content, "more_body": False}


async def _discard(headers: dict[bytes, bytes], receive: Receive) -> None:
    """Read a small body and ignore it: unread bytes would reset the connection, and the client might miss our answer."""
    declared = headers.get(b"content-length", b"")
    if b"expect" in headers or not (declared.isdigit() and int(declared) <= _MAX_DISCARDED_BYTES):
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass


def _too_large(limit: int) -> JSONResponse:
    return error_reply(413, "too_large", f"the body is larger than {limit:,} bytes", {"Connection": "close"})


def _with_header(message: Message, header: tuple[bytes, bytes]) -> MutableMapping[str, Any]:
    return {**message, "headers": [*message.get("headers", []), header]}

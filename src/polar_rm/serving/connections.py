"""Limits on connections without a request, so that none of them keeps other clients out.

uvicorn's own timeouts only start after an answer, and asyncio accepts connections until no descriptor is left. So we close a
connection that does not send a complete header in time, and keep the number of open connections below the process's limit. At
the limit, a new connection replaces the one that has waited longest without a request. A request in progress is never
interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from polar_rm.common.json import dump_json

HEADER_SECONDS = 30.0
MAX_CONNECTIONS = 10_000
# With more descriptors, programs that close all possible descriptors take seconds.
_MAX_DESCRIPTORS = 65_536
# Seconds for a refused client to read the reason.
_REFUSAL_SECONDS = 1.0


def raise_descriptor_limit() -> None:
    """Let this process open as many files and connections as the system allows."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    new_limit = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < new_limit:
        with contextlib.suppress(ValueError, OSError):  # the kernel of macOS has a lower limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard))


def connection_limits() -> tuple[int, int]:
    """Maximum numbers of (open connections, connections accepted in one burst) under the process's limit of descriptors.

    asyncio accepts connections in bursts, and several bursts may occur before we see the first of their connections.
    """
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except ModuleNotFoundError:
        limit = -1
    if limit < 0:
        return MAX_CONNECTIONS, 64
    try:
        opened = len(os.listdir("/proc/self/fd"))
    except OSError:
        opened = 32
    burst = max(2, min(64, limit // 16))
    return max(4, min(MAX_CONNECTIONS, limit - opened - limit // 8 - 4 * burst)), burst


class Connections:
    """The open connections of one server. limit: maximum number of connections. header_seconds: time for a complete header."""

    def __init__(self, limit: int | None = None, header_seconds: float = HEADER_SECONDS) -> None:
        self.limit, self.burst = connection_limits()
        self.limit = limit or self.limit
        self.header_seconds = header_seconds
        self.closing = False
        self._open: set[Any] = set()
        # Connections without a request, in the order in which they began to wait: before their first request, and after one.
        self._new: dict[Any, None] = {}
        self._idle: dict[Any, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def protocol(self) -> Any:
        """uvicorn's protocol class, whose connections register here; for ``uvicorn.Config(http=...)``."""
        connections = self

        class Protocol(WatchedProtocol):
            registry = connections

        return Protocol

    def opened(self, connection: Any) -> None:
        """Register a new connection. At the limit it replaces a waiting connection; if none is waiting, it is refused."""
        if self.closing:
            connection.refuse("the server is shutting down")
            return
        self._open.add(connection)
        self._new[connection] = None
        if len(self._open) > self.limit:
            waiting = next((other for other in (*self._new, *self._idle) if other is not connection), None)
            if waiting is None:
                self.closed(connection)
                connection.refuse("too many connections are open")
                return
            self.closed(waiting)
            waiting.transport.abort()

    def closed(self, connection: Any) -> None:
        """Unregister a closed connection."""
        self._open.discard(connection)
        self.busy(connection)

    def busy(self, connection: Any) -> None:
        """Mark a connection with a request in progress."""
        self._new.pop(connection, None)
        self._idle.pop(connection, None)

    def idle(self, connection: Any) -> None:
        """Mark a connection whose requests are all answered."""
        if connection in self._open:
            self._idle[connection] = None

    def refuse_new(self) -> None:
        """Refuse all connections that have not sent a request yet, and all later ones, because the server is shutting down."""
        self.closing = True
        for connection in list(self._new):
            self.closed(connection)
            connection.refuse("the server is shutting down")


class WatchedProtocol(AutoHTTPProtocol):  # type: ignore[valid-type,misc]
    """uvicorn's protocol, on h11 or httptools, with registration. Of both it uses the request in progress (``cycle``) and the
    callbacks."""

    registry: Connections

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._refused = self._half_closed = False

    @property
    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer for the header of a new connection."""
        super().connection_made(transport)
        self._start_header_timer()
        self.registry.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Unregister the connection."""
        self._stop_header_timer()
        self.registry.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process bytes, with which a request may begin."""
        if self._refused:
            return
        super().data_received(data)
        if self._in_request:
            self._stop_header_timer()
            self.registry.busy(self)
        elif self._header_timer is None:  # the header of the next request has begun, or the rest of an ignored body arrives
            self._start_header_timer()

    def on_response_complete(self) -> None:
        """Mark the connection as idle once its request is answered."""
        super().on_response_complete()
        if self._half_closed:
            self.transport.close()
        elif not self._in_request:
            self.registry.idle(self)

    def eof_received(self) -> bool | None:
        """Keep the connection open: a client that has sent a complete request may close its side and still read the answer."""
        if not self._in_request or self.cycle.more_body:
            return None
        self._half_closed = True
        # A client that has gone closes its side in the same way. Its system answers anything that we send with a reset, so we
        # send an interim response, which a waiting client ignores.
        if self.scope["http_version"] == "1.1" and not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._check_client(0.05)
        return True

    def _check_client(self, pause: float) -> None:
        if self.transport.is_closing() or not self._in_request:
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            asyncio.get_running_loop().call_later(pause, self._check_client, min(1.0, 2 * pause))

    def shutdown(self) -> None:
        """Close the connection when the server ends; a refused client keeps its time to read the reason."""
        if not self._refused:
            super().shutdown()

    def refuse(self, message: str) -> None:
        """Send 503, and close after the client has had time to read it."""
        self._refused = True
        self._stop_header_timer()
        self.transport.write(refusal(message))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        asyncio.get_running_loop().call_later(_REFUSAL_SECONDS, self.transport.abort)

    def _start_header_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._header_timer = loop.call_later(self.registry.header_seconds, self._close_idle)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _close_idle(self) -> None:
        self.registry.closed(self)
        self.transport.abort()


def refusal(message: str) -> bytes:
    """A complete HTTP response with status 503, for connections from which no request was read."""
    error = {"message": message, "type": "unavailable", "param": None, "code": 503}
    body = dump_json({"error": error}).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body


def refuse_queued(listener: socket.socket) -> list[socket.socket]:
    """Accept and refuse the connections in the listen queue, which the system would reset when the port is closed.

    Returns their sockets. :func:`close_read` closes them once the clients have had time to read the answer.
    """
    accepted = []
    listener.setblocking(False)
    with contextlib.suppress(OSError):  # the queue is empty, or no descriptor is left
        while True:
            connection, _ = listener.accept()
            accepted.append(connection)
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                connection.send(refusal("the server is shutting down"))
                connection.shutdown(socket.SHUT_WR)
    return accepted


def close_read(connections: list[socket.socket]) -> None:
    """Read what arrived on the sockets and close them: with unread bytes the client would get a reset instead of our answer."""
    for connection in connections:
        with connection, contextlib.suppress(OSError):
            while connection.recv(1 << 16):
                pass

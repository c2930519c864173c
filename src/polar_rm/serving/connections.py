"""Connections before they ask anything, and after: none may keep others out.

uvicorn's own timeouts count behind an answer only, and asyncio accepts until no descriptor is left. So a connection that has sent
no whole header in time is closed, the number of open ones stays below the process's limit, and who comes when it is reached takes
the place of the one that has waited longest without asking. A request in progress is never cut off.
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
# Behind both, programs that close all possible descriptors take seconds.
_MAX_DESCRIPTORS = 65_536
# Seconds for a refused client to read why.
_FAREWELL_SECONDS = 1.0


def raise_descriptor_limit() -> None:
    """Let this process open as many files and connections as the system allows it."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit of the kernel's
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def bounds() -> tuple[int, int]:
    """(connections that may be open, connections that may be accepted in one go) under the process's limit of descriptors.

    asyncio accepts in bursts, and several may be on their way before the first of their connections is known to us.
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
    """The open connections of one server. limit: how many may be open; header_seconds: for a whole header."""

    def __init__(self, limit: int | None = None, header_seconds: float = HEADER_SECONDS) -> None:
        self.limit, self.burst = bounds()
        self.limit = limit or self.limit
        self.header_seconds = header_seconds
        self.closing = False
        self._open: set[Any] = set()
        # Those that ask nothing, in the order in which they began to wait: who never asked, and who did before.
        self._fresh: dict[Any, None] = {}
        self._idle: dict[Any, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def protocol(self) -> Any:
        """uvicorn's protocol of this environment, each connection of which is watched here; for ``uvicorn.Config(http=...)``."""
        connections = self

        class Protocol(WatchedProtocol):
            registry = connections

        return Protocol

    def opened(self, connection: Any) -> None:
        """A new connection; one that waits has to go for it, or it has to go itself."""
        if self.closing:
            connection.refuse("the server is shutting down")
            return
        self._open.add(connection)
        self._fresh[connection] = None
        if len(self._open) > self.limit:
            waiting = next((one for one in (*self._fresh, *self._idle) if one is not connection), None)
            if waiting is None:
                self.closed(connection)
                connection.refuse("too many connections are open")
                return
            self.closed(waiting)
            waiting.transport.abort()

    def closed(self, connection: Any) -> None:
        """A connection that is no more."""
        self._open.discard(connection)
        self.busy(connection)

    def busy(self, connection: Any) -> None:
        """A connection with a request in progress."""
        self._fresh.pop(connection, None)
        self._idle.pop(connection, None)

    def idle(self, connection: Any) -> None:
        """A connection whose requests are answered."""
        if connection in self._open:
            self._idle[connection] = None

    def refuse_fresh(self) -> None:
        """Tell all who never asked, and all who will come, that the server is going."""
        self.closing = True
        for connection in list(self._fresh):
            self.closed(connection)
            connection.refuse("the server is shutting down")


class WatchedProtocol(AutoHTTPProtocol):  # type: ignore[valid-type,misc]
    """Of uvicorn's protocols, h11's and httptools' alike, this uses the request in progress (``cycle``) and the callbacks."""

    registry: Connections

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._refused = self._half_closed = False

    @property
    def _asking(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection, which has some time for its header."""
        super().connection_made(transport)
        self._await_header()
        self.registry.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._forget_header()
        self.registry.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes, with which a request may begin."""
        if self._refused:
            return
        super().data_received(data)
        if self._asking:
            self._forget_header()
            self.registry.busy(self)
        elif self._header_timer is None:  # the next request's header has begun, or the rest of a body that nobody wants
            self._await_header()

    def on_response_complete(self) -> None:
        """A request is answered."""
        super().on_response_complete()
        if self._half_closed:
            self.transport.close()
        elif not self._asking:
            self.registry.idle(self)

    def eof_received(self) -> bool | None:
        """A client that has sent a whole request may close its side and still read the answer."""
        if not self._asking or self.cycle.more_body:
            return None
        self._half_closed = True
        # A client that is gone closes in the same way. Its system answers to whatever we send that it is, so we send a line
        # that a waiting client passes over.
        if self.scope["http_version"] == "1.1" and not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._look_for_client(0.05)
        return True

    def _look_for_client(self, pause: float) -> None:
        if self.transport.is_closing() or not self._asking:
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            asyncio.get_running_loop().call_later(pause, self._look_for_client, min(1.0, 2 * pause))

    def shutdown(self) -> None:
        """The server ends; who was refused is left the time to read it."""
        if not self._refused:
            super().shutdown()

    def refuse(self, message: str) -> None:
        """Say 503, and close when the client has had time to read it."""
        self._refused = True
        self._forget_header()
        self.transport.write(refusal(message))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        asyncio.get_running_loop().call_later(_FAREWELL_SECONDS, self.transport.abort)

    def _await_header(self) -> None:
        loop = asyncio.get_running_loop()
        self._header_timer = loop.call_later(self.registry.header_seconds, self._give_up)

    def _forget_header(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self.registry.closed(self)
        self.transport.abort()


def refusal(message: str) -> bytes:
    """A whole answer with 503, for connections that no request was read from."""
    error = {"message": message, "type": "unavailable", "param": None, "code": 503}
    body = dump_json({"error": error}).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body


def refuse_queued(listener: socket.socket) -> list[socket.socket]:
    """Answer connections that wait to be accepted: the system would reset them when the port is closed.

    Returns their sockets, to be closed by :func:`close_read` once the clients have had time to read.
    """
    accepted = []
    listener.setblocking(False)
    with contextlib.suppress(OSError):  # none is left, or there are no descriptors
        while True:
            connection, _ = listener.accept()
            accepted.append(connection)
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                connection.send(refusal("the server is shutting down"))
                connection.shutdown(socket.SHUT_WR)
    return accepted


def close_read(connections: list[socket.socket]) -> None:
    """Close sockets behind what they were sent: with bytes unread, the client would be told of a reset instead of our answer."""
    for connection in connections:
        with connection, contextlib.suppress(OSError):
            while connection.recv(1 << 16):
                pass

"""The one HTTP client: addresses, keys, proxies, and replies or failures as typed results.

Retries, rates and concurrency are the callers' business.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import httpx

from polar_rm.common.json import dump_json
from polar_rm.errors import PolarError

MAX_REPLY_BYTES = 256 << 20

_WITHOUT_SCHEME = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[^\s/:@\[\]]+):\d+/?")


def server_url(address: str, *, path: bool = False) -> str:
    """The URL of a server's root from ``http://HOST[:PORT]``, ``https://HOST[:PORT]`` or ``HOST:PORT``.

    path: accept a path behind the host too, such as ``http://HOST:PORT/v1``.

    Raises:
        PolarError: the address has another form. The message never repeats credentials.
    """
    text = address.strip()
    if _WITHOUT_SCHEME.fullmatch(text):
        text = f"http://{text}"
    expected = f"expected http://HOST:PORT{'/PATH' if path else ''}"
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise PolarError(f"{address!r} is not a server's address: {error}; {expected}") from None
    if parts.username is not None or parts.password is not None:
        raise PolarError(f"a server's address must not hold credentials; {expected}, and name a variable that holds the key")
    if text.count("://") > 1:
        raise PolarError(f"{address!r} is not a server's address: it has two schemes; {expected}")
    bad_characters = any(character.isspace() or not character.isprintable() for character in text)
    if parts.scheme not in ("http", "https") or not host or port == 0 or bad_characters:
        raise PolarError(f"{address!r} is not a server's address: {expected}")
    if parts.query or parts.fragment or (parts.path.strip("/") and not path):
        rest = text.partition("://")[2].partition(parts.netloc)[2]
        raise PolarError(f"{address!r} is not a server's address: nothing may follow the host, but {rest!r} does; {expected}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def is_address(text: str) -> bool:
    """Whether a text names a server and not a folder: it has a scheme, or is ``HOST:PORT``."""
    return "://" in text or bool(_WITHOUT_SCHEME.fullmatch(text))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to ``host``."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def key_from_environment(variable: str, option: str, environment: Mapping[str, str] = os.environ) -> str:
    """The key in the environment variable that ``option`` names, without the newline at the end of keys that come from files.

    Raises:
        PolarError: the variable is not set or empty, or no header can carry its value. The message never repeats the value.
    """
    value = environment.get(variable)
    if value is None:
        raise PolarError(f"{option}: the environment variable {variable} is not set")
    if not value.strip():
        raise PolarError(f"{option}: the environment variable {variable} is set, but it is empty")
    return checked_key(value, f"{option}: the environment variable {variable}")


def checked_key(key: str, source: str) -> str:
    """The key without white space around it. source: where the key comes from, for the message.

    Raises:
        PolarError: no HTTP header can carry this key.
    """
    stripped = key.strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise PolarError(f"{source}: expected a key of printable ASCII characters without spaces")
    return stripped


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply, whatever its status. url: the URL of the request."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str = ""

    @property
    def text(self) -> str:
        """The content as text; bytes that are not UTF-8 are replaced."""
        return self.content.decode(errors="replace")

    @property
    def message(self) -> str | None:
        """The server's error message, from ``error.message`` (OpenAI, vLLM, SGLang, ours), ``error``, ``message``, ``detail``."""
        try:
            content = json.loads(self.content)
            error = content.get("error", content)
            text = error if isinstance(error, str) else error.get("message") or error.get("detail")
        except (ValueError, AttributeError, RecursionError):
            return None
        return str(text) if text else None

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, from a header that holds seconds or a date; None where it is missing or holds neither."""
        value = self.headers.get("retry-after", "")
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
            except (ValueError, TypeError):
                return None
        return max(0.0, seconds) if math.isfinite(seconds) else None


@dataclass(frozen=True, slots=True)
class NoReply:
    """Why no complete reply arrived. kind ``absent``: the connection is refused, or the host name does not exist."""

    kind: Literal["absent", "connection", "timeout", "broken", "too_large", "unreadable"]
    message: str


class Transport:
    """Requests to one server over a pool of connections, within one event loop.

    url: the server's root. timeout: seconds from the start of a request to the last byte of its reply, even if the reply trickles
    in. api_key: sent as a bearer token; no message repeats it, and redirects are not followed, because they could carry it to
    another server. proxies: whether to use a proxy of the environment; never for the loopback. max_reply_bytes: the limit of one
    reply after decompression. client_transport: replaces the network, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        max_connections: int = 32,
        proxies: bool = False,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        client_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self.timeout = timeout
        self._key = api_key or ""
        self._max_reply_bytes = max_reply_bytes
        proxy = _proxy_for(url) if proxies else None
        self._via = f" through the proxy {_without_credentials(proxy)} of the environment" if proxy else ""
        try:
            self._client = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
                timeout=None,  # httpx's timeouts hold for each read, not for the whole request
                trust_env=False,
                proxy=proxy,
                verify=_certificates(url, proxy),
                transport=client_transport,
            )
        except (ImportError, ValueError) as error:
            raise PolarError(f"{url}: it can't be requested{self._via}: {error}") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def send(self, method: str, path: str, body: Any = None, until: float = math.inf) -> Reply | NoReply:
        """Send one request and return its reply or failure.

        body: a value to send as JSON, or JSON bytes. until: the deadline, in seconds of ``time.monotonic()``.
        """
        seconds = min(self.timeout, until - time.monotonic())
        if seconds <= 0:
            return NoReply("timeout", "the deadline has passed")
        url = self.url + path
        content = body if body is None or isinstance(body, bytes) else dump_json(body).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream(method, url, content=content, headers=headers) as reply,
            ):
                chunks, size = [], 0
                async for chunk in reply.aiter_bytes():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > self._max_reply_bytes:
                        return NoReply("too_large", f"the reply has more than {self._max_reply_bytes:,} bytes")
        except TimeoutError:
            return NoReply("timeout", f"no answer within {seconds:.3g} s{self._via}")
        except httpx.RemoteProtocolError as error:
            return NoReply("broken", self.masked(f"the server broke off{self._via}: {error}"))
        except httpx.DecodingError as error:
            return NoReply("unreadable", self.masked(f"the reply can't be decompressed: {error}"))
        except httpx.TransportError as error:
            return self._not_connected(error)
        reply_headers = {name.lower(): self.masked(value) for name, value in reply.headers.items()}
        return Reply(reply.status_code, reply_headers, b"".join(chunks), url)

    @property
    def has_key(self) -> bool:
        """Whether requests carry a key."""
        return bool(self._key)

    def masked(self, text: str) -> str:
        """The text with the key replaced by ``***``."""
        return text.replace(self._key, "***") if self._key else text

    def error_text(self, reply: Reply, length: int = 200) -> str:
        """The server's error message, or the beginning of the content where there is none, on one line."""
        text = self.masked(reply.message or reply.text)  # before it is shortened: half a key is a secret too
        kind = reply.headers.get("content-type", "").partition(";")[0]
        return " ".join(text.split())[:length] or f"an empty answer ({kind or 'no content type'})"

    def _not_connected(self, error: httpx.TransportError) -> NoReply:
        causes = list(_causes(error))
        if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
            return NoReply("absent", f"connection refused{self._via}")
        if unresolved := next((cause for cause in causes if isinstance(cause, socket.gaierror)), None):
            return NoReply("absent", f"no such name{self._via}: {unresolved.strerror}")
        return NoReply("connection", self.masked(f"{type(error).__name__}{self._via} {error}".strip()))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):  # one error for each address of the name
            for inner in error.exceptions:
                yield from _causes(inner)
        error = error.__cause__ or error.__context__


def _proxy_for(url: str) -> str | None:
    """The environment's proxy for this URL; None where there is none, NO_PROXY names the host, or the host is this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _without_credentials(url: str | None) -> str:
    scheme, _, rest = (url or "").partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _certificates(url: str, proxy: str | None) -> ssl.SSLContext | bool:
    if url.startswith("http://") and not (proxy or "").startswith("https"):
        return False  # nothing checks a certificate, and loading them takes longer than a request
    if os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context()  # it reads both variables
    return True

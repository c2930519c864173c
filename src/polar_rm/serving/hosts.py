"""Which names a server without a key answers to, so that no web page can use a browser to reach it.

A page of a foreign site can have its name point at the loopback (DNS rebinding); then the browser takes the server for that site,
and its requests carry the site's name as Host. Requests that a page sends across sites carry Origin or Sec-Fetch-Site.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from functools import cache

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_EVERYWHERE = frozenset({"0.0.0.0", "::", ""})


@dataclass(frozen=True)
class Hosts:
    """bound: the address or name that the server was bound to. allowed: further names."""

    bound: str = "127.0.0.1"
    allowed: tuple[str, ...] = ()

    def refusal(self, path: str, headers: dict[bytes, bytes]) -> str | None:
        """Why a request of these headers is not answered, None where it is."""
        host = headers.get(b"host", b"").decode("latin-1").strip().lower()
        if host and not self._is_ours(_name(host)):
            return f"the server has no key and does not answer to the name {host!r}: start it with a key, or allow this host"
        origin = headers.get(b"origin", b"").decode("latin-1").strip().lower()
        if origin and origin.partition("://")[2] != host:
            return f"the server has no key and does not answer pages of another origin ({origin!r})"
        # Somebody else's link to our page may be followed: the page only shows what its own requests get.
        if path != "/" and headers.get(b"sec-fetch-site", b"") == b"cross-site":
            return "the server has no key and does not answer requests of other sites"
        return None

    def _is_ours(self, name: str) -> bool:
        if name in _LOOPBACK or name == self.bound.lower() or name in self.allowed:
            return True
        if self.bound not in _EVERYWHERE:
            return False
        # Others were let in, by whatever name of this machine. An address or a name without a dot is no public name that somebody
        # could point elsewhere.
        return _is_address(name) or "." not in name or name == _own_name()


def _name(host: str) -> str:
    """Without the port and the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


@cache
def _own_name() -> str:
    return socket.getfqdn().lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

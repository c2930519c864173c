"""The host names that a server without a key answers to, so that no web page can reach it through a browser.

A foreign site can let its name resolve to the loopback (DNS rebinding). The browser then takes the server for that site, and its
requests carry the site's name as Host. Requests that a page sends to another site carry Origin or Sec-Fetch-Site.
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
    """The accepted names. bound: the address or name that the server was bound to. allowed: further names."""

    bound: str = "127.0.0.1"
    allowed: tuple[str, ...] = ()

    def refusal(self, path: str, headers: dict[bytes, bytes]) -> str | None:
        """The reason for refusing a request with these headers, or None to accept it."""
        host = headers.get(b"host", b"").decode("latin-1").strip().lower()
        if host and not self._is_accepted(_name(host)):
            return f"the server has no key and does not answer to the name {host!r}: start it with a key or --allowed-host"
        origin = headers.get(b"origin", b"").decode("latin-1").strip().lower()
        if origin and origin.partition("://")[2] != host:
            return f"the server has no key and does not answer pages of another origin ({origin!r})"
        # Links from other sites to our page are allowed, because the page shows only the results of its own requests.
        if path != "/" and headers.get(b"sec-fetch-site", b"") == b"cross-site":
            return "the server has no key and does not answer requests from other sites"
        return None

    def _is_accepted(self, name: str) -> bool:
        if name in _LOOPBACK or name == self.bound.lower() or name in self.allowed:
            return True
        if self.bound not in _EVERYWHERE:
            return False
        # The server is open to other machines, under any name of this machine. Nobody can let an address or a name without a dot
        # resolve to another machine.
        return _is_address(name) or "." not in name or name == _machine_name()


def _name(host: str) -> str:
    """The name without the port and without the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


@cache
def _machine_name() -> str:
    return socket.getfqdn().lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

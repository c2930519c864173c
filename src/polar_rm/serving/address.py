"""The address of a server, and its API key."""

from __future__ import annotations

import socket

from polar_rm.common.http import is_loopback, key_from_environment
from polar_rm.errors import PolarError


def api_key(host: str, variable: str | None, *, allow_open: bool) -> str | None:
    """The key in the environment variable, or None for a server without a key.

    Raises:
        PolarError: the variable holds no key, or other machines could reach the server without a key.
    """
    if variable:
        return key_from_environment(variable, "--api-key-env")
    if not is_loopback(host) and not allow_open:
        raise PolarError(
            f"--host {host} lets other machines in: name a key's environment variable with --api-key-env, or set --allow-open"
        )
    return None


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. It is opened before the model is loaded, so that a port in use is reported early; early clients wait.

    Raises:
        PolarError: the address can't be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # several processes can bind a port until one of them listens
    except OSError as error:
        listener.close()
        raise PolarError(f"{host}:{port} can't be bound: {error.strerror or error}") from error
    return listener

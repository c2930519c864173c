"""Where a server listens, and who may ask it."""

from __future__ import annotations

import socket

from polar_rm.common.http import is_loopback, key_from_environment
from polar_rm.errors import PolarError


def api_key(host: str, variable: str | None, *, allow_open: bool) -> str | None:
    """The key in the environment variable, None where none is asked for.

    Raises:
        PolarError: the variable holds no key, or others could reach the server without a key.
    """
    if variable:
        return key_from_environment(variable, "--api-key-env")
    if not is_loopback(host) and not allow_open:
        raise PolarError(
            f"--host {host} lets other machines in: name a key's environment variable by --api-key-env, or say --allow-open"
        )
    return None


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, before the model is loaded: a port in use should be told at once. Who connects early waits for it.

    Raises:
        PolarError: it can't be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # until one of them listens, several can be bound
    except OSError as error:
        listener.close()
        raise PolarError(f"{host}:{port} can't be bound: {error.strerror or error}") from error
    return listener

"""``polar serve`` on a bound port: load the model, serve until a signal, then drain."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from polar_rm.attention.prefixes import PrefixStore
from polar_rm.common.sources import model_name
from polar_rm.errors import PolarError
from polar_rm.model.devices import claim_device, dtype_name
from polar_rm.model.reward_model import RewardModel
from polar_rm.rewards.scale import Scale
from polar_rm.scoring.scorer import Scorer
from polar_rm.serving.app import create_app
from polar_rm.serving.batching import Batcher
from polar_rm.serving.config import ServeConfig
from polar_rm.serving.connections import Connections, close_read, raise_descriptor_limit, refuse_queued
from polar_rm.serving.guard import Guard, Limits
from polar_rm.serving.hosts import Hosts
from polar_rm.serving.logs import log_to_stderr
from polar_rm.serving.service import Service

_log = logging.getLogger("polar_rm.serving")

# Longer than clients keep an idle connection (httpx 5 s, aiohttp 15 s): if the server closes first, it may lose a request that
# is already on its way.
KEEP_ALIVE_SECONDS = 75
_QUEUED_CONNECTIONS = 2048


def serve(config: ServeConfig, listener: socket.socket, key: str | None) -> None:
    """Serve until a signal, and return when every accepted request has been answered. A second signal ends the process.

    listener, key: see :mod:`polar_rm.serving.address`. They are made before this module is imported, which takes seconds.

    Raises:
        PolarError: the model can't be loaded, or its folder holds the scale of another model.
    """
    device = claim_device(config.device)
    log_to_stderr()
    raise_descriptor_limit()
    scale = Scale.load(config.model)  # refuses the scale of another model before the weights are loaded
    dtype = dtype_name(config.precision, device)
    _log.info("loading", extra={"fields": {"model": model_name(config.model), "dtype": dtype, "device": device}})
    model = RewardModel.from_pretrained(config.model, dtype=dtype, device=device)
    prefixes = PrefixStore(config.prefix_memory_mib << 20) if config.prefix_memory_mib and device == "cpu" else None
    scorer = Scorer(model, row_tokens=config.row_tokens, prefixes=prefixes)
    batcher = Batcher(
        scorer.score_trees,
        scorer.measure_trees,
        batch_tokens=config.row_tokens,
        max_waiting_tokens=config.max_queue_tokens,
        prefixes=prefixes,
    )
    positions = getattr(model.backbone.config, "max_position_embeddings", None)
    service = Service(model_name(config.model), model.encoder, batcher, scale, positions, dtype, device)
    guard = create_app(
        service,
        limits=Limits(config.max_body_mib << 20, config.max_items, config.max_seconds),
        flavour=config.pooling_flavour or "vllm",
        api_key=key,
        log_texts=config.log_texts,
        hosts=Hosts(config.host, tuple(name.lower() for name in config.allowed_hosts)),
    )
    DrainingServer(guard, server_header=False, timeout_keep_alive=KEEP_ALIVE_SECONDS).run(sockets=[listener])


def _config(app: Guard, connections: Connections, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(app, http=connections.protocol(), ws="none", backlog=connections.burst, **options)


class DrainingServer(uvicorn.Server):
    """A server that drains. After the first signal new requests get 503 over the open port, also on connections in the listen
    queue, and the server stops half a second after the last accepted request. The second signal ends the process immediately."""

    def __init__(self, guard: Guard, **options: Any) -> None:
        self._connections = Connections()
        options = {"log_config": None, "access_log": False, **options}
        super().__init__(_config(guard, self._connections, **options))
        self._guard = guard
        self._quiet_ticks = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the URL, and those of the page, of our own route and of the description of all routes."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(_QUEUED_CONNECTIONS)  # asyncio has only one setting for the listen queue and for its bursts
            host, port = listener.getsockname()[:2]
            url = _url(host, port)
            # A browser can't open the address that means all of this machine's.
            here = _url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)
            fields = {"url": url, "page": f"{here}/", "scores": f"{here}/v1/score", "routes": f"{here}/openapi.json"}
            _log.info("ready", extra={"fields": fields})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port and all connections, and refuse clients that have not sent a request yet."""
        self._connections.refuse_new()
        refused = [connection for listener in sockets or [] for connection in refuse_queued(listener)]
        await super().shutdown(sockets)  # closes the port before anything else happens
        close_read(refused)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain, or end the process at the second signal."""
        fields = {"signal": signal.Signals(sig).name, "requests": self._guard.active}
        if self._guard.draining:
            _log.warning("stopped at once", extra={"fields": fields})
            os._exit(128 + sig)  # a normal exit would wait for the threads of encoder and model
        self._guard.draining = True
        _log.info("draining", extra={"fields": fields})

    async def on_tick(self, counter: int) -> bool:
        """Whether the server has been quiet long enough to end."""
        # Probes and refused requests don't count, because they continue as long as the server runs.
        quiet = self._guard.draining and not self._guard.active
        self._quiet_ticks = self._quiet_ticks + 1 if quiet else 0
        if self._quiet_ticks >= 5:  # tenths of a second
            self.should_exit = True
        return await super().on_tick(counter)


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def in_thread(app: Guard) -> Iterator[str]:
    """Serve the application on a free loopback port in a thread of this process; yields the URL."""
    server = uvicorn.Server(_config(app, Connections(), port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise PolarError("the server could not be started in this process")
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)

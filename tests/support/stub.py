"""A small OpenAI-compatible server whose answers a test chooses, good or bad ones."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Stub:
    """The state of a running server.

    url: the base URL. bodies, headers, times: of the requests so far. respond: maps a body and the number of the request, counted
    from 1, to (status, headers, content); None closes the connection. in_progress, max_in_progress: numbers of requests.
    """

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    in_progress: int = 0
    max_in_progress: int = 0
    respond: Callable[[dict[str, Any], int], tuple[int, dict[str, str], bytes] | None] = lambda body, _: good(body)


def good(body: dict[str, Any], text: str | None = None) -> tuple[int, dict[str, str], bytes]:
    """A completion that depends on the prompt and the seed."""
    text = f"{body.get('prompt') or body['messages'][-1]['content']} {body.get('seed', 0) % 1000}" if text is None else text
    choice = {"message": {"content": text}} if "messages" in body else {"text": text}
    content = {"choices": [choice | {"finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def error(status: int, message: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return (
        status,
        {name.replace("_", "-"): value for name, value in headers.items()},
        json.dumps({"error": {"message": message}}).encode(),
    )


@contextmanager
def served(port: int = 0) -> Iterator[Stub]:
    """A running server."""
    stub, lock = Stub(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                stub.bodies.append(body | {"path": self.path})
                stub.headers.append(dict(self.headers))
                stub.times.append(time.monotonic())
                stub.in_progress += 1
                stub.max_in_progress = max(stub.max_in_progress, stub.in_progress)
                number = len(stub.bodies)
            answer = stub.respond(body, number)
            with lock:
                stub.in_progress -= 1
            if answer is None:
                self.close_connection = True
                return
            status, headers, content = answer
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()

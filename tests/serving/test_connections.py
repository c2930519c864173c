"""Connections without a request, or with half a request, keep no other client out."""

import contextlib
import json
import logging
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import pytest
from support import fakes
from support.processes import Process

from polar_rm.records import ScoreItem
from polar_rm.serving import connections as module
from polar_rm.serving.connections import Connections
from polar_rm.serving.launch import DrainingServer
from polar_rm.serving.logs import JsonLines, Repeats

ENCODER = fakes.encoder()
BODY = json.dumps({"items": [{"prompt": "over", "reference": "the dog", "outputs": ["fox"]}]}).encode()
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
SCORE = fakes.fake_score(fakes.ids_of(ScoreItem("over", "the dog", "fox"), ENCODER))


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def rest(connection):
    """Everything that the server still sends."""
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return b"reset"


def read_answer(connection):
    """The server's next response, to the end of its body."""
    received = b""
    while True:
        received += connection.recv(1 << 16)
        header = re.search(rb"content-length: (\d+).*?\r\n\r\n", received, re.S)
        if header and len(received) >= header.end() + int(header[1]):
            return received


@pytest.fixture
def serve(monkeypatch):
    """Run the application with other limits."""

    def start(model=None, **limits):
        monkeypatch.setattr("polar_rm.serving.launch.Connections", lambda: Connections(**limits))
        return fakes.running(fakes.make(model, ENCODER))

    return start


@pytest.mark.parametrize("sent", [b"", b"POST /v1/score HTTP/1.1\r\nHost: local", b"G"])
def test_a_connection_without_a_whole_header_is_closed(serve, sent):
    """F4."""
    with serve(header_seconds=0.3) as url, connect(url) as connection:
        connection.sendall(sent)
        assert rest(connection) in (b"", b"reset")


def test_half_a_header_after_an_answer_is_no_idle_connection(serve):
    """F4: uvicorn's timeout ends with the first byte."""
    with serve(header_seconds=1.0) as url, connect(url) as connection:
        connection.sendall(REQUEST)
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /health HT")
        assert rest(connection) in (b"", b"reset")


def test_a_request_in_progress_outlives_the_time_for_headers(serve):
    gate = threading.Event()
    with serve(fakes.FakeModel(gate=gate), header_seconds=0.2) as url, connect(url) as connection:
        connection.sendall(REQUEST)
        time.sleep(0.5)
        gate.set()
        assert b"200 OK" in read_answer(connection)


def test_a_new_connection_replaces_the_one_that_waited_longest(serve):
    """F4. A request in progress keeps its connection; if all connections have one, new connections are refused."""
    gate = threading.Event()
    model = fakes.FakeModel(gate=gate)
    with serve(model, limit=4) as url, contextlib.ExitStack() as stack:
        asking = stack.enter_context(connect(url))
        asking.sendall(REQUEST)
        while not model.calls:
            time.sleep(0.01)
        held = [stack.enter_context(connect(url)) for _ in range(8)]
        assert [rest(connection) in (b"", b"reset") for connection in held[:5]] == [True] * 5
        for connection in held[5:]:
            connection.sendall(REQUEST)
        until = time.monotonic() + 60
        while b"503" not in (answer := rest(stack.enter_context(connect(url)))):  # until the three are read
            assert time.monotonic() < until
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"] == "too many connections are open"
        gate.set()
        for connection in (asking, *held[5:]):
            assert b"200 OK" in read_answer(connection)


def test_a_connection_without_any_request_is_replaced_before_an_idle_one():
    """A client between two requests keeps its connection as long as there are connections that never sent a request."""
    connections = Connections(limit=2)
    idle, unused, third, fourth = (Mock() for _ in range(4))
    connections.opened(idle)
    connections.busy(idle)
    connections.idle(idle)
    connections.opened(unused)
    connections.opened(third)
    assert unused.transport.abort.called and not idle.transport.abort.called
    connections.busy(third)
    connections.opened(fourth)
    assert idle.transport.abort.called and not third.transport.abort.called


def test_a_client_may_close_its_side_after_a_request(serve):
    """F14."""
    gate = threading.Event()
    model = fakes.FakeModel(gate=gate)
    with serve(model) as url, connect(url) as connection:
        connection.sendall(REQUEST)
        connection.shutdown(socket.SHUT_WR)
        while not model.calls:
            time.sleep(0.01)
        time.sleep(0.3)
        gate.set()
        interim, _, answer = rest(connection).partition(b"\r\n\r\n")
        assert interim == b"HTTP/1.1 100 Continue"
        assert answer.startswith(b"HTTP/1.1 200 OK")
        [row] = json.loads(answer.partition(b"\r\n\r\n")[2])["results"][0]["outputs"]
        assert row["reward"] == SCORE


def test_the_limit_of_connections_is_below_that_of_descriptors():
    for limit in (100, 256, 1024):
        code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
        code += "from polar_rm.serving.connections import connection_limits; print(*connection_limits())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        connections, burst = map(int, done.stdout.split())
        assert limit // 3 < connections + 4 * burst < limit or connections == module.MAX_CONNECTIONS


def test_the_limit_of_descriptors_is_raised():
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))\n"
    code += "from polar_rm.serving.connections import raise_descriptor_limit as f; f(); print(*resource.getrlimit(7))"
    assert resource.RLIMIT_NOFILE == 7
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["256", "256"]


def test_a_repeated_message_is_counted_instead_of_written():
    """F4: 139,731 tracebacks in 90 s."""
    repeats = Repeats()

    def record(created, level=logging.ERROR):
        result = logging.LogRecord("asyncio", level, "f", 1, "out of system resource", (), None)
        result.created = created
        return result

    assert sum(repeats.filter(record(1000.0 + number / 100)) for number in range(500)) == 5
    later = record(1020.0)
    assert repeats.filter(later) and json.loads(JsonLines().format(later))["left_out"] == 495
    assert all(repeats.filter(record(1000.0, logging.INFO)) for _ in range(100))


def test_a_long_traceback_is_shortened():
    def deep(n):
        return deep(n - 1) if n else 1 / 0

    try:
        deep(900)
    except ZeroDivisionError:
        record = logging.LogRecord("polar_rm", logging.ERROR, "f", 1, "x" * 10, (), sys.exc_info())
    try:
        raise ValueError("y" * 100_000)
    except ValueError:
        long = logging.LogRecord("polar_rm", logging.ERROR, "f", 1, "x" * 10, (), sys.exc_info())
    assert "ZeroDivisionError" in json.loads(JsonLines().format(record))["traceback"]
    assert len(JsonLines().format(long)) < 10_000


DRAINING = """
import threading, time
from support import fakes
from polar_rm.serving.address import bind
from polar_rm.serving.launch import DrainingServer
from polar_rm.serving.logs import log_to_stderr

log_to_stderr()
DrainingServer(fakes.make()).run(sockets=[bind("127.0.0.1", 0)])
"""


@pytest.mark.slow
def test_connections_to_a_draining_server_get_an_answer(tmp_path):
    """F14: connections in the listen queue, or without a request yet, were reset."""
    server = Process(tmp_path / "log", "-c", DRAINING)
    try:
        waiting = [connect(server.url) for _ in range(20)]
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        outcomes = []
        while server.process.poll() is None:
            try:
                with connect(server.url) as connection:
                    connection.sendall(REQUEST)
                    outcomes.append("503" if b"503" in rest(connection) else "other")
            except ConnectionRefusedError:
                pass
            except OSError:
                outcomes.append("other")
        assert all(b"503 Service Unavailable" in rest(connection) for connection in waiting)
        # The kernel resets a connection that it accepts in the moment in which the listening socket is closed: the last at most.
        assert len(outcomes) > 20 and set(outcomes[:-1]) == {"503"}
    finally:
        server.process.kill()


@pytest.mark.slow
def test_300_unfinished_headers_at_256_descriptors_keep_nobody_out(checkpoint, tmp_path):
    """F4."""
    command = f"ulimit -n 256; exec {sys.executable} -m polar_rm serve --model {checkpoint[0]} --port 0"
    server = Process(tmp_path / "log", "-c", f"import os; os.execvp('bash', ['bash', '-c', {command!r}])")
    held = []
    stop = threading.Event()

    def hold():
        while not stop.is_set():
            with contextlib.suppress(OSError):
                connection = connect(server.url)
                connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: local")
                held.append(connection)
            if len(held) > 300:
                held.pop(0).close()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        until = time.monotonic() + 60
        while len(held) < 300:
            assert time.monotonic() < until
            time.sleep(0.01)
        size = server.log.stat().st_size
        answers = []
        for _ in range(40):
            with connect(server.url) as connection:
                connection.sendall(REQUEST.replace(b"localhost\r\n", b"localhost\r\nConnection: close\r\n"))
                answers.append(rest(connection).startswith(b"HTTP/1.1 200 OK"))
        assert answers == [True] * 40
        assert server.log.stat().st_size - size < 100_000
    finally:
        stop.set()
        thread.join()
        for connection in held:
            connection.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_the_draining_server_uses_the_same_connections():
    server = DrainingServer(fakes.make())
    assert issubclass(server.config.http, module.WatchedProtocol) and server.config.ws == "none"

"""A server that answers every request with the same bytes: for replies that no HTTP library would produce."""

import contextlib
import socket
import threading


@contextlib.contextmanager
def answering(*parts, pause=0.0, endless=False):
    """Run the server; yields its URL and the list of requests that it received. endless: send spaces until the end."""
    finished, received = threading.Event(), []

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            request = connection.recv(65536)
            length = int((request.partition(b"Content-Length: ")[2] or b"0").split()[0])
            while len(request.partition(b"\r\n\r\n")[2]) < length:
                request += connection.recv(65536)
            received.append(request)
            for part in parts:
                connection.sendall(part)
            while endless and not finished.wait(pause):
                connection.sendall(b" ")

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
        finally:
            finished.set()

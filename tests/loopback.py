"""A web server, and a free port, on the loopback device."""

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; `stop` bytes into an answer it hangs up, once."""

    def __init__(self, body: bytes, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.daemon_threads = False  # Closing then waits for every answer.
        self.body, self.ranges, self.stop = body, ranges, len(body)
        self.starts: list[int] = []
        self.base = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        given = self.headers.get("Range", "bytes=0-") if server.ranges else "bytes=0-"
        start = int(given.partition("=")[2].rstrip("-"))
        server.starts.append(start)
        body = server.body[start:]
        if start >= len(server.body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.stop])
        server.stop = len(server.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve(body: bytes, ranges: bool = True) -> Iterator[Server]:
    server = Server(body, ranges)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

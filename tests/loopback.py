"""A web server of the tests' own, on the loopback device."""

import contextlib
import http.server
import threading
from collections.abc import Iterator


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; `stop` bytes into an answer it hangs up, once."""

    def __init__(self, body: bytes, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.daemon_threads = False  # Closing then waits for every answer.
        self.body, self.ranges, self.stop = body, ranges, len(body)
        self.starts: list[int] = []
        self.base = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        given = self.headers.get("Range", "bytes=0-") if self.server.ranges else "=0-"
        start = int(given.partition("=")[2].rstrip("-"))
        self.server.starts.append(start)
        body = self.server.body[start:]
        if start >= len(self.server.body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.stop])
        self.server.stop = len(self.server.body)

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

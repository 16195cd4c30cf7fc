"""Downloads from a server of the test's own, on the loopback device."""

import contextlib
import hashlib
import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from zfnet_jax import download
from zfnet_jax.files import DamagedFileError, DataNotFoundError

BODY = np.random.default_rng(0).bytes(3_000_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; `stop` bytes into an answer it hangs up, once."""

    def __init__(self, body: bytes, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.daemon_threads = False  # Closing then waits for every answer.
        self.body, self.ranges, self.stop = body, ranges, len(body)
        self.starts: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_port}/files/net-12345678.pth"


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
def serve(body: bytes = BODY, ranges: bool = True) -> Iterator[Server]:
    server = Server(body, ranges)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_file_is_fetched_once(tmp_path, capfd):
    with serve() as server:
        paths = [download.fetch(server.url, tmp_path / "new") for _ in range(2)]
    assert server.starts == [0]
    assert paths == [tmp_path / "new" / "net-12345678.pth"] * 2
    assert paths[0].read_bytes() == BODY
    assert "100%" in capfd.readouterr().err
    assert os.listdir(tmp_path / "new") == ["net-12345678.pth"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path, ranges):
    with serve(ranges=ranges) as server:
        server.stop = 2_000_000
        with pytest.raises(DataNotFoundError, match="run again to continue"):
            download.fetch(server.url, tmp_path)
        kept = (tmp_path / "net-12345678.pth.part").stat().st_size
        path = download.fetch(server.url, tmp_path)
    assert server.starts == [0, kept if ranges else 0] and 0 < kept <= 2_000_000
    assert path.read_bytes() == BODY and os.listdir(tmp_path) == [path.name]


def test_a_part_of_another_file_is_replaced(tmp_path):
    (tmp_path / "net-12345678.pth.part").write_bytes(bytes(len(BODY) + 1))
    with serve() as server:
        path = download.fetch(server.url, tmp_path)
    assert path.read_bytes() == BODY


def test_a_wrong_checksum_removes_the_file(tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(BODY)
    download.check(path, "sha256", hashlib.sha256(BODY).hexdigest()[:8])
    with pytest.raises(DamagedFileError) as error:
        download.check(path, "sha256", "12345678")
    assert "12345678" in str(error.value) and "\n" not in str(error.value)
    assert not path.exists()


@pytest.mark.parametrize("how", ["refused", "silent", "missing"])
def test_offline_it_names_the_address_and_the_folder(tmp_path, monkeypatch, how):
    monkeypatch.setattr(download, "_ANSWER", 0.3)
    start = time.perf_counter()
    # The socket accepts connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = {"refused": 9, "silent": listener.getsockname()[1]}.get(how, 0)
        url = f"http://127.0.0.1:{port}/net.pth"
        with serve(b"") if how == "missing" else contextlib.nullcontext() as server:
            url = server.url if server else url
            with pytest.raises(DataNotFoundError) as error:
                download.fetch(url, tmp_path)
    message = str(error.value)
    assert url in message and str(tmp_path) in message and "\n" not in message
    assert time.perf_counter() - start < 10
    assert os.listdir(tmp_path) == []

"""Downloads from a server of the test's own, on the loopback device."""

import contextlib
import functools
import hashlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.loopback import serve
from zfnet_jax import download
from zfnet_jax.files import DamagedFileError, DataNotFoundError

FILE = "net-12345678.pth"
BODY = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_file_is_fetched_once(tmp_path, capfd):
    with serve(BODY) as server:
        paths = [download.fetch(server.base + FILE, tmp_path / "new") for _ in range(2)]
    assert server.starts == [0]
    assert paths == [tmp_path / "new" / FILE] * 2
    assert paths[0].read_bytes() == BODY
    assert "100%" in capfd.readouterr().err
    assert os.listdir(tmp_path / "new") == [FILE]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path, ranges):
    with serve(BODY, ranges) as server:
        server.stop = 2_000_000
        with pytest.raises(DataNotFoundError, match="run again to continue"):
            download.fetch(server.base + FILE, tmp_path)
        kept = (tmp_path / f"{FILE}.part").stat().st_size
        path = download.fetch(server.base + FILE, tmp_path)
    assert server.starts == [0, kept if ranges else 0] and 0 < kept <= 2_000_000
    assert path.read_bytes() == BODY and os.listdir(tmp_path) == [path.name]


def test_two_that_fetch_a_file_at_once_share_it(tmp_path, monkeypatch):
    def request(*arguments):
        time.sleep(0.2)
        return ask(*arguments)

    ask = download._request
    monkeypatch.setattr(download, "_request", request)
    with serve(BODY) as server, ThreadPoolExecutor() as pool:
        # A lock of flock holds between threads as between processes.
        fetch = functools.partial(download.fetch, server.base + FILE)
        paths = [*pool.map(fetch, [tmp_path] * 3)]
    assert server.starts == [0] and paths == [tmp_path / FILE] * 3
    assert paths[0].read_bytes() == BODY and os.listdir(tmp_path) == [FILE]


def test_a_part_of_another_file_is_replaced(tmp_path):
    (tmp_path / f"{FILE}.part").write_bytes(bytes(len(BODY) + 1))
    with serve(BODY) as server:
        path = download.fetch(server.base + FILE, tmp_path)
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
    assert download._ANSWER < 10
    monkeypatch.setattr(download, "_ANSWER", 0.3)
    start = time.perf_counter()
    # The socket accepts connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = {"refused": 9, "silent": listener.getsockname()[1]}.get(how, 0)
        url = f"http://127.0.0.1:{port}/net.pth"
        with serve(b"") if how == "missing" else contextlib.nullcontext() as server:
            url = server.base + FILE if server else url
            with pytest.raises(DataNotFoundError) as error:
                download.fetch(url, tmp_path)
    message = str(error.value)
    assert url in message and str(tmp_path) in message and "\n" not in message
    assert time.perf_counter() - start < 10
    assert os.listdir(tmp_path) == []

import contextlib
import gzip
import http.server
import io
import json
import logging
import os
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zfnet_jax.data import Archive, Dataset, load_cifar10
from zfnet_jax.files import DataNotFoundError

CLASS_NAMES = tuple(f"kind{label}" for label in range(10))
FILES = {f"data_batch_{batch}.bin": 7 for batch in range(1, 6)} | {"test_batch.bin": 6}
FILE_NAME = "cifar-10-binary.tar.gz"
SHARED = Path(__file__).parents[3] / "shared" / "tensorflow_datasets"


def pack(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)  # the same bytes at any time


def official_form() -> tuple[bytes, dict[str, list[tuple[bytes, int]]]]:
    """An archive of the official form, and the pixels and labels that it holds."""
    rng = np.random.default_rng(0)
    members = {"batches.meta.txt": "\n".join([*CLASS_NAMES, ""]).encode()}
    truth: dict[str, list[tuple[bytes, int]]] = {"train": [], "test": []}
    for name, count in FILES.items():
        members[name] = b""
        for _ in range(count):
            image = rng.integers(0, 256, (32, 32, 3), np.uint8)
            label = int(rng.integers(10))
            # Red, green, blue, each row by row, after one byte for the label.
            planes = b"".join(image[:, :, channel].tobytes() for channel in range(3))
            members[name] += bytes([label]) + planes
            truth[name.split("_")[0].replace("data", "train")].append(
                (image.tobytes(), label)
            )
    return pack(members), truth


PACKED, TRUTH = official_form()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@contextlib.contextmanager
def serve(*bodies: bytes | int | Callable[[], bytes]):
    """Answer one request after another, with the last answer repeated.

    A body is sent, or made and sent; a number is a status. Yields the port and the
    paths asked for.
    """
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = bodies[min(len(asked), len(bodies) - 1)]
            asked.append(self.path)
            if isinstance(body, int):
                self.send_error(body)
                return
            if callable(body):
                body = body()
            self.send_response(200)
            self.send_header("Content-Length", str(len(PACKED)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # Closing the server then waits for every answer, so that no socket is left open.
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def archive_at(port: int, packed: bytes = PACKED, host: str = "127.0.0.1") -> Archive:
    url = f"http://{host}:{port}/kriz/{FILE_NAME}"
    return Archive(url, sha256(packed).hexdigest(), len(packed))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def contents(dataset: Dataset) -> list[tuple[bytes, int]]:
    pairs = zip(dataset.images, dataset.labels, strict=True)
    return sorted((image.tobytes(), int(label)) for image, label in pairs)


def one_line(error: pytest.ExceptionInfo[DataNotFoundError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    (root / FILE_NAME).write_bytes(PACKED)
    load_cifar10("test", root, archive=archive_at(closed_port()))
    (root / FILE_NAME).unlink()
    return root


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared, tmp_path / "copy")


def test_prepares_the_archive_without_changing_a_pixel(tmp_path, capfd, caplog):
    root = tmp_path / "new" / "data"
    handlers = logging.root.handlers[:]
    with serve(PACKED) as (port, asked):
        train = load_cifar10("train", root, archive=archive_at(port))
        assert asked == [f"/kriz/{FILE_NAME}"]
    test = load_cifar10("test", root, archive=archive_at(closed_port()))

    assert contents(train) == sorted(TRUTH["train"])
    assert contents(test) == sorted(TRUTH["test"])
    assert train.class_names == CLASS_NAMES
    assert train.name == "cifar10"
    assert "lossless" in train.source and "train" in train.source
    # Only the prepared files stay: no archive, no staging directory.
    assert os.listdir(root) == ["cifar10"]
    (version,) = (root / "cifar10").iterdir()
    assert not [path for path in version.iterdir() if "incomplete" in path.name]
    # The user hears one line from us, and nothing from tensorflow-datasets.
    assert capfd.readouterr() == ("", "")
    assert [record.name for record in caplog.records] == ["zfnet_jax.data.cifar10"]
    assert logging.root.handlers == handlers


def test_what_is_prepared_is_what_tensorflow_datasets_reads(prepared):
    import tensorflow_datasets as tfds

    source: Any = tfds.data_source("cifar10", split="train", data_dir=prepared)
    by_id = {example["id"].decode(): example for example in source}
    assert sorted(by_id) == [f"train_{index:05d}" for index in range(35)]
    for index, (image, label) in enumerate(TRUTH["train"]):
        example = by_id[f"train_{index:05d}"]
        assert (example["image"].tobytes(), example["label"]) == (image, label)
    ours = load_cifar10("train", prepared)
    assert [image.tobytes() for image in ours.images] == [
        example["image"].tobytes() for example in source
    ]


def test_the_variable_names_the_directory(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    whole = load_cifar10("train")
    part = load_cifar10("train[3:9]")
    np.testing.assert_array_equal(part.images, whole.images[3:9])
    np.testing.assert_array_equal(part.labels, whole.labels[3:9])


@pytest.mark.parametrize("split", ["valid", "Train", "", "train[", "train[:99]"])
def test_names_an_unknown_split(split, prepared):
    with pytest.raises(ValueError, match="split") as error:
        load_cifar10(split, prepared)
    assert repr(split) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_default_archive_is_the_official_one(tmp_path):
    # Recognised by its name, size and checksum, without any network.
    (tmp_path / FILE_NAME).write_bytes(PACKED)
    with pytest.raises(DataNotFoundError) as error:
        load_cifar10("train", tmp_path)
    official = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    assert official in one_line(error)
    assert str(tmp_path / FILE_NAME) in one_line(error)
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_refuses_an_archive_of_another_checksum(tmp_path):
    root = tmp_path / "data"
    changed = bytearray(PACKED)
    changed[1000] ^= 1
    with serve(bytes(changed)) as (port, asked), pytest.raises(DataNotFoundError) as e:
        load_cifar10("train", root, archive=archive_at(port))
    assert len(asked) == 1
    assert "damaged" in one_line(e)
    assert sha256(changed).hexdigest() in one_line(e)
    assert sha256(PACKED).hexdigest() in one_line(e)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "first", [503, PACKED[:-100], b""], ids=["refused", "cut-short", "empty"]
)
def test_one_failed_attempt_is_made_good(first, tmp_path):
    with serve(first, PACKED) as (port, asked):
        dataset = load_cifar10("test", tmp_path, archive=archive_at(port))
    assert len(asked) == 2
    assert contents(dataset) == sorted(TRUTH["test"])


@pytest.mark.parametrize(
    ("answer", "said"),
    [(404, "404"), (PACKED[:99], f"99 of {len(PACKED)} bytes")],
    ids=["refused", "cut-short"],
)
def test_two_failed_attempts_are_the_end(answer, said, tmp_path):
    root = tmp_path / "data"
    with serve(answer) as (port, asked), pytest.raises(DataNotFoundError) as error:
        load_cifar10("test", root, archive=archive_at(port))
    assert len(asked) == 2
    assert said in one_line(error)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"data_batch_1.bin": b""}, "it has no "),
        ({name: b"x" * 3072 for name in [*FILES, "batches.meta.txt"]}, "whole image"),
        (None, "not of the expected form"),
    ],
)
def test_refuses_an_archive_of_another_form(members, said, tmp_path):
    packed = b"no archive" if members is None else pack(members)
    (tmp_path / FILE_NAME).write_bytes(packed)
    with pytest.raises(DataNotFoundError) as error:
        load_cifar10("train", tmp_path, archive=archive_at(closed_port(), packed))
    assert said in one_line(error)
    assert os.listdir(tmp_path) == [FILE_NAME]


def assert_offline(archive: Archive, tmp_path: Path):
    root = tmp_path / "new" / "data"
    start = time.monotonic()
    with pytest.raises(DataNotFoundError) as error:
        load_cifar10("train", root, archive=archive)
    assert time.monotonic() - start < 10
    for remedy in ("--data-dir", "TFDS_DATA_DIR", "network", "--dataset shapes"):
        assert remedy in one_line(error)
    assert str(root) in one_line(error)
    assert os.listdir(tmp_path) == []


def test_says_so_when_the_connection_is_refused(tmp_path):
    assert_offline(archive_at(closed_port()), tmp_path)


def test_says_so_when_there_is_no_such_host(tmp_path):
    assert_offline(archive_at(80, host="archive.invalid"), tmp_path)


def test_says_so_when_the_host_is_silent(tmp_path):
    # A listener whose queue is full drops what comes, as a firewall does.
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        assert_offline(archive_at(listener.getsockname()[1]), tmp_path)


def test_goes_through_a_proxy(tmp_path, monkeypatch):
    with serve(PACKED) as (port, asked):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        archive = archive_at(80, host="archive.invalid")
        dataset = load_cifar10("test", tmp_path, archive=archive)
    assert asked == [archive.url]
    assert contents(dataset) == sorted(TRUTH["test"])


def test_says_so_when_the_directory_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with serve(PACKED) as (port, _), pytest.raises(DataNotFoundError) as error:
        load_cifar10("train", tmp_path / "file" / "data", archive=archive_at(port))
    assert "can be written" in one_line(error)
    assert os.listdir(tmp_path) == ["file"]


def cut(path: Path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path):
    content = bytearray(path.read_bytes())
    # The padding up to the first record's size is not covered; the pixels are.
    content[len(content) // 5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cifar10-train.array_record-00000-of-00001", cut),
        ("cifar10-train.array_record-00000-of-00001", flip),
        ("cifar10-train.array_record-00000-of-00001", Path.unlink),
        ("dataset_info.json", cut),
        ("dataset_info.json", Path.unlink),
        ("label.labels.txt", Path.unlink),
    ],
)
def test_says_so_when_what_is_prepared_is_damaged(name, damage, copy):
    (version,) = (copy / "cifar10").iterdir()
    damage(version / name)
    left = sorted(version.iterdir())
    with pytest.raises(DataNotFoundError) as error:
        load_cifar10("train", copy, archive=archive_at(closed_port()))
    assert "damaged" in one_line(error)
    assert str(copy / "cifar10") in one_line(error)
    assert sorted(version.iterdir()) == left


def test_says_so_when_only_tensorflow_could_read_it(copy):
    (version,) = (copy / "cifar10").iterdir()
    info = json.loads((version / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (version / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataNotFoundError) as error:
        load_cifar10("train", copy)
    assert "array_record" in one_line(error)


def test_another_process_may_prepare_it_meanwhile(prepared, tmp_path):
    def finish_first() -> bytes:
        shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
        return PACKED

    with serve(finish_first) as (port, asked):
        dataset = load_cifar10("train", tmp_path, archive=archive_at(port))
    assert len(asked) == 1
    assert contents(dataset) == sorted(TRUTH["train"])
    assert os.listdir(tmp_path) == ["cifar10"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the prepared CIFAR-10 beside us")
def test_real_images_are_those_of_tensorflow_datasets():
    import tensorflow_datasets as tfds

    dataset = load_cifar10("test[:200]", SHARED)
    assert "JPEG" in dataset.source
    assert dataset.class_names[3] == "cat"
    logging.getLogger("absl").setLevel(logging.ERROR)
    source: Any = tfds.data_source("cifar10", split="test[:200]", data_dir=SHARED)
    for image, label, example in zip(
        dataset.images, dataset.labels, source, strict=True
    ):
        np.testing.assert_array_equal(image, example["image"])
        assert label == example["label"]

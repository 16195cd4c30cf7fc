"""CIFAR-10 from a tiny archive of the official form, and from tensorflow-datasets."""

import contextlib
import gzip
import http.server
import io
import os
import shutil
import tarfile
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.prepared_case import prepare
from zfnet_jax.data import Dataset, cifar10, load_cifar10, load_dataset
from zfnet_jax.files import DamagedFileError, DataNotFoundError

CLASS_NAMES = tuple(f"kind{label}" for label in range(10))
FILES = {f"data_batch_{batch}.bin": 7 for batch in range(1, 6)} | {"test_batch.bin": 6}
FILE_NAME = "cifar-10-binary.tar.gz"
SHARED = Path(__file__).parents[3] / "shared" / "tensorflow_datasets"


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
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0), truth


PACKED, TRUTH = official_form()


@pytest.fixture(autouse=True)
def official(monkeypatch):
    """The tiny archive in place of the official one, at a port that is closed."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(cifar10, "_SHA256", sha256(PACKED).hexdigest())
    monkeypatch.setattr(cifar10, "_URL", f"http://127.0.0.1:9/kriz/{FILE_NAME}")


@contextlib.contextmanager
def serve(monkeypatch, body: bytes):
    """Answer every request with a body, of the size of the archive; yield the paths."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
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
    url = f"http://127.0.0.1:{server.server_port}/kriz/{FILE_NAME}"
    monkeypatch.setattr(cifar10, "_URL", url)
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def contents(dataset: Dataset) -> list[tuple[bytes, int]]:
    pairs = zip(dataset.images, dataset.labels, strict=True)
    return [(image.tobytes(), int(label)) for image, label in pairs]


def refusal(data_dir: Path) -> str:
    with pytest.raises(DataNotFoundError) as error:
        load_cifar10("train", data_dir)
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


# The archive


def test_the_archive_is_fetched_once(tmp_path, monkeypatch, capfd):
    root = tmp_path / "new" / "data"
    with serve(monkeypatch, PACKED) as asked:
        train = load_cifar10("train", root)
    assert asked == [f"/kriz/{FILE_NAME}"]
    assert "100%" in capfd.readouterr().err
    test = load_cifar10("test", root)
    assert contents(train) == TRUTH["train"] and contents(test) == TRUTH["test"]
    assert contents(load_cifar10("train", root, limit=9)) == TRUTH["train"][:9]
    assert train.class_names == CLASS_NAMES and train.name == "cifar10"
    assert "lossless" in train.source and "train" in train.source
    assert os.listdir(root) == [FILE_NAME]


def test_an_archive_put_there_is_read_offline(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(PACKED)
    tmp_path.chmod(0o555)
    assert contents(load_cifar10("test", tmp_path)) == TRUTH["test"]
    tmp_path.chmod(0o755)


def test_a_damaged_archive_is_removed(tmp_path, monkeypatch):
    with serve(monkeypatch, PACKED[:-1] + b"!"), pytest.raises(DamagedFileError):
        load_cifar10("train", tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("how", ["refused", "no folder"])
def test_offline_it_says_what_to_do(tmp_path, monkeypatch, how):
    folder = tmp_path / "data"
    if how == "no folder":
        folder.write_text("")
    message = refusal(folder)
    for remedy in (cifar10._URL, str(folder), "--data-dir", "--dataset shapes"):
        assert remedy in message


# tensorflow-datasets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """The tiny CIFAR-10 as tensorflow-datasets prepares it, with lossless pixels."""

    def examples(split):
        for index, (pixels, label) in enumerate(TRUTH[split]):
            png = io.BytesIO()
            Image.frombytes("RGB", (32, 32), pixels).save(png, "PNG")
            png.seek(0)
            yield index, {"id": f"{split}_{index}", "image": png, "label": label}

    def split_generators(self, dl_manager):
        del dl_manager
        self.info.features["label"].names = CLASS_NAMES
        return {split: examples(split) for split in TRUTH}

    return prepare("cifar10", tmp_path_factory.mktemp("prepared"), split_generators)


def test_a_prepared_folder_is_read(prepared, monkeypatch):
    train = load_cifar10("train", prepared)
    assert sorted(contents(train)) == sorted(TRUTH["train"])
    assert train.class_names == CLASS_NAMES and "re-encoded" not in train.source
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert contents(load_cifar10("train", limit=9)) == contents(train)[:9]


@pytest.mark.parametrize(
    "name", ["cifar10-train.array_record-00000-of-00001", "dataset_info.json"]
)
def test_damage_to_a_prepared_folder_is_one_line(prepared, tmp_path, name):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / "cifar10").glob(f"*/{name}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert str(tmp_path / "cifar10") in refusal(tmp_path)
    file.unlink()
    assert str(tmp_path / "cifar10") in refusal(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the prepared CIFAR-10 beside us")
def test_real_images_are_those_of_tensorflow_datasets():
    import tensorflow_datasets as tfds

    dataset = load_cifar10("test", SHARED, limit=200)
    assert "JPEG" in dataset.source and dataset.class_names[3] == "cat"
    source: Any = tfds.data_source("cifar10", split="test[:200]", data_dir=SHARED)
    for image, label, example in zip(
        dataset.images, dataset.labels, source, strict=True
    ):
        np.testing.assert_array_equal(image, example["image"])
        assert label == example["label"]


# By name


def test_datasets_by_name(prepared):
    assert len(load_dataset("cifar10", "test", prepared, limit=4)) == 4
    train, test = (
        load_dataset("shapes", split, limit=20) for split in ("train", "test")
    )
    assert len(train) == len(test) == 20 and train.digest() != test.digest()
    assert len(load_dataset("shapes", "test", limit=9999)) == 2000
    with pytest.raises(ValueError, match=r"limit must be at least 1, not 0"):
        load_dataset("cifar10", "train", limit=0)
    with pytest.raises(ValueError, match="'val'"):
        load_cifar10("val")

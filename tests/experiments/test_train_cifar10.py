"""The main experiment, end to end: what it writes, resumes, and refuses."""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import zfnet_jax as zf
from experiments import train_cifar10
from experiments.common import UsageError, main
from experiments.train_cifar10 import Options, run
from zfnet_jax import checkpoint, training
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool
from zfnet_jax.data import Dataset

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "tensorflow_datasets"

pytestmark = pytest.mark.usefixtures("compiled_once")

# Small enough to compile in seconds; the images of 32 x 32 are resized to it.
TINY = Architecture(
    "tiny",
    (8, 8),
    (
        Conv("conv1", 4, kernel=3, padding=1),
        MaxPool("pool1", kernel=2, stride=2),
        Dense("fc2", 8),
        Dense("logits", 10, relu=False),
    ),
)
SHAPES = ["--dataset", "shapes", "--limit", "120", "--batch-size", "32"]
PAPER = [*SHAPES, "--recipe", "paper", "--epochs", "3", "--seed", "5"]
PAPER += ["--keep-epochs", "1,3"]
TIMES = {"train_seconds", "compile_seconds", "images_per_second"}


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """A network under the name of the default one, which test_quickstart trains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train_cifar10.MODELS, "zfnet32", TINY)
        yield


def train(out: Path, *argv: str) -> int:
    return main(run, Options, [*argv, "--out", str(out)])


def metrics_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def refusal(capsys, code: int, *argv: str) -> str:
    """The one line that a wrong run ends with."""
    capsys.readouterr()
    assert main(run, Options, argv) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def finished(compiled_once, tiny, tmp_path_factory) -> Path:
    """The folder of a run of the paper's recipe on shapes."""
    out = tmp_path_factory.mktemp("results") / "new" / "folder"
    assert train(out, *PAPER) == 0
    return out


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def assert_complete(out: Path, arch: Architecture) -> None:
    maps = [
        f"feature_maps_{layer.name}_image{index}"
        for layer in arch.layers
        if not isinstance(layer, Dense)
        for index in range(3)
    ]
    pictures = ["predictions", "first_layer_filters", *maps]
    plots = ["training_curves", "confusion_matrix"]
    for name in (*pictures, *plots):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 100
            # Something is drawn.
            assert np.asarray(image.convert("RGB")).std() > 1
    assert (out / "training_curves.pdf").read_bytes().startswith(b"%PDF")
    for name in ("config.json", "manifest.json", "metrics.json"):
        assert json.loads((out / name).read_text())
    if importlib.util.find_spec("tensorboardX") is not None:
        (events,) = (out / "tensorboard").iterdir()
        assert events.stat().st_size > 100
    # Nothing half-written stays.
    assert not [path for path in out.rglob(".*")]


def assert_weights_reproduce(out: Path, test: Dataset) -> None:
    """The file of weights alone gives the accuracy that metrics.json states."""
    metrics = metrics_of(out)
    net = zf.load(out / "weights.safetensors")
    logits = training.evaluate(net.model, net.preprocess, test.images)
    loss, accuracy = training.loss_and_accuracy(logits, test.labels)
    assert accuracy == metrics["test_accuracy"]
    assert loss == pytest.approx(metrics["test_loss"], rel=1e-6)
    assert net.class_names == test.class_names
    assert net.metadata["test_accuracy"] == accuracy
    assert net.metadata["test_images"] == len(test) == metrics["test_images"]
    digest = hashlib.sha256((out / "weights.safetensors").read_bytes()).hexdigest()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["digests"]["weights"] == digest
    assert manifest["digests"]["test"] == test.digest()


def test_everything_promised_is_written(finished):
    assert_complete(finished, TINY)
    assert checkpoint.steps(finished / "checkpoints") == [2, 3]
    metrics = metrics_of(finished)
    # A tenth of 120 images is set apart; the test images are others again.
    assert (metrics["train_images"], metrics["test_images"]) == (108, 120)
    assert [record["epoch"] for record in metrics["history"]] == [1, 2, 3]
    for record in metrics["history"]:
        assert 0 <= record["validation_accuracy"] <= 1
    assert all(metrics[name] > 0 for name in TIMES)
    # Three whole batches of 32 an epoch.
    assert metrics["images_per_second"] == pytest.approx(
        3 * 3 * 32 / metrics["train_seconds"]
    )
    config = json.loads((finished / "config.json").read_text())
    assert (config["seed"], config["recipe"], config["limit"]) == (5, "paper", 120)
    assert json.loads((finished / "manifest.json").read_text())["seed"] == 5


def test_the_weights_reproduce_the_accuracy(finished):
    test = train_cifar10.load(Options(dataset="shapes", limit=120), "test")
    assert_weights_reproduce(finished, test)
    net = zf.load(finished / "weights.safetensors")
    assert net.metadata["seed"] == 5
    assert net.metadata["dataset"] == "shapes"


def test_the_weights_of_chosen_epochs_are_kept(finished):
    files = sorted((finished / "epochs").iterdir())
    assert [file.name for file in files] == [
        "epoch_0001.safetensors",
        "epoch_0003.safetensors",
    ]
    first, last = map(zf.load, files)
    whole = zf.load(finished / "weights.safetensors")
    assert (first.metadata["epochs"], last.metadata["epochs"]) == (1, 3)
    weights = [jax.tree.leaves(nnx.state(net.model)) for net in (last, whole)]
    for kept, final in zip(*weights, strict=True):
        np.testing.assert_array_equal(kept, final)
    np.testing.assert_array_equal(last.preprocess.mean, whole.preprocess.mean)
    before, after = (net.model.conv1.kernel[...] for net in (first, last))
    assert not np.array_equal(before, after)


def test_training_and_test_images_differ():
    options = Options(dataset="shapes", limit=50)
    train, test = (train_cifar10.load(options, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (50, 50)
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)


def assert_same_results(out: Path, other: Path) -> None:
    """Byte for byte, but for times."""
    metrics = metrics_of(out), metrics_of(other)
    for name in metrics[0].keys() - TIMES:
        assert metrics[0][name] == metrics[1][name], name
    names = [
        sorted(
            str(path.relative_to(folder))
            for path in (*folder.iterdir(), *folder.glob("epochs/*"))
        )
        for folder in (out, other)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith((".png", ".pdf", ".safetensors")):
            assert (out / name).read_bytes() == (other / name).read_bytes(), name


def test_the_same_seed_gives_the_same_results_and_each_epoch_one_line(
    finished, tmp_path, monkeypatch, capsys
):
    # A folder relative to where one stands, as the default one is.
    monkeypatch.chdir(tmp_path)
    out = Path("again")
    assert train(out, *PAPER) == 0
    assert_same_results(finished, out)
    *epochs, last = capsys.readouterr().out.splitlines()
    for epoch, (line, record) in enumerate(
        zip(epochs, metrics_of(out)["history"], strict=True), 1
    ):
        assert line.startswith(f"training epoch {epoch}/3  train loss ")
        # What is measured at the end of the epoch, not only what its steps gave.
        assert f"  validation accuracy {record['validation_accuracy']:.4g}  " in line
    assert f"test accuracy {metrics_of(out)['test_accuracy']:.2%} on 120 images" in last


def test_a_target_ends_the_run(finished, tmp_path):
    target = metrics_of(finished)["history"][0]["validation_accuracy"]
    assert train(tmp_path, *PAPER, "--target-accuracy", str(max(target, 0.001))) == 0
    reached = [
        record["epoch"]
        for record in metrics_of(finished)["history"]
        if record["validation_accuracy"] >= max(target, 0.001)
    ]
    assert len(metrics_of(tmp_path)["history"]) == min([*reached, 3])


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the prepared CIFAR-10 beside us")
def test_cifar10_is_read_trained_on_and_tested(tmp_path):
    options = ["--data-dir", str(SHARED), "--limit", "120", "--epochs", "1"]
    assert train(tmp_path, *options, "--batch-size", "32", "--recipe", "paper") == 0
    assert_complete(tmp_path, TINY)
    test = train_cifar10.load(Options(data_dir=SHARED, limit=120), "test")
    assert_weights_reproduce(tmp_path, test)
    net = zf.load(tmp_path / "weights.safetensors")
    assert net.class_names[3] == "cat"
    assert net.preprocess.mean.shape == (32, 32, 3)
    assert "CIFAR-10" in metrics_of(tmp_path)["data"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the prepared CIFAR-10 beside us")
def test_a_limit_beyond_the_test_images_takes_all_of_them():
    options = Options(data_dir=SHARED, limit=10_001)
    assert len(train_cifar10.load(options, "test")) == 10_000


# Going on after an interruption.


def test_resuming_a_finished_run_gives_the_same_results(finished, copy, monkeypatch):
    # As on the command line: that it was resumed is no part of what it is.
    monkeypatch.setattr("sys.argv", [*sys.argv, "--resume"])
    assert train(copy, *PAPER, "--resume") == 0
    assert_same_results(finished, copy)


def flip_a_byte(step: Path) -> None:
    files = [path for path in step.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_results_are_the_same(
    finished, copy, capsys
):
    flip_a_byte(copy / "checkpoints" / "step_00000003")
    assert train(copy, *PAPER, "--resume") == 0
    assert re.fullmatch(
        r"skipped a damaged checkpoint: step 3 is damaged: .*\n",
        capsys.readouterr().err,
    )
    assert_same_results(finished, copy)


def test_when_every_checkpoint_is_damaged_the_code_is_4(copy, capsys):
    for step in (copy / "checkpoints").iterdir():
        flip_a_byte(step)
    line = refusal(capsys, 4, *PAPER, "--out", str(copy), "--resume")
    assert f"every checkpoint in {copy / 'checkpoints'} is damaged" in line
    assert "step 2" in line and "step 3" in line


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--seed", "6"], "seed was 5, now 6"),
        (["--batch-size", "16"], "batch_size was 32, now 16"),
        (["--recipe", "fast"], "recipe was paper, now fast"),
    ],
)
def test_resuming_another_run_is_refused(changed, named, finished, capsys):
    argv = [*PAPER, *changed, "--out", str(finished), "--resume"]
    assert named in refusal(capsys, 2, *argv)


def test_checkpoints_are_not_trained_over(finished, capsys):
    before = sorted(finished.rglob("*"))
    line = refusal(capsys, 2, *PAPER, "--out", str(finished))
    assert "--resume" in line and str(finished) in line
    assert sorted(finished.rglob("*")) == before


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if (
        not shutil.which("mount")
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, once_there: Path, over: threading.Event) -> None:
    """Leave no room on a disk as soon as a file is there."""
    while not once_there.exists() and not over.is_set():
        time.sleep(0.001)
    with (disk / "ballast").open("wb", buffering=0) as file:
        while not over.is_set():
            try:
                file.write(bytes(4096))
            except OSError:
                time.sleep(0.001)


def test_a_disk_that_fills_up_is_1_and_keeps_the_checkpoints(
    finished, tmp_path, capsys
):
    disk = tmp_path / "disk"
    out = disk / "out"
    argv = [*PAPER, "--epochs", "12"]
    over = threading.Event()
    with small_disk(disk):
        first = out / "checkpoints" / "step_00000001"
        thread = threading.Thread(target=fill, args=(disk, first, over))
        thread.start()
        try:
            code = train(out, *argv)
        finally:
            over.set()
            thread.join()
        assert code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: no space left") and "--out" in line
        assert checkpoint.steps(out / "checkpoints")
        assert not list(out.rglob(".*"))

        (disk / "ballast").unlink()
        assert train(out, *argv, "--resume") == 0
        assert capsys.readouterr().err == ""
        history = metrics_of(out)["history"]
        assert len(history) == 12
        assert history[:3] == metrics_of(finished)["history"]


# What cannot be.


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--model", "resnet"], ["--model", "'resnet'", "'zfnet32'"]),
        (["--recipe", "slow"], ["--recipe", "'slow'", "'paper'"]),
        (["--batch-size", "-1"], ["--batch-size", "1 or more", "-1"]),
        (["--batch-size", "0"], ["--batch-size", "1 or more", "0"]),
        (["--limit", "0"], ["--limit", "1 or more", "0"]),
        (["--epochs", "0"], ["--epochs", "1 or more", "0"]),
        (["--keep-epochs", "1,x"], ["--keep-epochs 1,x", "whole numbers"]),
        (["--keep-epochs", "1,99"], ["--keep-epochs 99", "epochs 1 to "]),
        (["--validation", "-1"], ["--validation", "0 or more", "-1"]),
        (["--target-accuracy", "1.5"], ["--target-accuracy", "between 0 and 1", "1.5"]),
        (["--target-accuracy", "nan"], ["--target-accuracy", "nan"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--seed", str(2**70)], ["--seed", str(2**70)]),
    ],
)
def test_a_wrong_option_is_2_before_any_work(argv, parts, tmp_path, capsys):
    line = refusal(capsys, 2, *SHAPES, *argv, "--out", str(tmp_path / "out"))
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--batch-size", "121"], ["120 images", "batches of 121"]),
        (["--validation", "120"], ["120 of 120 training images"]),
        (["--validation", "0", "--target-accuracy", "0.5"], ["validation"]),
        # Its learning rate follows the error on these images.
        (["--validation", "0", "--recipe", "paper"], ["validation"]),
        (["--limit", "9", "--recipe", "paper", "--batch-size", "2"], ["validation"]),
    ],
)
def test_options_that_do_not_fit_each_other_are_2(argv, parts, tmp_path, capsys):
    line = refusal(
        capsys, 2, *SHAPES, "--epochs", "1", *argv, "--out", str(tmp_path / "out")
    )
    for part in parts:
        assert part in line


def test_an_out_that_cannot_be_written_is_2(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "below"
    line = refusal(capsys, 2, *SHAPES, "--out", str(out))
    assert f"--out {out} cannot be written" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def offline(monkeypatch) -> None:
    """Every way to the network goes through a proxy that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, closed)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_missing_data_is_3_soon_and_leaves_nothing(offline, tmp_path, capsys):
    data = tmp_path / "data"
    began = time.monotonic()
    line = refusal(capsys, 3, "--data-dir", str(data), "--out", str(tmp_path / "out"))
    assert time.monotonic() - began < 30
    for part in (str(data), "--data-dir", "--dataset shapes"):
        assert part in line
    assert not data.exists()


def test_a_corrupt_archive_is_3_and_is_left_as_it_is(offline, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    archive = data / "cifar-10-binary.tar.gz"
    archive.write_bytes(b"junk" * 1000)
    line = refusal(capsys, 3, "--data-dir", str(data), "--out", str(tmp_path / "out"))
    assert str(archive) in line and "damaged" in line
    assert list(data.iterdir()) == [archive]
    assert archive.read_bytes() == b"junk" * 1000


def test_the_command_itself_ends_in_one_line(tmp_path):
    command = [sys.executable, "-m", "experiments.train_cifar10", "--limit", "0"]
    answer = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "error: --limit must be 1 or more, not 0\n"


def test_check_accepts_what_can_be():
    train_cifar10.check(Options())
    train_cifar10.check(Options(validation=0, target_accuracy=1.0, seed=2**32 - 1))
    with pytest.raises(UsageError):
        train_cifar10.check(Options(limit=-5))

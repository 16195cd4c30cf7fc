"""Training on images from disk, end to end, in one process and in two."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments import train_imagenet
from experiments.harness import main
from tests.test_training import start_child, weights
from zfnet_jax import checkpoint
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool
from zfnet_jax.data import center_crop, make_shapes, ten_crop
from zfnet_jax.data.labeled import open_labeled

TINY = Architecture(
    "tiny",
    (224, 224),
    (
        Conv("conv1", 4, kernel=8, stride=8),
        MaxPool("pool1", kernel=7, stride=7),
        Dense("fc2", 8),
        Dense("logits", 10, relu=False),
    ),
)
CLASSES = "n01440764", "n01443537", "pottery"
# Three steps an epoch, with a checkpoint after the second of the first.
OPTIONS = ["--recipe", "modern", "--epochs", "2", "--batch-size", "8", "--save-every"]
OPTIONS += ["2", "--workers", "0", "--dpi", "32"]
TIMES = {"train_seconds", "compile_seconds", "images_per_second"}


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train_imagenet.ARCHITECTURES, "zfnet", TINY)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """27 training images, nine in each class, and 12 to validate."""
    folder = tmp_path_factory.mktemp("images")
    shapes = make_shapes(39, (60, 80))
    for number, pixels in enumerate(shapes.images):
        split = "train" if number < 27 else "val"
        place = folder / split / CLASSES[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.jpg")
    return folder


def train(folder: Path, out: Path, *argv: str) -> int:
    words = ["--data-dir", str(folder), "--out", str(out), *OPTIONS, *argv]
    return main(train_imagenet.train_imagenet, words)


@pytest.fixture(scope="module")
def whole(tiny, folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results") / "whole"
    assert train(folder, out) == 0
    return out


def read_metrics(out: Path) -> dict[str, Any]:
    metrics = json.loads((out / "metrics.json").read_text())
    return {x: y for x, y in metrics.items() if x not in TIMES}


def test_the_errors_are_those_of_the_weights(whole, folder):
    net = zf.load(whole / "weights.safetensors")
    assert net.class_names == ("tench", "goldfish", "pottery")
    validation = open_labeled(folder, "val")
    pixels, labels = validation.read(np.arange(12))
    inputs = (pixels - net.preprocess.mean) / 64
    crops = ten_crop(inputs, (224, 224)).reshape(-1, 224, 224, 3)
    views = {
        "one view": center_crop(inputs, (224, 224))[:, None],
        "ten crops": crops.reshape(12, 10, 224, 224, 3),
    }
    metrics = read_metrics(whole)
    for name, images in views.items():
        logits = np.stack([net(rows) for rows in images.astype(np.float32)])
        powers = np.exp(logits)
        chances = (powers / powers.sum(-1, keepdims=True)).mean(1)
        error = (chances.argmax(1) != labels).mean()
        errors = metrics["errors"][f"this zfnet, {name}"]
        assert errors["top1_error"] == pytest.approx(error)
        assert errors["top5_error"] == 0  # of three classes
        if name == "one view":
            last = metrics["history"][-1]
            assert last["validation_accuracy"] == pytest.approx(1 - error)
            loss = -np.log(chances[np.arange(12), labels]).mean()
            assert last["validation_loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["errors"]["the paper, one network"]["top5_error"] == 0.165
    assert (whole / "training_curves.png").exists()


def test_a_run_that_stopped_within_an_epoch_goes_on_bit_for_bit(
    whole, folder, tmp_path
):
    out = tmp_path / "copy"
    shutil.copytree(whole / "checkpoints", out / "checkpoints")
    last, before = sorted(checkpoint.steps(out / "checkpoints"))[::-1]
    assert (before, last) == (4, 6)
    shutil.rmtree(out / "checkpoints" / f"step_{last:08d}")
    assert train(folder, out, "--resume") == 0
    assert read_metrics(out) == read_metrics(whole)
    name = "weights.safetensors"
    ours, theirs = (weights(zf.load(x / name).model) for x in (out, whole))
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


IN_PROCESS = """
import sys
from experiments import train_imagenet
from experiments.harness import main
from tests.experiments.test_train_imagenet import TINY, train

train_imagenet.ARCHITECTURES["zfnet"] = TINY
sys.exit(main(train_imagenet.train_imagenet, sys.argv[1:]))
"""


def test_two_processes_give_the_results_of_one(whole, folder, tmp_path):
    words = ["--data-dir", str(folder), "--out", str(tmp_path), *OPTIONS]
    words += ["--coordinator", f"127.0.0.1:{find_port()}", "--process-count", "2"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        start_child(IN_PROCESS, *words, "--process-index", str(index), **flags)
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "this zfnet, ten crops" in outputs[0] and outputs[1] == ""
    ours, theirs = read_metrics(tmp_path), read_metrics(whole)
    assert (ours["devices"], ours["processes"]) == (4, 2)
    for record, known in zip(ours["history"], theirs["history"], strict=True):
        assert record.keys() == known.keys()
        for name in ("train_loss", "validation_loss", "loss_curve"):
            np.testing.assert_allclose(record[name], known[name], rtol=1e-4)
    assert ours["errors"] == theirs["errors"]
    name = "weights.safetensors"
    ours, theirs = (weights(zf.load(x / name).model) for x in (tmp_path, whole))
    for name, values in theirs.items():
        assert abs(ours[name] - values).max() < 1e-5 * abs(values).max(), name


# What does not fit.


def test_processes_that_do_not_find_each_other_give_up(folder, tmp_path):
    words = ["--data-dir", str(folder), "--out", str(tmp_path), "--process-count", "2"]
    words += ["--coordinator-timeout", "2", "--coordinator"]
    processes = [
        start_child(
            IN_PROCESS, *words, f"127.0.0.1:{find_port()}", "--process-index", index
        )
        for index in ("0", "1")
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert "not all 2 processes connected within 2 s" in output
        assert output.count("\n") == 1 and process.returncode == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--process-count", "2"], "--process-count 2 needs --coordinator HOST:PORT"),
        (["--process-index", "1"], "--process-index 1: give a number from 0 to 0"),
        (["--coordinator", "here"], "--coordinator here: give HOST:PORT"),
        (["--coordinator", "here:70000"], "a port from 1 to 65535"),
        (["--learning-rate", "0"], "--learning-rate 0.0: give a number above 0"),
        (["--batch-size", "28"], "--batch-size 28: there are 27 training images"),
        (["--batch-size", "7"], "batch size 7 is odd, and mixup needs pairs"),
    ],
)
def test_options_that_do_not_fit_are_named(argv, message, folder, refuse):
    words = ["--data-dir", folder, *OPTIONS, *argv]
    assert message in refuse(train_imagenet.train_imagenet, 2, *words)


def test_the_checkpoint_of_another_run_is_refused(whole, folder, refuse, tmp_path):
    shutil.copytree(whole / "checkpoints", tmp_path / "refused" / "checkpoints")
    words = ["--data-dir", folder, *OPTIONS, "--recipe", "paper", "--resume"]
    message = refuse(train_imagenet.train_imagenet, 2, *words)
    assert "--recipe paper: the run in" in message


def test_damaged_images_and_empty_classes_are_named(folder, refuse, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "images")
    (copy / "train" / "pottery" / "2.jpg").write_bytes(b"no image")
    words = ["--data-dir", copy, *OPTIONS]
    message = refuse(train_imagenet.train_imagenet, 4, *words)
    assert "pottery/2.jpg" in message
    for file in (copy / "val" / "pottery").iterdir():
        file.unlink()
    message = refuse(train_imagenet.train_imagenet, 3, *words)
    assert "val/pottery holds no images" in message
    (copy / "train" / "vase").mkdir()
    message = refuse(train_imagenet.train_imagenet, 3, *words)
    assert "train/vase holds no images" in message

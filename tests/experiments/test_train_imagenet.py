"""Training on images from disk, end to end, in one process and in two."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments import train_imagenet
from tests.loopback import find_port
from tests.test_training import start_child, weights
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
CLASSES = "n01440764", "n01443537", "pottery", "bowl", "cup", "jug", "plate"
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
    """27 training images of seven classes, and 12 to validate."""
    folder = tmp_path_factory.mktemp("images")
    shapes = make_shapes(39, (60, 80))
    for number, pixels in enumerate(shapes.images):
        split = "train" if number < 27 else "val"
        place = folder / split / CLASSES[number % 7]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.jpg")
    return folder


def read_metrics(out: Path) -> dict[str, Any]:
    metrics = json.loads((out / "metrics.json").read_text())
    return {x: y for x, y in metrics.items() if x not in TIMES}


IN_PROCESS = """
import sys
from experiments import train_imagenet
from experiments.harness import main
from tests.experiments.test_train_imagenet import TINY

train_imagenet.ARCHITECTURES["zfnet"] = TINY
code = main(train_imagenet.train_imagenet, sys.argv[1:])
"""

RESUME = """
import shutil
from experiments.distributed import DistributedRun
from zfnet_jax.processes import gather

out = sys.argv[sys.argv.index("--out") + 1]
gather(None)
if "0" == sys.argv[-1]:
    step = "checkpoints/step_00000004"  # within the second epoch
    shutil.copytree(f"{out}/{step}", f"{out}-resumed/{step}")
gather(None)
DistributedRun.connect = lambda *_: None  # they are connected
words = *sys.argv[1:], "--resume", "--out", f"{out}-resumed"
code += main(train_imagenet.train_imagenet, words)
"""
END = "sys.exit(code)"


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory) -> Path:
    """Folders of three runs on four devices: of one process, of two, and resumed."""
    results = tmp_path_factory.mktemp("runs")

    def start(script: str, devices: int, name: str, *argv: str):
        words = ["--data-dir", str(folder), "--out", str(results / name), *OPTIONS]
        return start_child(script, *words, *argv, JAX_NUM_CPU_DEVICES=str(devices))

    pair = ["--coordinator", f"127.0.0.1:{find_port()}", "--process-count", "2"]
    processes = [
        start(IN_PROCESS + RESUME + END, 2, "two", *pair, "--process-index", index)
        for index in ("0", "1")
    ]
    processes.append(start(IN_PROCESS + END, 4, "one"))
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert "this zfnet, ten crops" in outputs[0] and outputs[1] == ""
    return results


def test_the_errors_are_those_of_the_weights(runs, folder):
    whole = runs / "one"
    net = zf.load(whole / "weights.safetensors")
    names = "bowl", "cup", "jug", "tench", "goldfish", "plate", "pottery"
    assert net.class_names == names
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
        best = np.argsort(-chances)[:, :5]
        top5_error = (best != labels[:, None]).all(1).mean()
        assert errors["top5_error"] == pytest.approx(top5_error)
        assert 0 < top5_error < error
        if name == "one view":
            last = metrics["history"][-1]
            assert last["validation_accuracy"] == pytest.approx(1 - error)
            loss = -np.log(chances[np.arange(12), labels]).mean()
            assert last["validation_loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["errors"]["the paper, one network"]["top5_error"] == 0.165
    assert (whole / "training_curves.png").exists()


def test_two_processes_that_resume_go_on_bit_for_bit(runs):
    assert read_metrics(runs / "two-resumed") == read_metrics(runs / "two")
    name = "weights.safetensors"
    ours, theirs = (
        weights(zf.load(runs / x / name).model) for x in ("two-resumed", "two")
    )
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)


def test_two_processes_give_the_results_of_one(runs):
    two, one = runs / "two", runs / "one"
    ours, theirs = read_metrics(two), read_metrics(one)
    assert (ours["devices"], ours["processes"]) == (4, 2)
    assert (theirs["devices"], theirs["processes"]) == (4, 1)
    for record, known in zip(ours["history"], theirs["history"], strict=True):
        assert record.keys() == known.keys()
        for name in ("train_loss", "validation_loss", "loss_curve"):
            np.testing.assert_allclose(record[name], known[name], rtol=1e-4)
    assert ours["errors"] == theirs["errors"]
    name = "weights.safetensors"
    ours, theirs = (weights(zf.load(x / name).model) for x in (two, one))
    for name, values in theirs.items():
        assert abs(ours[name] - values).max() < 1e-5 * abs(values).max(), name


# What does not fit.


def test_processes_that_do_not_find_each_other_give_up(folder, tmp_path):
    words = ["--data-dir", str(folder), "--out", str(tmp_path), "--process-count", "2"]
    words += ["--coordinator-timeout", "2", "--coordinator"]
    processes = [
        start_child(
            IN_PROCESS + END,
            *words,
            f"127.0.0.1:{find_port()}",
            "--process-index",
            index,
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
        (["--batch-size", "7"], "--batch-size 7: mixup needs pairs of images"),
        (["--workers", "-3"], "--workers -3: give at least 0"),
    ],
)
def test_options_that_do_not_fit_are_named(argv, message, folder, refuse):
    words = ["--data-dir", folder, *OPTIONS, *argv]
    assert message in refuse(train_imagenet.train_imagenet, 2, *words)


def test_the_checkpoint_of_another_run_is_refused(runs, folder, refuse, tmp_path):
    shutil.copytree(runs / "one/checkpoints", tmp_path / "refused" / "checkpoints")
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

"""The main experiment and the quickstart, end to end."""

import importlib.util
import json
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import zfnet_jax as zf
from experiments import quickstart, train_cifar10
from experiments.harness import main
from zfnet_jax import checkpoint
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool
from zfnet_jax.data import load_dataset
from zfnet_jax.files import digest, to_json
from zfnet_jax.inference import evaluate, loss_and_accuracy

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "tensorflow_datasets"

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
SHAPES = ["--dataset", "shapes", "--limit", "120", "--batch-size", "32", "--dpi", "32"]
PAPER = [*SHAPES, "--recipe", "paper", "--seed", "5", "--keep-epochs", "1", "3"]
TIMES = {"train_seconds", "compile_seconds", "images_per_second"}


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """A small network under the name of the default one, and maps of one image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train_cifar10.ARCHITECTURES, "zfnet32", TINY)
        patch.setattr(train_cifar10, "_MAP_IMAGES", 1)
        yield


def train(out: Path, *argv: object) -> int:
    return main(train_cifar10.train_cifar10, [*map(str, argv), "--out", str(out)])


def read_metrics(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    """The folder of a run of three epochs by the paper's recipe."""
    out = tmp_path_factory.mktemp("results") / "new" / "folder"
    assert train(out, *PAPER, "--epochs", 3) == 0
    return out


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """No figures and event files, which take most of the time."""
    for name in ("draw", "write_events"):
        monkeypatch.setattr(train_cifar10, name, lambda *arguments: None)


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


WEIGHTS, FIGURES = (".safetensors",), (".png", ".pdf")


def assert_same_results(out: Path, other: Path, suffixes=WEIGHTS + FIGURES) -> None:
    """Byte for byte, except for times."""
    metrics = read_metrics(out), read_metrics(other)
    for name in metrics[0].keys() - TIMES:
        assert metrics[0][name] == metrics[1][name], name
    ours, theirs = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.suffix in suffixes
        }
        for folder in (out, other)
    )
    assert ours == theirs


def assert_weights_reproduce(out: Path, dataset: Any, data_dir=None, limit=120):
    """The weight file alone gives the accuracy in metrics.json."""
    metrics = read_metrics(out)
    net = zf.load(out / "weights.safetensors")
    test = load_dataset(dataset, "test", data_dir, limit)
    loss, accuracy = loss_and_accuracy(evaluate(net, test.images), test.labels)
    assert accuracy == metrics["test_accuracy"] == net.metadata["test_accuracy"]
    assert loss == pytest.approx(metrics["test_loss"], rel=1e-5)
    assert net.class_names == test.class_names
    assert net.metadata["test_images"] == len(test) == metrics["test_images"]
    digests = json.loads((out / "manifest.json").read_text())["digests"]
    assert digests["weights"] == digest(out / "weights.safetensors")
    assert digests["test"] == test.digest()


def test_a_run_writes_what_it_promises(whole):
    figures = "training_curves confusion_matrix predictions first_layer_filters".split()
    figures += ["feature_maps/conv1_image0", "feature_maps/pool1_image0"]
    for name in figures:
        assert (whole / f"{name}.png").stat().st_size > 1000
        assert (whole / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    if importlib.util.find_spec("tensorboardX") is not None:
        assert len(list((whole / "tensorboard").iterdir())) == 3
    assert not list(whole.rglob(".*")), "something is half-written"
    assert checkpoint.steps(whole / "checkpoints") == [2, 3]
    metrics = read_metrics(whole)
    # A tenth of the 120 images is set apart.
    assert (metrics["train_images"], metrics["test_images"]) == (108, 120)
    assert [record["epoch"] for record in metrics["history"]] == [1, 2, 3]
    for record in metrics["history"]:
        assert 0 <= record["validation_accuracy"] <= 1
    # Three whole batches of 32 per epoch.
    images = 3 * 3 * 32
    assert metrics["images_per_second"] * metrics["train_seconds"] == images
    assert_weights_reproduce(whole, "shapes")


def test_the_weights_of_chosen_epochs_are_kept(whole):
    files = sorted((whole / "epochs").iterdir())
    names = [f"epoch_000{epoch}.safetensors" for epoch in (1, 3)]
    assert [file.name for file in files] == names
    first, last = map(zf.load, files)
    assert (first.metadata["epochs"], last.metadata["epochs"]) == (1, 3)
    final = zf.load(whole / "weights.safetensors")
    for kept, known in zip(
        *map(jax.tree.leaves, (last.model, final.model)), strict=True
    ):
        np.testing.assert_array_equal(kept, known)
    before, after = (net.model.conv1.kernel[...] for net in (first, last))
    assert not np.array_equal(before, after)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the prepared CIFAR-10 beside us")
def test_cifar10_is_read_trained_on_and_tested(tmp_path, undrawn):
    options = ["--data-dir", SHARED, "--limit", 120, "--batch-size", 32, "--dpi", 32]
    assert train(tmp_path, *options, "--epochs", 1, "--recipe", "paper") == 0
    assert_weights_reproduce(tmp_path, "cifar10", SHARED)
    assert zf.load(tmp_path / "weights.safetensors").class_names[3] == "cat"
    assert "CIFAR-10" in read_metrics(tmp_path)["data"]


def test_a_target_ends_the_run(whole, tmp_path, undrawn):
    accuracies = [x["validation_accuracy"] for x in read_metrics(whole)["history"]]
    target = max(accuracies[0], 0.001)
    assert train(tmp_path, *PAPER, "--epochs", 3, "--target-accuracy", target) == 0
    reached = [n for n, value in enumerate(accuracies, 1) if value >= target]
    assert len(read_metrics(tmp_path)["history"]) == min([*reached, 3])


# Runs that stop and go on.


def strike_in_epoch(number: int, monkeypatch, strike: Callable[[], object]) -> None:
    """Make something happen after the steps of an epoch, before it is saved."""
    measure = train_cifar10.measure_validation

    def strike_and_measure(epoch, validation):
        if epoch.number == number:
            strike()
        return measure(epoch, validation)

    monkeypatch.setattr(train_cifar10, "measure_validation", strike_and_measure)


def test_sigterm_names_resume_and_a_resumed_run_is_the_same(
    whole, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        strike_in_epoch(3, patch, lambda: signal.raise_signal(signal.SIGTERM))
        assert train(tmp_path, *PAPER, "--epochs", 3) == 130
    assert capsys.readouterr().err == "error: interrupted; add --resume to continue\n"
    assert checkpoint.steps(tmp_path / "checkpoints") == [1, 2]
    # As on the command line: `--resume` is not recorded.
    monkeypatch.setattr("sys.argv", [*sys.argv, "--resume"])
    assert train(tmp_path, *PAPER, "--epochs", 3, "--resume") == 0
    assert_same_results(whole, tmp_path)
    # A complete run has nothing left to train, and reports again.
    assert train(tmp_path, *PAPER, "--epochs", 3, "--resume") == 0
    assert_same_results(whole, tmp_path)


def test_a_full_disk_ends_with_1_and_the_run_resumes(
    whole, tmp_path, monkeypatch, capsys, undrawn
):
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    with monkeypatch.context() as patch:
        full = {"target": shutil, "name": "disk_usage", "value": lambda path: usage}
        strike_in_epoch(3, patch, lambda: patch.setattr(**full))
        assert train(tmp_path, *PAPER, "--epochs", 3) == 1
    line = capsys.readouterr().err
    assert "No space left on device" in line and line.count("\n") == 1
    assert checkpoint.steps(tmp_path / "checkpoints") == [1, 2]
    assert not list(tmp_path.rglob(".*"))
    assert train(tmp_path, *PAPER, "--epochs", 3, "--resume") == 0
    assert_same_results(whole, tmp_path, WEIGHTS)


def damage(step: Path, kind: str) -> None:
    """Flip a byte, or write wrong content under right digests."""
    if kind == "flipped byte":
        files = (path for path in step.rglob("*") if path.is_file())
        largest = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
        return
    metadata = json.loads((step / "metadata.json").read_text())
    del metadata["history"]
    (step / "metadata.json").write_text(to_json(metadata))
    (step / "digests.json").write_text(to_json(checkpoint._digests(step)))


@pytest.mark.parametrize("kind", ["flipped byte", "no history"])
def test_a_damaged_checkpoint_is_named_and_the_results_are_the_same(
    whole, copy, capsys, kind, undrawn
):
    damage(copy / "checkpoints/step_00000003", kind)
    assert train(copy, *PAPER, "--epochs", 3, "--resume") == 0
    line = capsys.readouterr().err
    assert line.startswith("skipped a damaged checkpoint: step 3 is damaged: ")
    assert line.count("\n") == 1
    assert_same_results(whole, copy, WEIGHTS)


def test_when_every_checkpoint_is_damaged_the_code_is_4(copy, capsys):
    for step in (copy / "checkpoints").iterdir():
        damage(step, "flipped byte")
    assert train(copy, *PAPER, "--epochs", 3, "--resume") == 4
    line = capsys.readouterr().err
    assert f"every checkpoint in {copy / 'checkpoints'} is damaged" in line
    assert "step 2" in line and "step 3" in line and line.count("\n") == 1


def test_a_run_by_the_paper_goes_on_for_more_epochs(copy, tmp_path, undrawn):
    long = tmp_path / "long"
    assert train(copy, *PAPER, "--epochs", 4, "--resume") == 0
    assert train(long, *PAPER, "--epochs", 4) == 0
    ours, theirs = (checkpoint.restore(x / "checkpoints") for x in (copy, long))
    assert ours is not None and theirs is not None and ours.step == 4
    assert ours.metadata["history"] == theirs.metadata["history"]
    for leaf, other in zip(ours.state, theirs.state, strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--limit", 60], "--limit 60: the run in .* has --limit 120; give that"),
        (["--seed", 6], "--seed 6: the run in .* has --seed 5"),
        (["--batch-size", 16], "--batch-size 16: .* has --batch-size 32"),
        (["--recipe", "fast"], "--recipe fast: .* has --recipe paper"),
        (["--learning-rate", 0.1], "--learning-rate 0.1: .* has --learning-rate 0.01"),
    ],
)
def test_another_run_is_not_resumed(changes, named, whole, capsys):
    assert train(whole, *PAPER, "--epochs", 3, *changes, "--resume") == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(named, line)


def test_the_fast_recipe_does_not_go_on_for_more_epochs(tmp_path, capsys, undrawn):
    assert train(tmp_path, *SHAPES, "--epochs", 1) == 0
    assert train(tmp_path, *SHAPES, "--epochs", 2, "--resume") == 2
    assert "--epochs 2: the run in" in (line := capsys.readouterr().err)
    assert "has --epochs 1" in line
    # Nor does it overwrite its checkpoints.
    assert train(tmp_path, *SHAPES, "--epochs", 2) == 2
    assert "add --resume" in capsys.readouterr().err
    assert len(read_metrics(tmp_path)["history"]) == 1


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--keep-epochs", 1, 99], "--keep-epochs 99: there are epochs 1 to 6"),
        (["--learning-rate", 0], "--learning-rate 0.0: give a number above 0"),
        (["--learning-rate", "inf"], "--learning-rate inf"),
        (["--dropout", 1], "--dropout 1.0: give a number from 0, below 1"),
        (["--label-smoothing", "nan"], "--label-smoothing nan"),
        (["--target-accuracy", 1.5], "--target-accuracy 1.5"),
        (["--target-accuracy", "nan"], "--target-accuracy nan"),
        (["--validation", 120], "120 of 120 training images"),
        (["--validation", -1], "-1 of 120 training images"),
        (["--validation", 0, "--target-accuracy", 0.5], "--validation 0"),
        # Its learning rate follows the error on these images.
        (["--limit", 9, "--recipe", "paper"], "--limit 9: --recipe paper"),
        (["--batch-size", 121], "120 images in batches of 121"),
    ],
)
def test_options_that_do_not_fit_are_named(argv, named, refuse):
    command = train_cifar10.train_cifar10
    assert named in refuse(command, 2, *SHAPES, *argv)


# The quickstart.


def test_the_quickstart_needs_no_download_and_ends_with_a_gallery(
    measure, monkeypatch, capsys
):
    def refuse_connection(*arguments: Any) -> None:
        raise AssertionError(f"connects to {arguments}")

    names = {layer.name for layer in zf.ZFNET32.layers}
    assert set(quickstart._GALLERY_LAYERS) <= names
    monkeypatch.setattr(socket.socket, "connect", refuse_connection)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_connection)
    monkeypatch.setattr(zf, "ZFNET32", TINY)
    monkeypatch.setattr(quickstart, "_GALLERY_LAYERS", ("conv1",))
    argv = ["--limit", 128, "--epochs", 1]
    metrics, out = measure(quickstart.quickstart, *argv)
    assert metrics["test_images"] == 128 and len(metrics["history"]) == 1
    assert_weights_reproduce(out, "shapes", limit=128)
    assert (out / "feature_maps/conv1_image0.png").exists()
    assert "conv1" in (out / "gallery/index.html").read_text()
    assert not (out / "checkpoints").exists()
    said = capsys.readouterr().out
    weights = f"--weights {out / 'weights.safetensors'}"
    for name in ("gallery", "top_features", "project"):
        assert f"python -m experiments.{name} {weights}" in said

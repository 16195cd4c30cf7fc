"""What a newcomer runs first: it needs nothing, and draws everything."""

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments import quickstart, train_cifar10
from experiments.common import main
from experiments.quickstart import Options, run
from zfnet_jax import training
from zfnet_jax.arch import Dense
from zfnet_jax.data import make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")

FEW = ["--limit", "128", "--epochs", "1"]


@pytest.fixture(scope="module")
def finished(compiled_once, tmp_path_factory) -> Path:
    """The folder of a short run, with every way to the network shut."""
    out = tmp_path_factory.mktemp("results") / "new"

    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"asked the network for {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        # To draw the maps of three images takes longer than all else.
        patch.setattr(train_cifar10, "_MAP_IMAGES", 1)
        patch.setattr(quickstart, "_GALLERY_LAYERS", ("conv1",))
        assert main(run, Options, [*FEW, "--out", str(out)]) == 0
    return out


def test_it_draws_all_that_the_main_experiment_draws(finished):
    layers = [x.name for x in zf.ZFNET32.layers if not isinstance(x, Dense)]
    maps = [f"feature_maps_{name}_image0" for name in layers]
    others = "training_curves confusion_matrix predictions first_layer_filters".split()
    for name in (*others, *maps):
        with Image.open(finished / f"{name}.png") as image:
            assert min(image.size) > 100
            assert np.asarray(image.convert("RGB")).std() > 1
    assert (finished / "training_curves.pdf").exists()
    for name in ("config.json", "manifest.json"):
        assert json.loads((finished / name).read_text())
    # So short a run keeps no checkpoints.
    assert not (finished / "checkpoints").exists()


def test_the_numbers_are_those_of_the_weights(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    for name in ("train_seconds", "compile_seconds", "images_per_second"):
        assert metrics[name] > 0
    (record,) = metrics["history"]
    assert record["epoch"] == 1 and 0 <= record["train_accuracy"] <= 1

    net = zf.load(finished / "weights.safetensors")
    assert net.model.arch.layer("conv5") == zf.ZFNET32.layer("conv5")
    test = train_cifar10.load(
        train_cifar10.Options(dataset="shapes", limit=128), "test"
    )
    logits = training.evaluate(net.model, net.preprocess, test.images)
    _, accuracy = training.loss_and_accuracy(logits, test.labels)
    assert accuracy == metrics["test_accuracy"] == net.metadata["test_accuracy"]
    assert metrics["test_images"] == len(test) == 128
    assert net.class_names == make_shapes(1).class_names


def test_it_ends_with_a_gallery(finished):
    page = finished / "gallery" / "index.html"
    assert "layers/conv1/index.html" in page.read_text()
    assert (finished / "gallery/pages/layers/conv1/0.webp").is_file()
    names = {layer.name for layer in zf.ZFNET32.layers}
    assert set(quickstart._GALLERY_LAYERS) <= names


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--limit", "0"], ["--limit must be 1 or more, not 0"]),
        (["--epochs", "-2"], ["--epochs must be 1 or more, not -2"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--limit", "10"], ["10 images", "in batches of "]),
        (["--model", "zfnet32"], ["--model"]),
    ],
)
def test_what_cannot_be_is_2_and_one_line(argv, parts, tmp_path, capsys):
    assert main(run, Options, [*argv, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err


def test_an_out_that_cannot_be_written_is_2(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "below"
    assert main(run, Options, [*FEW, "--out", str(out)]) == 2
    assert f"--out {out} cannot be written" in capsys.readouterr().err

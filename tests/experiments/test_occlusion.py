"""Squares that slide over shapes and over a photograph, end to end."""

import json

import jax
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import zfnet_jax as zf
from experiments import occlusion as command
from experiments.harness import main
from experiments.occlusion import occlusion
from zfnet_jax.analysis.occlusion import drop_on_objects, share_on
from zfnet_jax.data import make_shapes
from zfnet_jax.files import DataNotFoundError

MODEL = ["--model", "tests.experiments.models:residual"]


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_numbers_are_those_of_the_library(trained, tmp_path):
    weights = trained / "weights.safetensors"
    argv = ["--weights", str(weights), "--limit", "4", "--shown", "1"]
    assert main(occlusion, [*argv, "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    net, shapes = zf.load(weights), make_shapes(500, seed=1)
    images = net.preprocess(shapes.images)
    correct = np.flatnonzero(np.asarray(net(images)).argmax(-1) == shapes.labels)[:4]
    gray = net.preprocess(np.full((1, 32, 32, 3), 128, np.uint8))[0]
    labels, images = shapes.labels[correct], images[correct]
    # A quarter and a sixteenth of 16 pixels.
    x = zf.occlusion(net, images, labels, size=4, stride=1, fill=gray)
    logits = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(logits, x.logits, rtol=1e-4, atol=1e-5)

    losses, shares = [], []
    clean = np.asarray(jax.nn.softmax(x.clean_logits))[range(4), labels]
    for index, values in enumerate(metrics["of_each"]):
        unit, image = x.units[index], images[[index]]
        assert values["target"] == net.class_names[labels[index]]
        assert values["unit"] == unit
        assert values["probability"] == pytest.approx(clean[index], 1e-4)
        activity, probability = x.activity[index], x.probability[index]
        assert values["least_activity"] == pytest.approx(activity.min(), 1e-4)
        losses.append(clean[index] - probability.min())
        correlation = scipy.stats.spearmanr(activity.ravel(), probability.ravel())[0]
        assert values["activity_and_probability"] == pytest.approx(
            correlation, abs=1e-3
        )
        signal = np.array(net.activations(image, x.layer)[x.layer])
        signal[..., np.arange(signal.shape[-1]) != unit] = 0
        strength = np.abs(zf.backproject(net, image, x.layer, signal)[0]).max(-1)
        strongest = strength >= np.sort(strength.ravel())[-64]
        share = share_on(x.by_pixel(x.clean_activity[index] - activity), strongest)
        assert values["activity_drop_on_projection"] == pytest.approx(share, abs=0.02)
        # The masks are of 32 x 32 pixels and the network's images of 16 x 16.
        mask = shapes.masks[correct[index]].reshape(16, 2, 16, 2).mean((1, 3)) > 0.5
        shares.append(share_on(x.by_pixel(clean[index] - probability), mask))
    assert metrics["drop_on_the_object"]["share"] == pytest.approx(
        np.mean(shares), 1e-3
    )
    assert metrics["drawn"] == [np.argmax(losses)]
    assert (tmp_path / "occlusion_0.png").exists()
    assert not (tmp_path / "occlusion_1.png").exists()


def test_a_photograph_without_a_dataset(photograph, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise DataNotFoundError("no CIFAR-10 in folder")

    monkeypatch.setattr(command, "load_dataset", fail)
    argv = [*MODEL, "--image", str(photograph), "--target", "7", "--out", str(tmp_path)]
    more = ["--size", "9", "7", "--stride", "16", "--fill", "mean", "--units", "1"]
    assert main(occlusion, [*argv, *more]) == 0
    assert "no CIFAR-10 in folder" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["size"] == [9, 7]
    (values,) = metrics["of_each"]
    assert (values["target"], values["unit"]) == ("class 7", 1)
    # Rows at 0, 16, 25 of 34; columns at 0, 16, 19 of 26.
    assert np.load(tmp_path / "logits.npy").shape == (1, 3, 3, 10)
    assert (tmp_path / "occlusion_0.pdf").exists()


def test_drops_on_known_objects():
    """A network of one pixel responds to the object on that pixel, and no other."""
    arch = zf.Architecture(
        "one", (6, 6), (zf.Conv("conv1", 1, 1), zf.Dense("logits", 2, relu=False))
    )
    model = zf.load_weights(
        {
            "conv1.weight": np.ones((1, 3, 1, 1), np.float32),
            "conv1.bias": np.zeros(1, np.float32),
            "logits.weight": np.zeros((2, 36), np.float32),
            "logits.bias": np.zeros(2, np.float32),
        },
        arch,
    )
    model.logits.kernel[...] = np.eye(36, 2, -14, np.float32)
    images = np.ones((2, 6, 6, 3), np.float32)
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 2:4, 1:3] = True  # includes pixel 14, in row 2 and column 2
    masks[1, 0] = True
    drops = drop_on_objects(zf.occlusion(model, images, 0, size=1, stride=1), masks)
    assert drops["share"] == pytest.approx(0.5)
    assert drops["on_other_objects"] == pytest.approx(0.5)
    assert drops["chance"] == pytest.approx(10 / 72)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--size", "17"], ["17 x 17 pixels", "16 x 16"]),
        (["--size", "3", "3", "3"], ["size", "pair", "3, 3, 3"]),
        (["--target", "unicorn"], ["unicorn", "disk"]),
        (["--indices", "2000"], ["--indices 2000", "0 to 1999"]),
        (["--layers", "conv1", "conv2"], ["--layers conv1 conv2", "single"]),
        (["--units", "7", "--indices", "0"], ["unit 7", "conv2 has 6 units"]),
    ],
)
def test_impossible_options(argv, parts, trained, tmp_path, capsys):
    given = ["--weights", str(trained / "weights.safetensors"), "--out", str(tmp_path)]
    assert main(occlusion, [*given, *argv]) == 2
    line = capsys.readouterr().err
    assert all(part in line for part in parts)

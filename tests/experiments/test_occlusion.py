"""Squares that slide over shapes and over a photograph, end to end."""

import jax
import numpy as np
import pytest
import scipy.stats

import zfnet_jax as zf
from experiments.occlusion import occlusion
from zfnet_jax.analysis.occlusion import drop_on_objects, share_on
from zfnet_jax.data import make_shapes

MODEL = ["--model", "tests.networks:small_network"]


def test_metrics_are_those_of_the_library(measure, weights):
    argv = ["--weights", weights, "--limit", 4, "--shown", 1]
    metrics, out = measure(occlusion, *argv)
    net, shapes = zf.load(weights), make_shapes(500, seed=1)
    images = net.preprocess(shapes.images)
    correct = np.flatnonzero(np.asarray(net(images)).argmax(-1) == shapes.labels)[:4]
    gray = net.preprocess(np.full((1, 32, 32, 3), 128, np.uint8))[0]
    labels, images = shapes.labels[correct], images[correct]
    # A quarter and a sixteenth of 16 pixels.
    x = zf.occlusion(net, images, labels, size=4, stride=1, fill=gray)
    logits = np.load(out / "logits.npy")
    np.testing.assert_allclose(logits, x.logits, rtol=1e-4, atol=1e-5)

    assert shapes.masks is not None
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
    # Resizing is smoother than the mean of four pixels.
    drop = metrics["drop_on_the_object"]
    assert drop["share"] == pytest.approx(np.mean(shares), abs=0.02)
    assert metrics["drawn"] == [np.argmax(losses)]
    figures = [file.name for file in sorted(out.glob("*.p*"))]
    assert figures == ["occlusion_0.pdf", "occlusion_0.png"]


def test_a_photograph_needs_no_dataset(measure, photographs, monkeypatch, capsys):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    argv = [*MODEL, "--image", photographs / "0.png", "--target", 3, "--units", 1]
    more = ["--size", 9, "--stride", 16, "--fill", "mean"]
    metrics, out = measure(occlusion, *argv, *more)
    assert "this image alone" in capsys.readouterr().out
    assert metrics["size"] == [9, 9]
    (values,) = metrics["of_each"]
    assert (values["target"], values["unit"]) == ("class 3", 1)
    # Rows and columns at 0 and 15 of 24.
    assert np.load(out / "logits.npy").shape == (1, 2, 2, 4)
    assert (out / "occlusion_0.png").exists()


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


def test_impossible_requests_are_refused(refuse, weights):
    for argv, message in (
        (["--size", 17], "17 x 17 pixels does not fit an image of 16 x 16"),
        (["--target", "unicorn"], "no class 'unicorn'"),
        (["--indices", 2000], "--indices 2000: there are 2,000 images (0 to 1999)"),
        (["--layers", "conv1", "conv2"], "name a single layer"),
        (["--units", 7], "unit 7: conv2 has 6 units (0 to 5)"),
    ):
        assert message in refuse(occlusion, 2, "--weights", weights, *argv)

"""The table of attribution maps on shapes, end to end."""

import jax
import numpy as np
import pytest

import zfnet_jax as zf
from experiments.attribution import METHODS, attribution
from zfnet_jax.data import make_shapes

DRAWN = 120
# A network that has learned nothing is right about one in ten.
FEW = ["--limit", DRAWN]


def test_metrics_are_those_of_the_maps(measure, weights):
    """Counted again: pixel by pixel for the gradient, from the masks for the center."""
    metrics, out = measure(attribution, "--weights", weights, *FEW, "--steps", 16)
    net, shapes = zf.load(weights), make_shapes(DRAWN, seed=1)
    logits = np.asarray(net.model(net.preprocess(shapes.images)))
    shapes = shapes.take(np.flatnonzero(logits.argmax(-1) == shapes.labels))
    assert shapes.masks is not None
    masks = np.asarray(
        jax.image.resize(shapes.masks * 1.0, (len(shapes), 16, 16), "linear") > 0.5
    )
    assert (metrics["images"], metrics["images_drawn"]) == (len(shapes), DRAWN)
    assert metrics["object_share"] == pytest.approx(masks.mean(), abs=1e-3)
    assert set(metrics["methods"]) == {*METHODS, "random", "center"}

    forward = jax.jit(net.model)
    down = jax.jit(jax.grad(lambda i, y: net.model(i[None])[0, y]))
    hits, areas = [], []
    images = net.preprocess(shapes.images)
    for image, label, mask in zip(images, shapes.labels, masks, strict=True):
        ranks = np.abs(down(image, label)).max(-1)
        hits.append(mask.reshape(-1)[ranks.argmax()])
        order = np.argsort(-ranks.reshape(-1), kind="stable")
        steps = np.tile(image.reshape(1, 256, 3), (17, 1, 1))
        for step in range(17):
            steps[step, order[16 * step :]] = 0
        values = jax.nn.softmax(forward(steps.reshape(17, 16, 16, 3)))[:, label]
        areas.append(np.trapezoid(values) / 16)
    saliency = metrics["methods"]["saliency"]
    assert saliency["on_object"]["hits"] == np.sum(hits)
    assert saliency["insertion"]["mean"] == pytest.approx(np.mean(areas), rel=1e-3)
    error = np.std(areas, ddof=1) / np.sqrt(len(areas))
    assert saliency["insertion"]["standard_error"] == pytest.approx(error, rel=1e-2)
    center = metrics["methods"]["center"]["on_object"]["hits"]
    assert center == pytest.approx(masks[:, 7:9, 7:9].mean((1, 2)).sum())
    for measures in metrics["methods"].values():
        assert measures["near_object"]["mean"] >= measures["on_object"]["mean"]
        first, last = (measures["insertion"]["curve"][i] for i in (0, -1))
        assert measures["deletion"]["curve"][0] == pytest.approx(last, rel=1e-4)
        assert measures["deletion"]["curve"][-1] == pytest.approx(first, rel=1e-4)
    assert (out / "maps.png").exists()


def test_impossible_requests_are_refused(refuse, weights, tmp_path, monkeypatch):
    given = ["--weights", weights, *FEW]
    for argv, message in (
        (["--steps", 257], "steps"),
        (["--tolerance", -1], "tolerance must be at least 0"),
        (["--limit", 1], "of 1 shapes are classified correctly"),
        (["--weights", "zfnet32-cifar10"], "are not those of zfnet32"),
    ):
        assert message in refuse(attribution, 2, *given, *argv)
    monkeypatch.chdir(tmp_path)
    line = refuse(attribution, 3)
    assert "results/quickstart/weights" in line and "experiments.quickstart" in line

"""Keras applications on the JAX backend, with random weights at a small size."""

import time

import numpy as np
import pytest

import zfnet_jax as zf
from tests.networks import import_keras

pytestmark = [pytest.mark.keras, pytest.mark.usefixtures("compiled_once")]

# Image side, and number of convolutions and dense layers.
APPLICATIONS = {
    "VGG16": (48, 16),
    "ResNet50": (64, 54),
    "DenseNet121": (48, 121),
    "InceptionV3": (80, 95),
    "Xception": (80, 75),
    "MobileNet": (48, 28),
}


@pytest.fixture(scope="module")
def applications():
    return import_keras().applications


@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_application_is_read_and_projected(applications, name):
    side, count = APPLICATIONS[name]
    model = getattr(applications, name)(
        weights=None,
        input_shape=(side, side, 3),
        classes=10,
        classifier_activation=None,
    )
    net = zf.network(model)
    assert net.image_shape == (side, side, 3)
    assert net.num_classes == 10
    table = str(net)
    rows = [row.split()[0] for row in table.splitlines()[1:]]
    assert rows == [*net.layers, "total"]
    kinds = [layer.kind for layer in net.layers.values()]
    assert kinds.count("conv") + kinds.count("dense") == count
    # MobileNet ends in a 1 x 1 convolution.
    assert kinds[-1] == ("conv" if name == "MobileNet" else "dense")
    assert net.layer(net.output).shape == (10,)

    images = np.random.default_rng(0).standard_normal((1, side, side, 3), np.float32)
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(net(images), expected, rtol=1e-3, atol=1e-5)
    rectified = [layer.name for layer in net.layers.values() if layer.rectified]
    projections = zf.project(net, images, rectified[len(rectified) // 2])
    assert projections.pixels.shape == (1, side, side, 3)
    assert np.isfinite(projections.pixels).all()
    assert projections.pixels.any()


def test_resnet50_is_read_in_seconds(applications):
    model = applications.ResNet50(weights=None, classifier_activation=None)
    began = time.perf_counter()
    str(zf.network(model))
    assert time.perf_counter() - began < 5

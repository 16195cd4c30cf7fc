"""Logits and probabilities: batches change nothing, ten crops are a plain loop."""

import jax
import numpy as np
import pytest
from flax import nnx

from zfnet_jax.arch import Architecture, Conv, Dense
from zfnet_jax.data import Preprocessing
from zfnet_jax.inference import class_probabilities, evaluate, loss_and_accuracy
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import Network, network

# Images that are not square, so that rows and columns cannot be swapped.
WIDE = Architecture(
    "wide",
    (6, 9),
    (Conv("conv1", 3, kernel=3, padding=1), Dense("logits", 5, relu=False)),
)


@pytest.fixture(scope="module")
def model() -> ConvNet:
    return ConvNet(WIDE, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module", params=["ConvNet", "function"])
def net(model, request) -> Network:
    mean = np.random.default_rng(0).uniform(0, 255, (6, 9, 3)).astype(np.float32)
    preprocess = Preprocessing(mean, 1 / 64)
    if request.param == "ConvNet":
        return network(model, preprocess=preprocess)
    return network(lambda x: model(x), (6, 9, 3), preprocess=preprocess)


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def by_ten(net: Network, images: np.ndarray, batch_size: int = 50) -> np.ndarray:
    views = class_probabilities(net, images, ten_crops=True, batch_size=batch_size)
    return np.stack([*views])


def softmax(logits) -> np.ndarray:
    powers = np.exp(np.asarray(logits, float))
    return powers / powers.sum(1, keepdims=True)


def test_batches_do_not_change_logits(net, model):
    images = random_images(7, 6, 9, 3)
    expected = jax.jit(lambda x: model(x))(net.preprocess(images))
    for batch_size in (3, 500):
        logits = evaluate(net, images, batch_size)
        assert (logits.dtype, logits.shape) == (np.float32, (7, 5))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    chances = np.stack([*class_probabilities(net, images, batch_size=3)])
    np.testing.assert_allclose(chances, softmax(expected), rtol=1e-4)
    assert [*class_probabilities(net, [])] == []


def test_ten_crops_are_a_plain_loop(net, model):
    images = random_images(7, 10, 11, 3)
    logits = jax.jit(lambda x: model(x))
    total = np.zeros((7, 5))
    for row, column in ((0, 0), (0, 2), (4, 0), (4, 2), (2, 1)):
        for turn in (1, -1):
            crops = images[:, row : row + 6, column : column + 9][:, :, ::turn]
            total += softmax(logits((crops - net.preprocess.mean) / 64))
    for batch_size in (3, 50):
        np.testing.assert_allclose(by_ten(net, images, batch_size), total / 10, 1e-4)
    # Mirrors change nothing; upside down is another image.
    np.testing.assert_allclose(by_ten(net, images[:, :, ::-1]), total / 10, 1e-4)
    assert not np.allclose(by_ten(net, images[:, ::-1]), total / 10, 1e-3)


def test_a_mean_image_of_the_larger_size_is_subtracted_before_crops_are_cut(model):
    images = random_images(3, 12, 18, 3)
    mean = np.random.default_rng(2).uniform(0, 255, (12, 18, 3)).astype(np.float32)
    preprocess = Preprocessing(mean, 1 / 64, crop=0.5)
    net = network(model, preprocess=preprocess)
    inputs, logits = (images - mean) / 64, jax.jit(lambda x: model(x))
    total = np.zeros((3, 5))
    for row, column in ((0, 0), (0, 9), (6, 0), (6, 9), (3, 4)):
        for turn in (1, -1):
            crops = inputs[:, row : row + 6, column : column + 9][:, :, ::turn]
            total += softmax(logits(crops))
    np.testing.assert_allclose(by_ten(net, images), total / 10, 1e-4)
    # One view is of the center.
    center = images[:, 3:9, 4:13]
    views = [*class_probabilities(net, center)]
    expected = softmax(logits(inputs[:, 3:9, 4:13]))
    np.testing.assert_allclose(views, expected, rtol=1e-4)


def test_images_are_read_one_batch_at_a_time(net):
    read = []
    images = (read.append(x) or x for x in random_images(8, 6, 9, 3))
    views = class_probabilities(net, images, batch_size=3)
    assert read == []
    for _ in range(3):
        next(views)
    assert len(read) == 3
    assert len([*views]) == 5 and len(read) == 8


def test_loss_and_accuracy_by_hand():
    logits = np.log(np.array([[1, 1, 2], [3, 1, 0.5], [1, 7, 2]], np.float32))
    # The probabilities of the labels are 2/4, 1/4.5 and 7/10.
    loss, accuracy = loss_and_accuracy(logits, np.array([2, 1, 1], np.int32))
    assert loss == pytest.approx(np.log([2, 4.5, 10 / 7]).mean(), rel=1e-6)
    assert accuracy == pytest.approx(2 / 3)

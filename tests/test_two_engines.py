"""Every tool gives the same for a `ConvNet` and for its call as a plain function.

A `ConvNet` has an engine of its own, which knows the architecture; a function is read
off its equations. Their layers have other names, in the same order.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flax import nnx

import zfnet_jax as zf
from zfnet_jax import metrics
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.networks import Network, network

pytestmark = pytest.mark.usefixtures("compiled_once")

ARCH = Architecture(
    "small",
    (18, 15),
    (
        Conv("conv1", 6, kernel=5, stride=2, padding=1),
        MaxPool("pool1", kernel=3, stride=2, padding=((0, 1), (1, 0))),
        ContrastNorm("norm1", size=3, k=1.0, alpha=0.3),
        Conv("conv2", 8, kernel=3, padding=1),
        MaxPool("pool2", kernel=2, stride=1),
        Dense("fc3", 7),
        Dense("logits", 4, relu=False),
    ),
)
RULES = ("deconvnet", "guided", "gradient")
COUNT = 6


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((COUNT, 18, 15, 3), np.float32)


@pytest.fixture(scope="module")
def engines() -> tuple[Network, Network]:
    model = zf.ConvNet(ARCH, rngs=nnx.Rngs(1))
    return network(model), wrap(model)


def wrap(model: zf.ConvNet) -> Network:
    """The network of the model's call, which is not known to be a `ConvNet`'s."""
    return network(lambda images: model(images), (18, 15, 3))


def test_layers(engines):
    fast, traced = engines
    assert isinstance(fast.model, zf.ConvNet)
    assert not isinstance(traced.model, zf.ConvNet)
    for a, b in zip(fast.layers.values(), traced.layers.values(), strict=True):
        assert dataclasses.replace(a, name=b.name) == b


class Same:
    """Compares results of the two engines, layer by layer in order."""

    def __init__(self, engines: tuple[Network, Network]) -> None:
        fast, traced = engines
        self.names = dict(zip(fast.layers, traced.layers, strict=True))

    def __call__(self, a: Any, b: Any) -> None:
        if dataclasses.is_dataclass(a):
            assert type(a) is type(b)
            for field in dataclasses.fields(a):
                self(getattr(a, field.name), getattr(b, field.name))
        elif isinstance(a, Mapping):
            assert [self.names.get(key, key) for key in a] == list(b)
            for x, y in zip(a.values(), b.values(), strict=True):
                self(x, y)
        elif isinstance(a, str):
            assert self.names.get(a, a) == b
        elif isinstance(a, tuple):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                self(x, y)
        else:
            a, b = np.asarray(a), np.asarray(b)
            assert a.shape == b.shape
            if np.issubdtype(a.dtype, np.floating):
                np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
            else:
                np.testing.assert_array_equal(b, a)


@pytest.fixture(scope="module")
def same(engines) -> Same:
    return Same(engines)


def both(engines, same: Same, tool) -> None:
    """Run a tool on each network, with what gives a layer its name there."""
    fast, traced = engines
    results = tool(fast, str), tool(traced, same.names.__getitem__)
    same(*results)


def test_activations(engines, same, images):
    both(engines, same, lambda net, _: net.activations(images, batch_size=4))
    both(engines, same, lambda net, _: net(images))


@pytest.mark.parametrize("rule", RULES)
def test_project(engines, same, images, rule):
    for layer in ARCH.shapes():
        both(
            engines,
            same,
            lambda net, name, layer=layer: zf.project(
                net, images[:2], name(layer), rule=rule
            ),
        )
    units, positions = [0, 5], (3, 2)
    for crop in (False, True):
        both(
            engines,
            same,
            lambda net, name, crop=crop: zf.project(
                net, images[:2], name("conv2"), units, positions, rule=rule, crop=crop
            ),
        )


@pytest.mark.parametrize("rule", RULES)
def test_backproject(engines, same, images, rule):
    signal = np.random.default_rng(1).standard_normal((2, 4, 3, 8), np.float32)
    both(
        engines,
        same,
        lambda net, name: zf.backproject(
            net, images[:2], name("conv2"), signal, rule=rule
        ),
    )


@pytest.mark.parametrize("rule", RULES)
def test_attribute(engines, same, images, rule):
    targets = [0, 1, 2, 3, 0, 1]
    both(
        engines,
        same,
        lambda net, _: zf.attribute(net, images, targets, rule=rule),
    )


@pytest.mark.parametrize("curve", [zf.insertion, zf.deletion])
def test_insertion_and_deletion(engines, same, images, curve):
    importances = np.random.default_rng(1).uniform(size=(2, 18, 15))
    both(
        engines,
        same,
        lambda net, _: curve(net, images[:2], 1, importances, steps=5),
    )


def test_pointing_at_the_same_pixel(engines, images):
    maps = [
        np.asarray(metrics.importance(zf.attribute(net, images, 2))) for net in engines
    ]
    assert metrics.spearman(maps[0].ravel(), maps[1].ravel()) > 0.9999


def test_top_activations(engines, same, images):
    labels = np.arange(COUNT) % 3

    def tool(net, name):
        top = zf.top_activations(net, images, k=3, labels=labels)
        pictures = top[name("conv2")].project(net, images, [0, 5])
        return {**top, "pictures": pictures}

    both(engines, same, tool)


def test_occlusion(engines, same, images):
    both(
        engines,
        same,
        lambda net, _: zf.occlusion(
            net, images[:2], [1, 3], size=(6, 5), stride=(4, 3)
        ),
    )


@pytest.mark.parametrize("transform", ["translate", "rotate", "scale"])
def test_invariance(engines, same, images, transform):
    amounts = {"translate": [0.0, 3.0], "rotate": [0.0, 40.0], "scale": [1.0, 1.3]}
    for layers in (None, "all"):
        both(
            engines,
            same,
            lambda net, name, layers=layers: zf.invariance(
                net,
                images,
                0,
                transform,
                amounts[transform],
                layers=layers and [name(x) for x in ARCH.shapes()],
            ),
        )


def test_correspondence(engines, same, images):
    boxes = {
        "eye": np.array([[2, 3, 8, 9]] * COUNT) + np.arange(COUNT)[:, None],
        "nose": np.array([[5, 1, 9, 5]] * COUNT),
    }
    both(engines, same, lambda net, _: zf.correspondence(net, images, boxes, draws=3))


def test_probe(engines, same, images):
    labels = np.arange(COUNT) % 2

    def tool(net, name):
        layers = [name("pool1"), name("fc3")]
        return {
            layer: {kind: (x.penalty, x.predictions) for kind, x in probes.items()}
            for layer, probes in zf.probe(
                net, images, labels, layers=layers, train=3, validation=1
            ).items()
        }

    both(engines, same, tool)


def test_sanity(engines, same, images):
    both(engines, same, lambda net, _: zf.sanity(net, images[:2], [0, 3], shown=2))


def test_evolution(engines, same, images):
    models = [zf.ConvNet(ARCH, rngs=nnx.Rngs(seed)) for seed in (0, 1)]

    def tool(net, _):
        if isinstance(net.model, zf.ConvNet):
            networks = {epoch: network(x) for epoch, x in enumerate(models)}
        else:
            networks = {epoch: wrap(x) for epoch, x in enumerate(models)}
        return zf.evolution(networks, images)

    both(engines, same, tool)


def test_receptive_field(engines, same):
    fast, traced = engines
    for a in ("conv1", "pool1", "norm1", "conv2", "pool2"):
        field = zf.receptive_field(fast, a)
        assert field == zf.receptive_field(traced, same.names[a])
        assert field == zf.receptive_field(ARCH, a)

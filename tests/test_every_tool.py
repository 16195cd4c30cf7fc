"""Every tool gives the same for a `ConvNet`, for a function, and in 64-bit mode.

A `ConvNet` has an engine of its own, which knows the architecture; a function is read
off its equations. Their layers have other names, in the same order.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import zfnet_jax as zf
from tests.comparison import assert_close
from tests.networks import random_model
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.deconvnet import follow_signal
from zfnet_jax.networks import Network

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
COUNT = 6
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((COUNT, 18, 15, 3), np.float32)
SIGNAL = RNG.standard_normal((COUNT, 4, 3, 8), np.float32)
IMPORTANCES = RNG.uniform(size=(COUNT, 18, 15))
TARGETS = [0, 1, 2, 3, 0, 1]
LABELS = np.arange(COUNT) % 3
BOXES = {
    "eye": np.array([[2, 3, 8, 9]] * COUNT) + np.arange(COUNT)[:, None],
    "nose": np.array([[5, 1, 9, 5]] * COUNT),
}
RULES: Any = ("deconvnet", "guided", "gradient")


def name(net: Network, layer: str) -> str:
    """The name in a network of a layer of the architecture."""
    return list(net.layers)[list(ARCH.shapes()).index(layer)]


def top_and_pictures(net, x) -> dict[str, Any]:
    top = zf.top_activations(net, x, k=3, labels=LABELS)
    return {**top, "pictures": top[name(net, "conv2")].project(net, x, [0, 5])}


def probe(net, x) -> dict[str, Any]:
    layers = [name(net, "pool1"), name(net, "fc3")]
    probes = zf.probe(net, x, LABELS % 2, layers=layers, train=3, validation=1)
    return {
        f"{layer} {kind}": (np.float64(one.penalty), one.predictions)
        for layer, by_kind in probes.items()
        for kind, one in by_kind.items()
    }


TOOLS = {
    "logits": lambda net, x: net(x),
    "activations": lambda net, x: net.activations(x, batch_size=4),
    **{
        f"project {layer} {rule}": lambda net, x, layer=layer, rule=rule: zf.project(
            net, x[:2], name(net, layer), rule=rule
        )
        for layer, rule in zip(("pool2", "norm1", "fc3"), RULES, strict=True)
    },
    "project a crop": lambda net, x: zf.project(
        net, x[:2], name(net, "conv2"), [0, 5], (3, 2), crop=True
    ),
    "backproject": lambda net, x: zf.backproject(net, x, name(net, "conv2"), SIGNAL),
    "follow_signal": lambda net, x: follow_signal(net, x, name(net, "conv2"), SIGNAL),
    "attribute": lambda net, x: zf.attribute(net, x, TARGETS, rule="guided"),
    "insertion": lambda net, x: zf.insertion(net, x, 1, IMPORTANCES, steps=3),
    "deletion": lambda net, x: zf.deletion(net, x, 1, IMPORTANCES, steps=3),
    "top_activations": top_and_pictures,
    "evolution": lambda net, x: zf.evolution({1: net, 2: net}, x),
    "occlusion": lambda net, x: zf.occlusion(
        net, x[:2], [1, 3], size=(6, 5), stride=(4, 3)
    ),
    "invariance": lambda net, x: zf.invariance(
        net, x, 0, "rotate", [0.0, 40.0], layers=list(net.layers)
    ),
    "correspondence": lambda net, x: zf.correspondence(net, x, BOXES, draws=2),
    "likeness": lambda net, x: dict(enumerate(zf.likeness(net, x).directions.values())),
    "probe": probe,
    "transfer": lambda net, x: zf.transfer(
        net, x, LABELS % 2, per_class=[1], draws=2, layer=name(net, "fc3")
    ),
    "sanity": lambda net, x: zf.sanity(net, x[:2], [0, 3], shown=2),
}


@pytest.fixture(scope="module")
def networks() -> tuple[Network, Network]:
    model = random_model(ARCH, 1)
    return zf.network(model), zf.network(lambda x: model(x), (18, 15, 3))


def test_layers_and_receptive_fields_are_the_same(networks):
    own, read = networks
    for one, other in zip(own.layers.values(), read.layers.values(), strict=True):
        assert dataclasses.replace(one, name=other.name) == other
        assert one.parameters == other.parameters
    assert own.parameters == read.parameters
    for layer in ("conv1", "pool1", "norm1", "conv2", "pool2"):
        field = zf.receptive_field(ARCH, layer)
        assert zf.receptive_field(own, layer) == field
        assert zf.receptive_field(read, name(read, layer)) == field


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_both_engines_agree_in_32_and_64_bits(networks, tool):
    own, read = networks
    expected = tool(own, IMAGES)
    assert_close(tool(read, IMAGES), expected)
    with jax.enable_x64(True):
        for net in networks:
            assert_close(tool(net, IMAGES), expected, rtol=2e-3, atol=2e-4)

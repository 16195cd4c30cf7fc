"""Every tool works while `jax_enable_x64` is on, and gives what it gives without it."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import zfnet_jax as zf
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool

ARCH = Architecture(
    "small",
    (14, 12),
    (
        Conv("conv1", 6, kernel=5, stride=2, padding=1),
        ContrastNorm("norm1", size=3),
        MaxPool("pool1", padding=1),
        Conv("conv2", 8, kernel=3, padding=1),
        Dense("fc3", 7),
        Dense("logits", 4, relu=False),
    ),
)
COUNT = 6
pytestmark = pytest.mark.usefixtures("compiled_once")
BOXES = {"eye": np.array([[2, 3, 8, 9]] * COUNT)}
SIGNAL = np.random.default_rng(1).standard_normal((COUNT, 3, 3, 8), np.float32)

TOOLS = {
    "logits": lambda net, x: net(x),
    "activations": lambda net, x: net.activations(x),
    "attribute": lambda net, x: zf.attribute(net, x, 1, rule="guided"),
    "backproject": lambda net, x: zf.backproject(net, x, layer(net), SIGNAL),
    "correspondence": lambda net, x: zf.correspondence(net, x, BOXES, draws=2),
    "deletion": lambda net, x: zf.deletion(net, x, 1, np.abs(x).max(-1), steps=3),
    "evolution": lambda net, x: zf.evolution({1: net, 2: net}, x),
    "insertion": lambda net, x: zf.insertion(net, x, 1, np.abs(x).max(-1), steps=3),
    "invariance": lambda net, x: zf.invariance(net, x, 1, "rotate", [0, 40]),
    "occlusion": lambda net, x: zf.occlusion(net, x, 1, size=(5, 4), stride=4),
    "probe": lambda net, x: zf.probe(
        net, x, np.arange(COUNT) % 2, layers=[layer(net)], train=3, validation=1
    ),
    "project": lambda net, x: zf.project(net, x, layer(net)),
    "sanity": lambda net, x: zf.sanity(net, x[:2], 1, shown=1),
    "top_activations": lambda net, x: zf.top_activations(net, x, k=2),
    "top.project": lambda net, x: zf.top_activations(net, x)[layer(net)].project(
        net, x, [0, 5]
    ),
}


def layer(net: Any) -> str:
    return next(name for name in net.layers if name.startswith("conv2"))


def arrays(result: Any) -> Iterator[np.ndarray]:
    if dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from arrays(getattr(result, field.name))
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from arrays(value)
    elif isinstance(result, tuple):
        for value in result:
            yield from arrays(value)
    elif not isinstance(result, str):
        yield np.asarray(result)


@pytest.fixture(scope="module")
def networks() -> list[zf.networks.Network]:
    model = zf.ConvNet(ARCH, rngs=nnx.Rngs(0))
    return [zf.network(model), zf.network(lambda x: model(x), (14, 12, 3))]


@pytest.mark.parametrize("engine", [0, 1], ids=["ConvNet", "function"])
@pytest.mark.parametrize("name", TOOLS)
def test_tools(networks, name, engine):
    net = networks[engine]
    x = np.random.default_rng(0).standard_normal((COUNT, 14, 12, 3), np.float32)
    expected = list(arrays(TOOLS[name](net, x)))
    assert expected
    with jax.enable_x64(True):
        actual = list(arrays(TOOLS[name](net, x)))
    for one, two in zip(actual, expected, strict=True):
        if np.issubdtype(two.dtype, np.floating):
            np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-4)
        else:
            np.testing.assert_array_equal(one, two)

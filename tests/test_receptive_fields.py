"""Receptive fields of functions against `arch.py` and the support of gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import zfnet_jax as zf
from tests.networks import MIXED
from zfnet_jax.arch import Architecture, Dense, ReceptiveField
from zfnet_jax.networks import network

# Dense layers of the full width only take time.
ZFNET = zf.ablate(zf.ZFNET, widths={"fc6": 4, "fc7": 4})


@pytest.mark.parametrize("arch", [ZFNET, MIXED], ids=lambda arch: arch.name)
def test_a_traced_convnet_has_the_fields_of_its_description(arch: Architecture):
    model = zf.ConvNet(arch, rngs=nnx.Rngs(0))
    net = network(lambda images: model(images), (*arch.input_hw, arch.channels))
    assert len(net.layers) == len(arch.layers)
    for layer, spec in zip(net.layers.values(), arch.layers, strict=True):
        assert layer.shape == arch.shapes()[spec.name]
        if isinstance(spec, Dense):
            assert layer.receptive_field is None
        else:
            assert layer.receptive_field == zf.receptive_field(arch, spec.name)


# Networks with branches: a chain is a tuple of steps, and a step is a window (kind,
# kernel, dilation, stride; padded to the size of "SAME") or two chains that meet.
CHAINS = {
    "strides and dilations": (
        ("conv", (3, 2), 2, 1),
        ("mean", (2, 3), 1, 2),
        ("conv", (1, 3), 1, 2),
    ),
    "residual blocks": (
        ("conv", (3, 3), 1, 2),
        (
            "add",
            (("conv", (3, 1), 1, 2), ("conv", (1, 3), 2, 1)),
            (("mean", (1, 2), 1, 2),),
        ),
        ("add", (("conv", (2, 2), 1, 1),), ()),
    ),
    "concatenation": (
        ("concatenate", (("conv", (3, 3), 1, 2),), (("mean", (2, 1), 1, 2),)),
        ("conv", (2, 3), 1, 1),
    ),
    "maxima": (
        ("max", (3, 2), 1, 2),
        ("maximum", (("conv", (3, 3), 1, 1),), (("max", (2, 2), 1, 1),)),
    ),
}


def apply_chain(chain, x: jax.Array) -> jax.Array:
    """The values of a chain; all are positive, so no gradient cancels or is cut."""
    for step in chain:
        if step[0] in ("add", "concatenate", "maximum"):
            meet, *branches = step
            a, b = (apply_chain(branch, x) for branch in branches)
            if meet == "concatenate":
                # Half of the channels of each, so that widths stay.
                x = jnp.concatenate([a[..., :1], b[..., :1]], -1)
            else:
                x = {"add": jnp.add, "maximum": jnp.maximum}[meet](a, b)
            x = jax.nn.relu(x)
            continue
        kind, kernel, dilation, stride = step
        reach = [(size - 1) * dilation for size in kernel]
        padding = [(extent // 2, extent - extent // 2) for extent in reach]
        strides = (stride, stride)
        if kind == "conv":
            weights = jnp.full((*kernel, x.shape[-1], 2), 0.5)
            x = lax.conv_general_dilated(
                x,
                weights,
                strides,
                padding,
                rhs_dilation=(dilation, dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x + 0.1)
        else:
            pool: Any = nnx.avg_pool if kind == "mean" else nnx.max_pool
            x = pool(x, kernel, strides, padding)
    return x


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_stay_inside_on_branching_networks(name):
    chain, hw = CHAINS[name], (15, 13)
    net = network(lambda images: apply_chain(chain, images).mean((1, 2)), (*hw, 2))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0.1, 1, (1, *hw, 2)), jnp.float32)
    names = [name for name, layer in net.layers.items() if layer.receptive_field]
    assert len(names) >= 2
    features, backward = jax.vjp(lambda x: net.features(x, names), images)
    backward = jax.jit(backward)
    zeros = {name: jnp.zeros_like(value) for name, value in features.items()}
    for layer in names:
        field = net.layers[layer].receptive_field
        assert field is not None
        rows, columns = features[layer].shape[1:3]
        for row, column in ((0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)):
            signal = zeros[layer].at[0, row, column].set(1.0)
            gradient = np.asarray(backward({**zeros, layer: signal})[0][0])
            reached = np.abs(gradient).max(-1) > 0
            top, left, bottom, right = box = field.box(row, column)
            outside = reached.copy()
            outside[top:bottom, left:right] = False
            assert reached.any() and not outside.any(), (layer, row, column)
            # A maximum sends its gradient to one pixel of many.
            if name != "maxima" and box == field.box(row, column, clip=False):
                assert bounds(reached) == box, (layer, row, column)


def bounds(reached: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what is True."""
    rows, columns = np.flatnonzero(reached.any(1)), np.flatnonzero(reached.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def test_a_global_operation_sees_the_whole_image():
    def model(images):
        x = jax.nn.relu(images @ jnp.ones((3, 4)))
        gate = jax.nn.relu(x.mean((1, 2), keepdims=True) @ jnp.ones((4, 4)))
        return jax.nn.relu(x + gate).mean((1, 2))

    fields = [
        layer.receptive_field for layer in network(model, (9, 8, 3)).layers.values()
    ]
    assert fields[0] is not None and fields[0].size == (1, 1)
    assert set(fields[1:]) == {None}


def test_of_a_pooling_by_any_function():
    def model(x):
        def join(a, b):
            return lax.sqrt(a * a + b * b)

        windows = (1, 3, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 0), (0, 0), (0, 0))
        return lax.reduce_window(x, 0.0, join, *windows).mean((1, 2))

    pool, _ = network(model, (9, 8, 3)).layers.values()
    assert pool.receptive_field == ReceptiveField((3, 2), (2, 1), (-1, 0), (9, 8))

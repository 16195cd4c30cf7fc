"""Receptive fields of functions against `arch.py` and the support of gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import zfnet_jax as zf
from tests.networks import MIXED
from zfnet_jax.arch import Architecture, Dense, ReceptiveField
from zfnet_jax.networks import network


def check_by_architecture(arch: Architecture) -> None:
    """The call of a `ConvNet`, traced, has the layers and fields of its description."""
    model = zf.ConvNet(arch, rngs=nnx.Rngs(0))
    net = network(lambda images: model(images), (*arch.input_hw, arch.channels))
    assert len(net.layers) == len(arch.layers)
    for layer, spec in zip(net.layers.values(), arch.layers, strict=True):
        assert layer.shape == arch.shapes()[spec.name]
        if isinstance(spec, Dense):
            assert layer.receptive_field is None
        else:
            assert layer.receptive_field == zf.receptive_field(arch, spec.name)


@pytest.mark.parametrize("arch", [zf.ZFNET, zf.ALEXNET], ids=lambda a: a.name)
def test_of_the_papers_networks(arch):
    # Dense layers of the full width only take time.
    check_by_architecture(zf.ablate(arch, widths={"fc6": 4, "fc7": 4}))


def test_of_uneven_windows():
    check_by_architecture(MIXED)


def pairs(low: int, high: int):
    return st.tuples(st.integers(low, high), st.integers(low, high))


# Networks with branches, as nested tuples: a chain is a tuple of steps, and a step is a
# window or two chains that meet.


@st.composite
def windows(draw, stride: int):
    """Kind, kernel, dilation, and stride; padded to the size that "SAME" has."""
    kind = draw(st.sampled_from(["conv", "mean", "max"]))
    dilation = draw(st.integers(1, 2)) if kind == "conv" else 1
    return kind, draw(pairs(1, 3)), dilation, stride


@st.composite
def chains(draw, depth: int = 1):
    steps = []
    for _ in range(draw(st.integers(1, 3))):
        stride = draw(st.sampled_from([1, 1, 2]))
        if depth and draw(st.booleans()):
            meet = draw(st.sampled_from(["add", "concatenate", "maximum"]))
            # Both branches have the stride in their first window.
            branches = [
                (
                    draw(windows(stride)),
                    *draw(st.lists(windows(1), max_size=2)),
                )
                for _ in range(2)
            ]
            identity = stride == 1 and draw(st.booleans())
            steps.append((meet, branches[0], () if identity else branches[1]))
        else:
            steps.append(draw(windows(stride)))
    return tuple(steps)


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


def kinds(chain) -> set[str]:
    """Kinds of all steps."""
    return {
        kind
        for step in chain
        for kind in (
            {step[0]} | kinds(step[1]) | kinds(step[2])
            if step[0] in ("add", "concatenate", "maximum")
            else {step[0]}
        )
    }


@settings(max_examples=12)
@given(chains(), pairs(12, 17), st.randoms(use_true_random=False))
def test_gradients_stay_inside_on_branching_networks(chain, hw, random):
    def model(images):
        return apply_chain(chain, images).mean((1, 2))

    net = network(model, (*hw, 2))
    images = jnp.asarray(
        np.random.RandomState(random.randrange(1000)).uniform(0.1, 1, (1, *hw, 2)),
        jnp.float32,
    )
    names = [name for name, layer in net.layers.items() if layer.receptive_field]
    assert names or not kinds(chain) - {"maximum"}
    features, backward = jax.vjp(lambda x: net.features(x, names), images)
    zeros = {name: jnp.zeros_like(value) for name, value in features.items()}
    # A maximum sends its gradient to one pixel of many.
    exact = not kinds(chain) & {"max", "maximum"}
    for name in names:
        field = net.layers[name].receptive_field
        assert field is not None
        rows, columns = features[name].shape[1:3]
        for row, column in ((0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)):
            signal = zeros[name].at[0, row, column].set(1.0)
            gradient = np.asarray(backward({**zeros, name: signal})[0][0])
            reached = np.abs(gradient).max(-1) > 0
            assert reached.any()
            whole = field.box(row, column, clip=False)
            top, left, bottom, right = field.box(row, column)
            outside = reached.copy()
            outside[top:bottom, left:right] = False
            assert not outside.any(), (name, row, column)
            if exact and whole == (top, left, bottom, right):
                assert bounds(reached) == whole, (name, row, column)


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

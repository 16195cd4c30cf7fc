"""Pooling and unpooling on the CPU against their definitions, on random geometries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zfnet_jax import cpu, ops
from zfnet_jax.arch import MaxPool


def integers(*shape, seed=0, top=4):
    values = np.random.default_rng(seed).integers(-top, top + 1, shape)
    return values.astype(np.float32)


@functools.partial(jax.jit, static_argnums=2)
def pool_and_return(x, grad, spec):
    out, vjp, switches = jax.vjp(lambda x: ops.max_pool(x, spec), x, has_aux=True)
    return out, switches, vjp(grad)[0], ops.unpool(grad, switches, spec, x.shape[1:3])


@st.composite
def pools(draw):
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    edges = [
        (draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1)))
        for size in kernel
    ]
    return MaxPool("pool", kernel, stride, (edges[0], edges[1]))


@settings(max_examples=7)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)), pools(), st.sampled_from([0, 1, 9])
)
def test_it_is_the_definition(hw, spec, top):
    """From all equal (`top` 0), by way of many ties, to few of them."""
    assume(
        all(
            extent + sum(edge) >= size
            for extent, edge, size in zip(hw, spec.padding, spec.kernel, strict=True)
        )
    )
    x = integers(2, *hw, 3, top=top)
    grad = integers(
        *jax.eval_shape(lambda x: ops.max_pool(x, spec)[0], x).shape, seed=1
    )
    fast = pool_and_return(x, grad, spec)
    with cpu.use_definitions(True):
        plain = pool_and_return(x, grad, spec)
    for ours, expected in zip(fast, plain, strict=True):
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)


def test_places_by_hand():
    """The window of position (1, 1) starts at row 1, column 1 of a map 4 wide."""
    spec = MaxPool("pool", 3, 2, 1)
    switches = jnp.asarray([[0, 6], [8, 14]], jnp.int32).reshape(1, 2, 2, 1)
    places = cpu.pool.window_places(switches, spec, 4)
    # (0, 0) in the window at (-1, -1); (1, 2) at (-1, 1); (2, 0) at (1, -1); (3, 2).
    assert places.ravel().tolist() == [4, 7, 4, 7]
    assert places.dtype == jnp.uint8


def test_a_place_outside_the_window_gives_nothing():
    spec = MaxPool("pool", 2)
    y = jnp.asarray([[1.0, 2.0]]).reshape(1, 1, 2, 1)
    places = jnp.asarray([3, 4], jnp.uint8).reshape(y.shape)
    out = cpu.pool.unpool_windows(y, places, spec, (2, 4))
    assert out[0, ..., 0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]

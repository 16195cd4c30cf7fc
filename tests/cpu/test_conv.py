"""Convolution on the CPU against its definition, on every path it can take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.comparison import AS_USERS, distance
from zfnet_jax import cpu, ops
from zfnet_jax.arch import Conv

pytestmark = pytest.mark.usefixtures("compiled_well")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0, compiler_options=AS_USERS)
def run(spec, x, kernel, grad):
    """The value and gradients, the transpose, and the same for a fixed kernel."""
    out, vjp = jax.vjp(lambda x, kernel: ops.conv(x, kernel, spec), x, kernel)
    down = ops.conv_transpose(grad, kernel, spec, x.shape[1:3])
    fixed, of_x = jax.vjp(lambda x: ops.conv(x, kernel, spec), x)
    return out, *vjp(grad), down, fixed, *of_x(grad)


def check(spec, shape):
    x = normal(*shape)
    kernel = normal(*spec.kernel, shape[-1] // spec.groups, spec.features, seed=1)
    y = jax.eval_shape(lambda x, kernel: ops.conv(x, kernel, spec), x, kernel)
    grad = normal(*y.shape, seed=2)
    fast = run(spec, x, kernel, grad)
    with cpu.use_definitions(True):
        plain = run(spec, x, kernel, grad)
    for ours, expected in zip(fast, plain, strict=True):
        assert distance(ours, expected) < 1e-5


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        # Winograd: whole tiles, one output pixel, tiles cut on both sides.
        pytest.param(Conv("conv", 8, 3, padding=1), (2, 8, 8, 16), id="tiles"),
        pytest.param(Conv("conv", 3, 3), (1, 3, 3, 24), id="one-pixel"),
        pytest.param(Conv("conv", 5, 3, 1, ((0, 4), (1, 0))), (2, 7, 10, 17), id="cut"),
        # Kernels of three strides.
        pytest.param(Conv("conv", 4, 5, 2), (2, 10, 13, 20), id="zfnet-conv2"),
        pytest.param(Conv("conv", 4, 11, 4, 2), (1, 25, 34, 3), id="alexnet-conv1"),
        # Other kernels with many channels, and with few.
        pytest.param(Conv("conv", 4, (2, 3), (1, 2), 1), (2, 6, 7, 16), id="rectangle"),
        pytest.param(Conv("conv", 4, (4, 7), 2, 1), (2, 13, 16, 3), id="stride"),
        pytest.param(Conv("conv", 2, (2, 4)), (6, 430, 430, 1), id="in-parts"),
        # A kernel smaller than the stride leaves pixels that nothing reads.
        pytest.param(Conv("conv", 3, 2, stride=3), (2, 8, 10, 2), id="gaps"),
        pytest.param(Conv("conv", 4, 3, 2, 1, groups=2), (2, 8, 7, 6), id="groups"),
    ],
)
def test_it_is_the_definition(spec, shape):
    check(spec, shape)


@pytest.mark.parametrize(
    ("kernel", "stride", "channels", "winograd"),
    [
        (3, 1, 16, True),
        (3, 1, 15, False),
        (3, 2, 16, False),
        (5, 2, 4, True),
        (7, 2, 4, False),
        (11, 4, 3, True),
    ],
)
def test_winograd_is_chosen_where_it_pays(kernel, stride, channels, winograd):
    spec = Conv("conv", 4, kernel, stride, 2)
    x, weights = jnp.zeros((1, 8, 8, channels)), jnp.zeros((*spec.kernel, channels, 4))
    for trained, expected in (((0, 1), winograd), (0, False)):
        loss = jax.grad(lambda x, w: ops.conv(x, w, spec).sum(), trained)
        program = str(jax.make_jaxpr(loss)(x, weights))
        assert ("conv_general_dilated" in program) != expected


def test_it_maps_over_a_batch():
    spec = Conv("conv", 2, 3, padding=1)
    x, kernel = map(jnp.asarray, (normal(3, 2, 5, 6, 16), normal(3, 3, 16, 2)))

    @jax.jit
    def gradient(x):
        return jax.grad(lambda x: jnp.square(ops.conv(x, kernel, spec)).sum())(x)

    mapped = jax.jit(jax.vmap(gradient))(x)
    assert distance(mapped, np.stack([gradient(each) for each in x])) < 1e-5

"""The operations by hand, by their laws, and against NumPy in float64.

Every test runs on the definitions and on their CPU forms. Random data are small
integers wherever float32 then computes exactly, so that most comparisons need no
tolerance.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference_deconvnet as reference
from tests.comparison import distance
from zfnet_jax import cpu, ops
from zfnet_jax.arch import ContrastNorm, Conv, MaxPool


@pytest.fixture(autouse=True, params=["definition", "cpu"], scope="module")
def form(request) -> Iterator[str]:
    with cpu.use_definitions(request.param == "definition"):
        yield request.param


def integers(*shape, seed=0, top=4):
    values = np.random.default_rng(seed).integers(-top, top + 1, shape)
    return values.astype(np.float32)


def one_map(*rows):
    return np.array(rows, np.float32)[None, ..., None]


convolve = jax.jit(ops.conv, static_argnums=2)
transpose = jax.jit(ops.conv_transpose, static_argnums=(2, 3))
pool = jax.jit(ops.max_pool, static_argnums=1)
unpool = jax.jit(ops.unpool, static_argnums=(2, 3))
normalize = jax.jit(ops.contrast_norm, static_argnums=1)


# --- convolution and its adjoint ---


def test_conv_does_not_flip_its_kernel():
    x = np.zeros((1, 3, 4, 1), np.float32)
    x[0, 1, 1] = 1
    kernel = np.arange(1, 7, dtype=np.float32).reshape(2, 3, 1, 1)
    # The pixel meets the kernel's last entry first: correlation, not convolution.
    spec = Conv("conv", 1, (2, 3), padding=((0, 0), (2, 0)))
    out = convolve(x, kernel, spec)
    np.testing.assert_array_equal(out[0, ..., 0], [[0, 6, 5, 4], [0, 3, 2, 1]])


def test_conv_transpose_by_hand():
    """One value, stride 2: the kernel's copy lies at twice its place, less padding."""
    grad = one_map([0, 0], [10, 0])
    kernel = np.array([[1, 2, 3], [4, 5, 6]], np.float32).reshape(2, 3, 1, 1)
    spec = Conv("conv", 1, (2, 3), 2, ((0, 0), (1, 1)))
    out = transpose(grad, kernel, spec, (4, 4))
    # Window (1, 0) reads rows 2 and 3, columns -1 to 1; column -1 is padding.
    expected = [[0, 0, 0, 0], [0, 0, 0, 0], [20, 30, 0, 0], [50, 60, 0, 0]]
    np.testing.assert_array_equal(out[0, ..., 0], expected)


@functools.partial(jax.jit, static_argnums=0)
def convolve_and_back(spec, x, kernel, grad):
    out, vjp = jax.vjp(lambda x, kernel: ops.conv(x, kernel, spec), x, kernel)
    return out, *vjp(grad), ops.conv_transpose(grad, kernel, spec, x.shape[1:3])


@pytest.mark.parametrize(
    ("spec", "hw", "channels"),
    [
        (Conv("conv", 2, 3, padding=1), (5, 4), 16),
        (Conv("conv", 3, (1, 4), stride=(3, 2), padding=((2, 0), (0, 1))), (5, 7), 2),
        (Conv("conv", 2, 2, stride=3), (7, 8), 1),
        (Conv("conv", 4, 5, stride=2), (9, 10), 4),
        (Conv("conv", 6, (3, 2), padding=1, groups=2), (4, 5), 4),
    ],
)
def test_conv_and_what_comes_back_are_numpys(spec, hw, channels):
    """The gradient for x, which is the transpose, and the one for the kernel."""
    x = integers(2, *hw, channels)
    shape = (*spec.kernel, channels // spec.groups, spec.features)
    kernel, other = integers(*shape, seed=1), integers(*shape, seed=2)

    def by_numpy(kernel):
        bias = np.zeros(spec.features)
        return np.stack([reference.convolve(image, kernel, bias, spec) for image in x])

    expected = by_numpy(kernel)
    grad = integers(*expected.shape, seed=3)
    out, x_grad, kernel_grad, back = convolve_and_back(spec, x, kernel, grad)
    assert distance(out, expected) < 1e-6
    down = [reference.convolve_down(g, kernel, spec, x.shape[1:]) for g in grad]
    assert distance(x_grad, down) < 1e-6
    np.testing.assert_array_equal(back, down)
    # Adjoint to the kernel's part in the convolution, in a direction of its own.
    expected = np.vdot(by_numpy(other), grad)
    np.testing.assert_allclose(np.vdot(other, kernel_grad), expected, rtol=1e-5)


# --- max pooling and unpooling ---


@functools.partial(jax.jit, static_argnums=2)
def pool_and_back(x, grad, spec):
    out, vjp, switches = jax.vjp(lambda x: ops.max_pool(x, spec), x, has_aux=True)
    return out, switches, vjp(grad)[0], ops.unpool(grad, switches, spec, x.shape[1:3])


def test_overlapping_windows_by_hand():
    x = one_map([1, 5, 2, 0], [3, 4, 9, 7], [8, 6, 9, 2], [0, 1, 3, 4])
    # The windows cover rows and columns -1 to 1 and 1 to 3. The last one holds 9 twice.
    grad = one_map([10, 20], [30, -45])
    out, switches, *downs = pool_and_back(x, grad, MaxPool("pool", 3, 2, 1))
    np.testing.assert_array_equal(out[0, ..., 0], [[5, 9], [8, 9]])
    np.testing.assert_array_equal(switches[0, ..., 0], [[1, 6], [8, 6]])
    expected = [[0, 10, 0, 0], [0, 0, -25, 0], [30, 0, 0, 0], [0, 0, 0, 0]]
    for down in downs:
        np.testing.assert_array_equal(down[0, ..., 0], expected)


def test_the_first_of_equals_wins():
    """Most windows of a rectified map hold only zeros: this order is what is seen."""
    x = np.full((1, 5, 4, 1), -3, np.float32)
    grad = one_map([1, 2], [3, 4], [5, 6])
    _, switches, *downs = pool_and_back(x, grad, MaxPool("pool", 3, 2, 1))
    # First pixels inside the image: rows 0, 1 and 3, columns 0 and 1, four to a row.
    np.testing.assert_array_equal(switches[0, ..., 0], [[0, 1], [4, 5], [12, 13]])
    expected = np.zeros((5, 4))
    expected[[0, 0, 1, 1, 3, 3], [0, 1, 0, 1, 0, 1]] = [1, 2, 3, 4, 5, 6]
    for down in downs:
        np.testing.assert_array_equal(down[0, ..., 0], expected)
    # Signed zeros are equal.
    _, switches = pool(one_map([-0.0, 0.0, -0.0]), MaxPool("pool", (1, 2), 1))
    assert switches.ravel().tolist() == [0, 1]


def test_a_window_may_have_more_places_than_a_byte():
    x = np.arange(259.0, dtype=np.float32).reshape(1, 1, 259, 1)
    out, switches = pool(x, MaxPool("pool", (1, 258), 1))
    assert out.ravel().tolist() == switches.ravel().tolist() == [257, 258]


def test_nan_wins_and_the_last_of_them():
    spec = MaxPool("pool", (1, 3), 1)
    for values, switch in (([1, np.nan, 9], 1), ([np.nan, 5, np.nan], 2)):
        out, switches = pool(one_map(values), spec)
        assert np.isnan(out).all() and switches.item() == switch


@pytest.mark.parametrize(
    ("spec", "hw"),
    [
        (MaxPool("pool", 3, 2, 1), (9, 8)),
        (MaxPool("pool", (2, 3), (1, 4), ((1, 0), (0, 2))), (5, 9)),
        (MaxPool("pool", (4, 1), (3, 2), ((2, 3), (0, 0))), (7, 5)),
    ],
)
def test_pooling_and_unpooling_are_numpys(spec, hw):
    """From all equal, by way of many ties, to few; of either sign."""
    for top, shift in ((0, 0), (1, -1), (1, 0), (9, -5), (9, 5)):
        x = integers(2, *hw, 3, top=top) + np.float32(shift)
        expected, places = map(
            np.stack, zip(*(reference.pool(image, spec) for image in x), strict=True)
        )
        grad = integers(*expected.shape, seed=1)
        out, switches, *downs = pool_and_back(x, grad, spec)
        assert switches.dtype == np.int32
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(switches, places)
        sums = [
            reference.unpool(g, place, x.shape[1:], "sum")
            for g, place in zip(grad, places, strict=True)
        ]
        for down in downs:
            np.testing.assert_array_equal(down, sums)


def test_pooling_keeps_bfloat16():
    x, spec = integers(1, 5, 5, 2), MaxPool("pool", 3, 2, 1)
    grad = integers(1, 3, 3, 2, seed=1)
    expected = pool_and_back(x, grad, spec)
    narrow = pool_and_back(x.astype(jnp.bfloat16), grad.astype(jnp.bfloat16), spec)
    for ours, value in zip(narrow, expected, strict=True):
        assert ours.dtype == (np.int32 if value.dtype == np.int32 else jnp.bfloat16)
        np.testing.assert_array_equal(ours.astype(np.float32), value)


def test_pooling_maps_over_a_batch():
    x, spec = integers(3, 1, 5, 6, 2, top=1), MaxPool("pool", 3, 2, 1)
    expected = pool(x[:, 0], spec)
    mapped = jax.jit(jax.vmap(lambda image: ops.max_pool(image, spec)))(x)
    for ours, value in zip(mapped, expected, strict=True):
        np.testing.assert_array_equal(ours[:, 0], value)
    back = jax.jit(jax.vmap(lambda y, s: ops.unpool(y, s, spec, (5, 6))))(*mapped)
    np.testing.assert_array_equal(back[:, 0], unpool(*expected, spec, (5, 6)))


# --- contrast normalization ---


def test_contrast_norm_by_hand():
    x = jnp.asarray([1, 2, 3, 4], jnp.float32).reshape(1, 1, 1, 4)
    spec = ContrastNorm("norm", size=3, k=2.0, alpha=0.5, beta=2.0)
    # Sums of squares over each channel and its two neighbors: 5, 14, 29, 25.
    expected = [1 / 4.5**2, 2 / 9**2, 3 / 16.5**2, 4 / 14.5**2]
    np.testing.assert_allclose(normalize(x, spec).ravel(), expected, rtol=1e-6)
    # The window of an even size has one more channel before than after.
    spec = ContrastNorm("norm", size=2, k=0.0, alpha=1.0, beta=1.0)
    expected = [1 / 1, 2 / (1 + 4), 3 / (4 + 9), 4 / (9 + 16)]
    np.testing.assert_allclose(normalize(x, spec).ravel(), expected, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("size", [1, 2, 5])
def test_contrast_norm_is_pytorchs(size):
    """Even sizes included. PyTorch divides alpha by the size of the window."""
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    spec = ContrastNorm("norm", size, k=1.0, alpha=0.5)
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 7)).astype(np.float32)
    theirs = torch.nn.functional.local_response_norm(
        torch.tensor(np.moveaxis(x, -1, 1).copy()), size, 0.5 * size, spec.beta, 1.0
    )
    ours = np.moveaxis(np.asarray(normalize(x, spec)), -1, 1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


# --- 64 bits ---


def test_float64_is_computed_as_such():
    """Values and what comes back, through all operations."""
    conv, norm = Conv("conv", 4, 3, padding=1), ContrastNorm("norm", 4, 1.0, alpha=0.5)
    window = MaxPool("pool", 3, 2, 1)
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 7, 6, 16)), rng.normal(size=(3, 3, 16, 4))

    @jax.jit
    def run(x):
        def forward(x):
            y = ops.contrast_norm(ops.conv(x, jnp.asarray(kernel), conv), norm)
            return ops.max_pool(y, window)

        out, vjp, switches = jax.vjp(forward, x, has_aux=True)
        return out, switches, vjp(out)[0]

    with jax.enable_x64(True):
        out, switches, back = run(x)
    assert out.dtype == back.dtype == np.float64 and switches.dtype == np.int32
    mixed = reference.convolve(x[0], kernel, np.zeros(4), conv)
    scaled = mixed / reference.divisor(mixed, norm) ** norm.beta
    expected, places = reference.pool(scaled, window)
    assert distance(out[0], expected) < 1e-14
    down = reference.unpool(expected, places, scaled.shape, "sum")
    down = reference.normalize_down(down, mixed, norm)
    down = reference.convolve_down(down, kernel, conv, x.shape[1:])
    assert distance(back[0], down) < 1e-13

"""The operations against hand-worked cases, their laws, and loops in NumPy.

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
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def distinct(*shape, seed=0):
    """Integers of which no two are equal."""
    size = int(np.prod(shape))
    values = np.random.default_rng(seed).permutation(size) - size // 2
    return values.reshape(shape).astype(np.float32)


def windows(shape, spec):
    """Each output position with the slices of the padded map that it looks at."""
    (kernel_h, kernel_w), (step_h, step_w) = spec.kernel, spec.stride
    rows = (shape[1] + sum(spec.padding[0]) - kernel_h) // step_h + 1
    columns = (shape[2] + sum(spec.padding[1]) - kernel_w) // step_w + 1
    for i, j in np.ndindex(rows, columns):
        top, left = i * step_h, j * step_w
        yield i, j, slice(top, top + kernel_h), slice(left, left + kernel_w)


def output_hw(shape, spec):
    *_, (rows, columns, *_) = windows(shape, spec)
    return rows + 1, columns + 1


def padded(x, spec, value=0.0):
    return np.pad(x, ((0, 0), *spec.padding, (0, 0)), constant_values=value)


def loop_conv(x, kernel, spec):
    """Cross-correlation in float64, one output position at a time."""
    out = np.zeros((len(x), *output_hw(x.shape, spec), spec.features))
    source = padded(x.astype(np.float64), spec)
    inputs, outputs = x.shape[-1] // spec.groups, spec.features // spec.groups
    for i, j, rows, columns in windows(x.shape, spec):
        for group in range(spec.groups):
            maps = slice(group * outputs, (group + 1) * outputs)
            patch = source[:, rows, columns, group * inputs : (group + 1) * inputs]
            out[:, i, j, maps] = np.tensordot(patch, kernel[..., maps], 3)
    return out


def loop_conv_gradients(x, kernel, grad, spec):
    """Gradients of <loop_conv(x, kernel), grad> for x and for an ungrouped kernel."""
    source = padded(x.astype(np.float64), spec)
    x_grad, kernel_grad = np.zeros_like(source), np.zeros(kernel.shape)
    for i, j, rows, columns in windows(x.shape, spec):
        here = grad[:, i, j]
        x_grad[:, rows, columns] += np.tensordot(here, kernel, (1, 3))
        kernel_grad += np.einsum("bhwc,bo->hwco", source[:, rows, columns], here)
    (top, _), (left, _) = spec.padding
    return x_grad[:, top : top + x.shape[1], left : left + x.shape[2]], kernel_grad


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(spec, x, kernel, grad):
    out, vjp = jax.vjp(lambda x, kernel: ops.conv(x, kernel, spec), x, kernel)
    return out, *vjp(grad)


def pair(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def padding(high):
    return st.tuples(pair(0, high), pair(0, high))


def fits(hw, spec):
    return all(
        extent + sum(edges) >= kernel
        for extent, edges, kernel in zip(hw, spec.padding, spec.kernel, strict=True)
    )


# --- convolution ---


def test_conv_does_not_flip_its_kernel():
    x = np.zeros((1, 3, 4, 1), np.float32)
    x[0, 1, 1] = 1
    kernel = np.arange(1, 7, dtype=np.float32).reshape(2, 3, 1, 1)
    # The pixel meets the kernel's last entry first: correlation, not convolution.
    expected = [[0, 6, 5, 4], [0, 3, 2, 1]]
    spec = Conv("conv", 1, (2, 3), padding=((0, 0), (2, 0)))
    out = ops.conv(jnp.asarray(x), jnp.asarray(kernel), spec)
    np.testing.assert_array_equal(out[0, ..., 0], expected)


@pytest.mark.parametrize(
    ("spec", "hw", "channels"),
    [
        (Conv("conv", 2, 3, padding=1), (5, 4), 2),
        (Conv("conv", 3, (1, 4), stride=(3, 2), padding=((2, 0), (0, 1))), (5, 7), 2),
        (Conv("conv", 2, 2, stride=3), (7, 8), 1),
        (Conv("conv", 6, (3, 2), padding=1, groups=2), (4, 5), 4),
    ],
)
def test_conv_is_a_loop_over_windows(spec, hw, channels):
    x = integers(2, *hw, channels)
    kernel = integers(*spec.kernel, channels // spec.groups, spec.features, seed=1)
    expected = loop_conv(x, kernel, spec)
    out = ops.conv(jnp.asarray(x), jnp.asarray(kernel), spec)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("channels", [3, 16])
@settings(max_examples=4)
@given(pair(1, 9), pair(1, 4), pair(1, 3), padding(2))
def test_gradients_of_conv_are_a_loop_over_windows(channels, hw, kernel, stride, edges):
    spec = Conv("conv", 2, kernel, stride, edges)
    assume(fits(hw, spec))
    x = integers(2, *hw, channels)
    weights = integers(*kernel, channels, spec.features, seed=1)
    out = loop_conv(x, weights, spec)
    grad = integers(*out.shape, seed=2)
    expected = out, *loop_conv_gradients(x, weights, grad, spec)
    ours = value_and_gradients(spec, x, weights, grad)
    for actual, value in zip(ours, expected, strict=True):
        assert distance(actual, value) < 1e-5


# --- its adjoint ---


transposed = jax.jit(ops.conv_transpose, static_argnums=(2, 3))


def test_conv_transpose_by_hand():
    """One value, stride 2: the kernel's copy lies at twice its place, less padding."""
    grad = np.zeros((1, 2, 2, 1), np.float32)
    grad[0, 1, 0] = 10
    kernel = np.array([[1, 2, 3], [4, 5, 6]], np.float32).reshape(2, 3, 1, 1)
    spec = Conv("conv", 1, (2, 3), 2, ((0, 0), (1, 1)))
    out = transposed(grad, kernel, spec, (4, 4))
    # Window (1, 0) reads rows 2 and 3, columns -1 to 1; column -1 is padding.
    np.testing.assert_array_equal(
        out[0, ..., 0],
        [[0, 0, 0, 0], [0, 0, 0, 0], [20, 30, 0, 0], [50, 60, 0, 0]],
    )


def test_conv_transpose_of_groups_by_hand():
    """Each output goes down to the inputs of its own group only."""
    grad = np.array([10, 100, 1000, 10000], np.float32).reshape(1, 1, 1, 4)
    # [inputs of a group, outputs]: outputs 0 and 1 read input 0, 2 and 3 input 1.
    kernel = np.array([[1, 2, 3, 4]], np.float32).reshape(1, 1, 1, 4)
    out = transposed(grad, kernel, Conv("conv", 4, 1, groups=2), (1, 1))
    assert out.ravel().tolist() == [210, 43000]


@pytest.mark.parametrize(("groups", "inputs"), [(1, 16), (2, 1)])
@settings(max_examples=5)
@given(pair(1, 9), pair(1, 4), pair(1, 4), padding(3))
def test_conv_transpose_is_the_adjoint(groups, inputs, hw, kernel, stride, edges):
    """<conv(x), y> = <x, conv_transpose(y)>, exactly, for few and many channels."""
    spec = Conv("conv", 2 * groups, kernel, stride, edges, groups)
    assume(fits(hw, spec))
    x = integers(2, *hw, groups * inputs)
    weights = integers(*kernel, inputs, spec.features, seed=1)
    out = loop_conv(x, weights, spec)
    y = integers(*out.shape, seed=2)
    back = transposed(y, weights, spec, hw)
    assert back.shape == x.shape
    assert np.vdot(out, y) == np.vdot(x, np.asarray(back, np.float64))


# --- max pooling ---


def loop_pool(x, spec):
    """Maxima, and the first place in row-major order of each, in the unpadded map."""
    out = np.zeros((len(x), *output_hw(x.shape, spec), x.shape[-1]), np.float32)
    switches = np.zeros(out.shape, np.int32)
    (top, _), (left, _) = spec.padding
    batch, height, width, channels = x.shape
    for i, j, rows, columns in windows(x.shape, spec):
        for n, c in np.ndindex(batch, channels):
            places = [
                (row, column)
                for row in range(rows.start - top, rows.stop - top)
                for column in range(columns.start - left, columns.stop - left)
                if 0 <= row < height and 0 <= column < width
            ]
            values = [x[n, row, column, c] for row, column in places]
            row, column = places[values.index(max(values))]
            out[n, i, j, c] = max(values)
            switches[n, i, j, c] = row * width + column
    return out, switches


def scatter(grad, switches, hw):
    """Each value added at its switch."""
    batch, *_, channels = grad.shape
    out = np.zeros((batch, hw[0] * hw[1], channels), np.float32)
    for n, i, j, c in np.ndindex(*grad.shape):
        out[n, switches[n, i, j, c], c] += grad[n, i, j, c]
    return out.reshape(batch, *hw, channels)


@functools.partial(jax.jit, static_argnums=2)
def pool_and_gradient(x, grad, spec):
    out, vjp, switches = jax.vjp(lambda x: ops.max_pool(x, spec), x, has_aux=True)
    return out, switches, vjp(grad)[0]


def one_map(*rows):
    return np.array(rows, np.float32)[None, ..., None]


def test_overlapping_windows_by_hand():
    x = one_map([1, 5, 2, 0], [3, 4, 9, 7], [8, 6, 9, 2], [0, 1, 3, 4])
    spec = MaxPool("pool", 3, 2, 1)
    # The windows cover rows and columns -1 to 1 and 1 to 3. The last one holds 9 twice.
    grad = one_map([10, 20], [30, 40])
    out, switches, back = pool_and_gradient(x, grad, spec)
    np.testing.assert_array_equal(out[0, ..., 0], [[5, 9], [8, 9]])
    np.testing.assert_array_equal(switches[0, ..., 0], [[1, 6], [8, 6]])
    np.testing.assert_array_equal(
        back[0, ..., 0], [[0, 10, 0, 0], [0, 0, 60, 0], [30, 0, 0, 0], [0, 0, 0, 0]]
    )
    assert switches.dtype == jnp.int32


def test_the_first_of_equals_wins():
    """Most windows of a rectified map hold only zeros: this order is what is seen."""
    x = np.full((1, 5, 4, 1), -3, np.float32)
    spec = MaxPool("pool", 3, 2, 1)
    # First pixels inside the image: rows 0, 1 and 3, columns 0 and 1, four to a row.
    expected = [[0, 1], [4, 5], [12, 13]]
    grad = one_map([1, 2], [3, 4], [5, 6])
    out, switches, back = pool_and_gradient(x, grad, spec)
    np.testing.assert_array_equal(switches[0, ..., 0], expected)
    np.testing.assert_array_equal(out[0, ..., 0], np.full((3, 2), -3))
    sent = np.zeros((5, 4))
    sent[[0, 0, 1, 1, 3, 3], [0, 1, 0, 1, 0, 1]] = [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(back[0, ..., 0], sent)


def test_a_window_may_have_more_places_than_a_byte():
    x = np.arange(259.0, dtype=np.float32).reshape(1, 1, 259, 1)
    spec = MaxPool("pool", (1, 258), 1)
    out, switches = jax.jit(ops.max_pool, static_argnums=1)(x, spec)
    assert out.ravel().tolist() == switches.ravel().tolist() == [257, 258]


@st.composite
def pools(draw):
    kernel = draw(pair(1, 4))
    edges = draw(pair(0, kernel[0] - 1)), draw(pair(0, kernel[1] - 1))
    return MaxPool("pool", kernel, draw(pair(1, 4)), edges)


@settings(max_examples=9)
@given(pair(1, 8), pools(), st.sampled_from([0, 1, 9]), st.integers(-9, 9))
def test_pooling_is_a_loop_over_windows(hw, spec, top, shift):
    """From all equal (`top` 0), by way of many ties, to few; of either sign."""
    assume(fits(hw, spec))
    x = integers(2, *hw, 3, top=top) + np.float32(shift)
    expected, places = loop_pool(x, spec)
    grad = integers(*expected.shape, seed=1)
    out, switches, back = pool_and_gradient(x, grad, spec)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(switches, places)
    np.testing.assert_array_equal(back, scatter(grad, places, hw))
    # The switches say where the maxima are.
    flat = x.reshape(2, -1, 3)
    at = np.take_along_axis(flat, np.asarray(switches).reshape(2, -1, 3), 1)
    np.testing.assert_array_equal(at.reshape(out.shape), out)


@pytest.mark.parametrize(
    ("values", "switch"), [([1, np.nan, 9], 1), ([np.nan, 5, np.nan], 2)]
)
def test_nan_wins_and_the_last_of_them(values, switch):
    spec = MaxPool("pool", (1, 3), 1)
    out, switches = ops.max_pool(jnp.asarray(one_map(values)), spec)
    assert np.isnan(out).all() and switches.item() == switch


# --- unpooling ---


unpooled = jax.jit(ops.unpool, static_argnums=(2, 3))


def test_unpooling_by_hand():
    x = one_map([1, 5, 2, 0], [3, 4, 9, 7], [8, 6, 9, 2], [0, 1, 3, 4])
    spec = MaxPool("pool", 3, 2, 1)
    _, switches = ops.max_pool(jnp.asarray(x), spec)
    out = unpooled(one_map([1, 2], [3, -5]), switches, spec, (4, 4))
    # Windows (0, 1) and (1, 1) share the maximum at (1, 2).
    expected = [[0, 1, 0, 0], [0, 0, -3, 0], [3, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(out[0, ..., 0], expected)


def test_ties_of_windows_that_overlap_by_hand():
    """Stride 1: three windows of a row of zeros and a one share the one."""
    spec = MaxPool("pool", (1, 3), 1, ((0, 0), (1, 1)))
    x = jnp.asarray(one_map([0, 1, 0, 0]))
    _, switches = ops.max_pool(x, spec)
    out = unpooled(one_map([10, 20, 30, 40]), switches, spec, (1, 4))
    assert out.ravel().tolist() == [0, 60, 40, 0]


@settings(max_examples=9)
@given(pair(1, 8), pools(), st.sampled_from([0, 1, 9]))
def test_unpooling_is_a_loop_over_windows(hw, spec, top):
    """And the adjoint of pooling, which is linear while its switches are held."""
    assume(fits(hw, spec))
    _, places = loop_pool(integers(2, *hw, 3, top=top), spec)
    values = integers(*places.shape, seed=1, top=1)  # many of them 0
    summed = unpooled(values, places, spec, hw)
    np.testing.assert_array_equal(summed, scatter(values, places, hw))
    other = integers(2, *hw, 3, seed=2)
    picked = np.take_along_axis(
        other.reshape(2, -1, 3), places.reshape(2, -1, 3), 1
    ).reshape(places.shape)
    assert np.vdot(picked, values) == np.vdot(other, summed)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("spec", "hw"),
    [(MaxPool("pool", 3, 2, 1), (9, 8)), (MaxPool("pool", (2, 3), (1, 2)), (5, 9))],
)
def test_pooling_and_unpooling_are_pytorchs_where_no_maximum_is_shared(spec, hw):
    """`MaxUnpool2d` keeps the last of windows that share a maximum."""
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    x = integers(2, *hw, 3, top=1)
    window = spec.kernel, spec.stride, (spec.padding[0][0], spec.padding[1][0])
    maps = torch.tensor(np.moveaxis(x, -1, 1).copy())
    pooled, at = torch.nn.functional.max_pool2d(maps, *window, return_indices=True)
    values = integers(2, *pooled.shape[2:], 3, seed=1, top=1)
    _, switches = ops.max_pool(jnp.asarray(x), spec)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(switches), -1, 1), at)
    # Zero all windows but the last of each maximum, in row-major order.
    flat = np.asarray(switches).reshape(2, -1, 3)
    for n, i, c in np.ndindex(*flat.shape):
        if flat[n, i, c] in flat[n, i + 1 :, c]:
            values.reshape(2, -1, 3)[n, i, c] = 0
    theirs = torch.nn.MaxUnpool2d(*window)(
        torch.tensor(np.moveaxis(values, -1, 1).copy()), at, output_size=hw
    )
    ours = unpooled(values, switches, spec, hw)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(ours), -1, 1), theirs)


# --- types ---


def test_float64_is_computed_as_such():
    conv, pool = Conv("conv", 4, 3, padding=1), MaxPool("pool", 3, 2, 1)
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 7, 6, 16)), rng.normal(size=(3, 3, 16, 4))
    with jax.enable_x64(True):
        out = ops.conv(jnp.asarray(x), jnp.asarray(kernel), conv)
        pooled, switches = ops.max_pool(out, pool)
        back = ops.unpool(pooled, switches, pool, (7, 6))
    assert pooled.dtype == back.dtype == np.float64 and switches.dtype == np.int32
    assert distance(np.asarray(out), loop_conv(x, kernel, conv)) < 1e-14


# --- contrast normalization ---


def test_contrast_norm_of_one_pixel_by_hand():
    x = jnp.asarray([1, 2, 3, 4], jnp.float32).reshape(1, 1, 1, 4)
    spec = ContrastNorm("norm", size=3, k=2.0, alpha=0.5, beta=2.0)
    # Sums of squares over each channel and its two neighbours: 5, 14, 29, 25.
    divisors = [4.5**2, 9**2, 16.5**2, 14.5**2]
    np.testing.assert_allclose(
        ops.contrast_norm(x, spec).ravel(),
        [1 / divisors[0], 2 / divisors[1], 3 / divisors[2], 4 / divisors[3]],
        rtol=1e-6,
    )


@pytest.mark.parametrize("channels", [1, 8])
def test_contrast_norm_is_a_loop_over_channels(channels):
    spec = ContrastNorm("norm")
    x = 100 * normal(2, 3, 2, channels)
    expected = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        *pixel, c = place
        near = [x[(*pixel, d)] for d in range(channels) if abs(d - c) <= 2]
        squares = sum(float(value) ** 2 for value in near)
        expected[place] = x[place] / (2 + 1e-4 * squares) ** 0.75
    out = jax.jit(ops.contrast_norm, static_argnums=1)(x, spec)
    np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_contrast_norm_is_pytorchs(size):
    """Even sizes included. PyTorch divides alpha by the size of the window."""
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    spec = ContrastNorm("norm", size, k=1.0, alpha=0.5)
    x = normal(2, 3, 2, 7)
    theirs = torch.nn.functional.local_response_norm(
        torch.tensor(np.moveaxis(x, -1, 1).copy()), size, 0.5 * size, spec.beta, 1.0
    )
    ours = np.moveaxis(np.asarray(ops.contrast_norm(x, spec)), -1, 1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_contrast_norm_is_one_equation():
    """The ReLU rules know it by its name."""
    apply = lambda x: ops.contrast_norm(x, ContrastNorm("norm"))  # noqa: E731
    (equation,) = jax.make_jaxpr(apply)(jnp.zeros((1, 2, 2, 3))).eqns
    assert equation.params["name"] == "contrast_norm"


def test_contrast_norm_goes_down_by_its_derivative():
    """The vector-Jacobian product against differences, in float64."""
    spec = ContrastNorm("norm", size=4, k=1.0, alpha=0.5)
    x, y = np.random.default_rng(0).normal(size=(2, 1, 2, 1, 7))
    with jax.enable_x64(True):

        @jax.jit
        def product(x):
            return jnp.vdot(ops.contrast_norm(x, spec), y)

        back = np.asarray(jax.grad(product)(x))
        differences = np.zeros(x.shape)
        for place in np.ndindex(*x.shape):
            step = np.zeros(x.shape)
            step[place] = 1e-5
            differences[place] = (product(x + step) - product(x - step)) / 2e-5
    assert back.dtype == np.float64
    assert distance(back, differences) < 1e-8

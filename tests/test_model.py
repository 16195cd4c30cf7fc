"""The model against a plain reference: values, switches, gradients, dropout."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from jax import lax

from zfnet_jax.arch import (
    ALEXNET,
    ZFNET,
    ZFNET32,
    ZFNET_PLAIN,
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
    ablate,
)
from zfnet_jax.model import Affine, ConvNet, Features

NARROW = {"conv1": 8, "conv2": 16, "conv3": 20, "conv5": 16, "fc6": 24, "fc7": 20}


def narrow(arch, *remove, input_hw: int | tuple[int, int] = 32):
    widths = {name: width for name, width in NARROW.items() if name not in remove}
    return ablate(arch, remove, widths).with_input(input_hw).with_classes(10)


# What the paper's networks do not hold: a pooling of the image and of a pooled map,
# groups, rectangles, lopsided padding, and a normalisation just before a dense layer.
ODD = Architecture(
    "odd",
    (21, 26),
    (
        MaxPool("pool0", (1, 2), (1, 2)),
        Conv("conv1", 8, (3, 2), stride=(2, 1), padding=((1, 0), (0, 1))),
        MaxPool("pool1", 2, 2, ((1, 0), (0, 1))),
        MaxPool("pool2", (3, 2), 2),
        Conv("conv2", 6, 2, groups=2),
        ContrastNorm("norm2", size=3, k=1.0, alpha=0.1),
        Dense("logits", 4, relu=False),
    ),
    channels=2,
)

# Architecture, scale of the images and their seed. Inputs of the paper lie within about
# ±128, and only there does normalisation matter.
NETS = {
    "zfnet32": (narrow(ZFNET32, "conv3", "conv4"), 1.0, 2),
    "zfnet": (narrow(ZFNET, "conv3", "conv4", "fc7", input_hw=(64, 80)), 100.0, 1),
    "alexnet": (
        narrow(ALEXNET, "conv3", "conv4", "conv5", "pool5", "fc7", input_hw=64),
        100.0,
        1,
    ),
    "odd": (ODD, 1.0, 1),
}


def drawn(key, shape, dtype):
    """He's initialisation, drawn by NumPy: no program to compile for each shape."""
    rng = np.random.default_rng(shape)
    return jnp.asarray(rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1])), dtype)


def built(arch, **kwargs):
    return ConvNet(arch, init=drawn, rngs=nnx.Rngs(0), **kwargs)


def random_images(arch, batch=2, scale=1.0, seed=0):
    shape = (batch, *arch.input_hw, arch.channels)
    values = scale * np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


def with_biases(model, scale=0.1, seed=0):
    """Give a new model's biases, which are zero, values that matter."""
    rng = np.random.default_rng(seed)
    for name in model.arch.kernel_shapes():
        bias = affine(model, name).bias
        bias[...] = jnp.asarray(scale * rng.normal(size=bias.shape), jnp.float32)
    return model


@functools.cache
def network(name):
    arch, scale, seed = NETS[name]
    model = with_biases(built(arch), 0.1 * scale)
    return model, random_images(arch, scale=scale, seed=seed)


def tiny(*layers, hw=(4, 4), channels=1, classes=2):
    """A model of a few layers with the classifier that they need."""
    logits = Dense("logits", classes, relu=False)
    arch = Architecture("tiny", hw, (*layers, logits), channels)
    return built(arch)


def affine(model, name) -> Affine:
    return getattr(model, name)


def parameters(model):
    layers = {name: affine(model, name) for name in model.arch.kernel_shapes()}
    return {name: (one.kernel[...], one.bias[...]) for name, one in layers.items()}


def distance(actual, expected):
    """Relative L2 distance."""
    assert actual.shape == expected.shape
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def reference(arch, weights, x):
    """Every layer in plain lax, as the paper draws it, and maps before each ReLU."""
    features, unrectified = {}, {}

    def relu(name, x):
        unrectified[name] = x
        return jnp.where(x > 0, x, 0)

    for layer in arch.layers:
        match layer:
            case Conv():
                kernel, bias = weights[layer.name]
                x = lax.conv_general_dilated(
                    x,
                    kernel,
                    layer.stride,
                    layer.padding,
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                    feature_group_count=layer.groups,
                )
                x = relu(layer.name, x + bias)
            case MaxPool():
                window, stride = (1, *layer.kernel, 1), (1, *layer.stride, 1)
                edges = ((0, 0), *layer.padding, (0, 0))
                x = lax.reduce_window(x, -jnp.inf, lax.max, window, stride, edges)
            case ContrastNorm():
                near = np.arange(x.shape[-1])
                reach = (layer.size - 1) // 2
                band = abs(near[:, None] - near) <= reach
                squares = x**2 @ band.astype(np.float32)
                x = x * (layer.k + layer.alpha * squares) ** -layer.beta
            case Dense():
                kernel, bias = weights[layer.name]
                x = x.reshape(len(x), -1) @ kernel + bias
                x = relu(layer.name, x) if layer.relu else x
        features[layer.name] = x
    return features, unrectified


class Results(NamedTuple):
    """A network and the reference on one batch.

    Gradients are those of one random combination of the logits, for parameters and
    images.
    """

    logits: jax.Array
    gradients: tuple
    features: Features
    expected: tuple[dict, dict]
    expected_gradients: tuple


@functools.cache
def results(name):
    model, images = network(name)
    directions = random_images(model.arch)[:, 0, 0, 0, None] * np.arange(
        1.0, model.arch.num_classes + 1, dtype=np.float32
    )

    def ours(model, images):
        logits = model(images)
        return jnp.vdot(logits, directions), logits

    def plain(weights, images):
        maps = reference(model.arch, weights, images)
        return jnp.vdot(maps[0]["logits"], directions), maps

    @jax.jit
    def run(model, images):
        gradients, logits = jax.grad(ours, (0, 1), has_aux=True)(model, images)
        gradients = parameters(gradients[0]), gradients[1]
        weights = parameters(model)
        expected, maps = jax.grad(plain, (0, 1), has_aux=True)(weights, images)
        return Results(logits, gradients, model.features(images), maps, expected)

    return jax.device_get(run(model, images))


def pool_windows(x, pool):
    """Windows of a map, [b, H, W, c, taps]; padding is -inf."""
    edges = ((0, 0), *pool.padding, (0, 0))
    padded = np.pad(np.asarray(x), edges, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, pool.kernel, (1, 2))
    windows = windows[:, :: pool.stride[0], :: pool.stride[1]]
    return windows.reshape(*windows.shape[:4], -1)


def first_maxima(x, pool):
    """Flat index of each window's first maximum."""
    tap = pool_windows(x, pool).argmax(-1)
    (top, _), (left, _) = pool.padding
    rows, columns = np.ogrid[: tap.shape[1], : tap.shape[2]]
    rows = rows * pool.stride[0] - top + tap.transpose(0, 3, 1, 2) // pool.kernel[1]
    columns = (
        columns * pool.stride[1] - left + tap.transpose(0, 3, 1, 2) % (pool.kernel[1])
    )
    return (rows * x.shape[2] + columns).transpose(0, 2, 3, 1)


# --- the forward pass and the reference ---


@pytest.mark.parametrize("name", NETS)
def test_features_are_the_reference(name):
    model, images = network(name)
    out = results(name).features
    shapes = model.arch.shapes()
    assert out.features.keys() == shapes.keys()
    for layer, feature in out.features.items():
        assert feature.shape == (len(images), *shapes[layer])
        assert feature.dtype == np.float32
        assert distance(feature, results(name).expected[0][layer]) < 1e-5
        if layer.startswith(("conv", "fc")):
            assert feature.min() == 0 < feature.max()


@pytest.mark.parametrize("name", NETS)
def test_switches_are_those_of_the_rectified_map(name):
    model, images = network(name)
    out = results(name).features
    pools = {layer.name for layer in model.arch.layers if isinstance(layer, MaxPool)}
    assert out.switches.keys() == pools
    below = images
    for layer in model.arch.layers:
        if isinstance(layer, MaxPool):
            switches = out.switches[layer.name]
            assert switches.dtype == np.int32
            np.testing.assert_array_equal(switches, first_maxima(below, layer))
        below = out.features[layer.name]


@pytest.mark.parametrize("name", NETS)
def test_the_call_is_the_last_of_features(name):
    model, images = network(name)
    out = jax.jit(lambda model, x: (model(x), model.features(x)))(model, images)
    assert out[0].dtype == np.float32
    np.testing.assert_array_equal(out[0], out[1].features["logits"])
    # Its gradient's forward pass convolves in another form, equal to rounding.
    assert distance(results(name).logits, out[0]) < 1e-5


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_the_references(name):
    """Where rounding decides a maximum or a sign, gradients may rightly differ.

    That is the only cause: none of these is so near.
    """
    model, images = network(name)
    out = results(name)
    nearest = margin(model.arch, images, *out.expected)
    assert nearest > 1e-5, "choose another seed"
    ours, expected = out.gradients, out.expected_gradients
    assert distance(ours[1], expected[1]) < 1e-5
    for layer in model.arch.kernel_shapes():
        for actual, value in zip(ours[0][layer], expected[0][layer], strict=True):
            assert distance(actual, value) < 1e-5, layer


def margin(arch, images, features, unrectified):
    """How near, relative to its map, the nearest decision is that counts.

    Of a map that is pooled next only maxima count; within a window, only how far the
    maximum is above the next value, where it passes the ReLU.
    """
    nearest = np.inf
    below = images
    for layer, following in zip(arch.layers, (*arch.layers[1:], None), strict=True):
        if layer.name in unrectified:
            map_ = np.asarray(unrectified[layer.name])
            if isinstance(following, MaxPool):
                map_ = pool_windows(map_, following).max(-1)
            nearest = min(nearest, abs(map_).min() / abs(map_).max())
        if isinstance(layer, MaxPool):
            ordered = np.sort(pool_windows(below, layer))
            # Of equal values of a ReLU all are zero, and no gradient passes.
            counts = (ordered[..., -1] > 0) | (layer is arch.layers[0])
            gap = (ordered[..., -1] - ordered[..., -2])[counts]
            nearest = min(nearest, gap.min() / abs(ordered[..., -1]).max())
        below = features[layer.name]
    return nearest


def test_a_tie_that_the_bias_makes_goes_to_its_first_pixel():
    """Switches and gradients are those of the rectified map, not of the products."""
    model = tiny(Conv("conv1", 1, 1), MaxPool("pool1", 2, 2), hw=(2, 2), classes=1)
    affine(model, "conv1").kernel[...] = jnp.ones((1, 1, 1, 1))
    affine(model, "conv1").bias[...] = jnp.full(1, 1e4)
    affine(model, "logits").kernel[...] = jnp.ones((1, 1))
    # At 1e4 float32 has steps of 1e-3: the second pixel is greater by less.
    images = jnp.array([1.0, 1.0001, 0.5, 0.25]).reshape(1, 2, 2, 1)
    switch = jax.jit(model.features)(images).switches["pool1"]
    gradient = jax.jit(jax.grad(lambda x: model(x).sum()))(images)
    assert switch.item() == 0
    assert gradient.ravel().tolist() == [1, 0, 0, 0]


def test_dark_windows_point_at_their_first_pixel():
    """Before the ReLU the last pixel is the greatest; after it all are zero."""
    model = tiny(Conv("conv1", 1, 1), MaxPool("pool1", 3, 2, 1), hw=(4, 4))
    affine(model, "conv1").kernel[...] = jnp.ones((1, 1, 1, 1))
    images = jnp.arange(-16.0, 0.0).reshape(1, 4, 4, 1)
    out = jax.jit(model.features)(images)
    assert not out.features["conv1"].any() and not out.features["pool1"].any()
    assert out.switches["pool1"].ravel().tolist() == [0, 1, 4, 5]
    np.testing.assert_array_equal(apply(model, images), out.features["logits"])


def test_dense_layers_read_rows_then_columns_then_channels():
    model = tiny(hw=(2, 3), channels=2, classes=12)
    affine(model, "logits").kernel[...] = jnp.eye(12)
    images = jnp.arange(12.0).reshape(1, 2, 3, 2)
    assert model(images).ravel().tolist() == list(range(12))
    assert model.classify(images).ravel().tolist() == list(range(12))


# --- what is asked for ---


def test_until_stops():
    model, images = network("alexnet")
    whole = results("alexnet").features
    out = jax.jit(lambda images: model.features(images, until="pool2"))(images)
    assert out.features.keys() == {"conv1", "norm1", "pool1", "conv2", "norm2", "pool2"}
    assert out.switches.keys() == {"pool1", "pool2"}
    for name, feature in out.features.items():
        np.testing.assert_allclose(feature, whole.features[name], 1e-5, 1e-4)
    last = jax.eval_shape(lambda images: model.features(images, "logits"), images)
    assert last.features.keys() == whole.features.keys()


def test_an_unknown_layer_lists_what_exists():
    model, images = network("odd")
    message = r"^odd has no layer 'conv7'; it has pool0 conv1 pool1 pool2 .* logits$"
    with pytest.raises(ValueError, match=message):
        model.features(images, until="conv7")


@pytest.mark.parametrize("name", ["features", "arch", "dtype", "eval"])
def test_a_layer_cannot_take_the_name_of_something_else(name):
    with pytest.raises(ValueError, match=f"tiny: no layer can be named '{name}'"):
        tiny(Dense(name, 2))


@pytest.mark.parametrize(
    "shape", [(2, 26, 21, 2), (2, 21, 26, 3), (21, 26, 2), (2, 1, 21, 26, 2)]
)
def test_images_of_another_shape_are_refused(shape, monkeypatch):
    # As users see it: without the tests' own shape checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model, _ = network("odd")
    images = jnp.zeros(shape)
    for call in (model, model.features):
        with pytest.raises(ValueError) as caught:
            call(images)
        assert str(caught.value) == (
            f"odd takes images of shape (batch, 21, 26, 2), not {shape}"
        )


# --- dropout ---


@jax.jit
def apply(model, images, keys=None):
    return model(images, dropout_keys=keys)


def passing_on(*rates, units=64):
    """A model whose logits are its one-pixel image, through layers that drop out."""
    layers = [
        Dense(f"fc{index}", units, dropout=rate) for index, rate in enumerate(rates)
    ]
    model = tiny(*layers, hw=(1, 1), channels=units, classes=units)
    for name in model.arch.kernel_shapes():
        affine(model, name).kernel[...] = jnp.eye(units)
    return model, jnp.arange(1.0, units + 1).reshape(1, 1, 1, units)


def test_dropout_drops_at_its_rate_and_keeps_the_expectation():
    rate, trials = 0.2, 4000
    model, image = passing_on(rate, units=8)
    keys = jax.random.split(jax.random.key(0), trials)
    out = np.asarray(apply(model, jnp.repeat(image, trials, 0), keys))
    value = np.asarray(image.ravel())
    dropped = out == 0
    kept = np.broadcast_to(value / (1 - rate), out.shape)
    np.testing.assert_allclose(out, np.where(dropped, 0, kept), 1e-6)
    # Five standard deviations of a mean over the trials.
    slack = 5 * np.sqrt(rate * (1 - rate) / trials)
    assert abs(dropped.mean(0) - rate).max() < slack
    assert abs(out.mean(0) / value - 1).max() < slack / (1 - rate)
    # Units are dropped independently, and so are images.
    for draws in (dropped, dropped.reshape(8, -1).T):
        correlation = np.corrcoef(draws.T) - np.eye(8)
        assert abs(correlation).max() < 5 / np.sqrt(len(draws))


def test_an_images_mask_is_its_own():
    """It depends on the image's key, not on the batch, and differs between layers."""
    model, image = passing_on(0.5, 0.5)
    images = image * jnp.arange(1.0, 7).reshape(-1, 1, 1, 1)
    keys = jax.random.split(jax.random.key(0), 6)
    out = np.asarray(apply(model, images, keys))
    assert len({tuple(row) for row in out > 0}) == 6
    order = np.array([4, 0, 2, 2, 5, 1])
    np.testing.assert_array_equal(apply(model, images[order], keys[order]), out[order])
    # The same mask twice would keep a half; five standard deviations are 0.11.
    assert abs(np.mean(out > 0) - 0.25) < 0.11


def test_a_key_is_needed_for_each_image(monkeypatch):
    # As users see it: without the tests' own shape checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model, image = passing_on(0.5)
    with pytest.raises(ValueError, match="2 dropout keys for 1 images"):
        model(image, dropout_keys=jax.random.split(jax.random.key(0), 2))


def test_dropout_is_off_without_keys():
    model, image = passing_on(0.5, 0.5)
    np.testing.assert_array_equal(apply(model, image), image.reshape(1, -1))


def test_no_dropout_layer_no_dropout():
    model, image = passing_on(0.0, units=8)
    keys = jax.random.split(jax.random.key(0), 1)
    np.testing.assert_array_equal(apply(model, image, keys), image.reshape(1, -1))


# --- types, parameters, transformations ---


def test_bfloat16_is_for_the_computation_only():
    _, images = network("odd")
    half = with_biases(built(ODD, dtype=jnp.bfloat16))
    for kernel, bias in parameters(half).values():
        assert kernel.dtype == bias.dtype == jnp.float32
    logits = jax.jit(half)(images)
    assert logits.dtype == jnp.float32
    # bfloat16 has 8 bits: 0.004 for each rounding.
    assert 1e-4 < distance(logits, results("odd").logits) < 5e-2
    out = jax.eval_shape(half.features, images)
    dtypes = {name: feature.dtype for name, feature in out.features.items()}
    assert dtypes.pop("logits") == jnp.float32
    assert set(dtypes.values()) == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    "arch", [ZFNET, ZFNET_PLAIN, ALEXNET, ZFNET32], ids=lambda a: a.name
)
def test_parameters_have_the_papers_names(arch):
    model = nnx.eval_shape(lambda: ConvNet(arch, 7, rngs=nnx.Rngs(0)))
    leaves = jax.tree_util.tree_leaves_with_path(model)
    shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
    expected = {}
    for name, kernel in arch.with_classes(7).kernel_shapes().items():
        expected[f".{name}.kernel.value"] = kernel
        expected[f".{name}.bias.value"] = kernel[-1:]
    assert shapes == expected
    assert {leaf.dtype for _, leaf in leaves} == {jnp.dtype(jnp.float32)}


def test_num_classes():
    model = built(ODD, num_classes=7)
    assert model.arch == ODD.with_classes(7)
    assert jax.eval_shape(model, random_images(ODD)).shape == (2, 7)
    assert built(ODD).arch == ODD


def test_kernels_are_drawn_at_hes_scale_and_biases_are_zero():
    logits = Dense("logits", 60, relu=False)
    arch = Architecture("net", (7, 6), (Conv("conv1", 40, (5, 4)), logits))

    @jax.jit
    def weights(key):
        return parameters(ConvNet(arch, rngs=nnx.Rngs(params=key)))

    first, again, other = (
        jax.device_get(weights(jax.random.key(seed))) for seed in (0, 0, 1)
    )
    for layer, (kernel, bias) in first.items():
        # A few thousand draws: the deviation is known to some percent.
        fan_in = kernel.size / kernel.shape[-1]
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_in), rel=0.1)
        assert abs(kernel.mean()) < 0.1 * kernel.std()
        assert not bias.any()
        np.testing.assert_array_equal(kernel, again[layer][0])
        assert not np.array_equal(kernel, other[layer][0])


def test_init_draws_every_kernel_by_a_key_of_its_own():
    keys = []

    def one_hundredth(key, shape, dtype):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return jnp.full(shape, 0.01, dtype)

    model = ConvNet(ODD, init=one_hundredth, rngs=nnx.Rngs(0))
    for kernel, bias in parameters(model).values():
        assert (kernel == np.float32(0.01)).all() and not bias.any()
    assert len(set(keys)) == len(ODD.kernel_shapes())


def test_the_model_is_a_pytree():
    model, images = network("odd")
    doubled = jax.tree.map(lambda weights: 2 * weights, model)
    assert isinstance(doubled, ConvNet) and doubled.arch == model.arch
    for name, weights in parameters(model).items():
        for ours, weight in zip(parameters(doubled)[name], weights, strict=True):
            np.testing.assert_array_equal(ours, 2 * weight)
    gradient = jax.jit(jax.grad(lambda model: model(images).sum()))(model)
    assert jax.tree.structure(gradient) == jax.tree.structure(model)


def test_jit_compiles_once_for_new_weights():
    model, images = network("odd")
    traces = []

    @jax.jit
    def traced(model, images):
        traces.append(images.shape)
        return model(images)

    assert distance(traced(model, images), results("odd").logits) < 1e-6
    other = traced(built(ODD), images)
    assert distance(other, results("odd").logits) > 1e-3
    assert len(traces) == 1


def test_64_bit_mode_changes_no_type_and_no_value():
    model, images = network("zfnet32")
    with jax.enable_x64(True):
        out = jax.jit(lambda model, x: model.features(x))(model, images)
    expected = results("zfnet32").features
    for name, feature in out.features.items():
        assert feature.dtype == jnp.float32
        assert distance(feature, expected.features[name]) < 1e-6
    for name, switches in out.switches.items():
        assert switches.dtype == jnp.int32
        np.testing.assert_array_equal(switches, expected.switches[name])


def test_vmap_over_images_is_a_batch():
    model, images = network("odd")

    @jax.jit
    @jax.vmap
    def alone(image):
        return model(image[None])[0], model.features(image[None])

    logits, out = alone(images)
    assert distance(logits, results("odd").logits) < 1e-5
    for name, switches in results("odd").features.switches.items():
        np.testing.assert_array_equal(out.switches[name][:, 0], switches)

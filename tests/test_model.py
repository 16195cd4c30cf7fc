"""The model against NumPy and plain lax: values, switches, gradients, dropout."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from jax import lax

from tests import reference_deconvnet as reference
from tests.comparison import distance
from tests.networks import ODD, random_model
from zfnet_jax.arch import (
    ZFNET,
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
    ablate,
)
from zfnet_jax.model import ConvNet, Features

NARROW = ablate(
    ZFNET,
    remove=("conv3", "conv4", "fc7"),
    widths={"conv1": 8, "conv2": 16, "conv5": 16, "fc6": 24},
)
# Architecture and scale of its images. Inputs of the paper lie within about ±128, and
# only there does normalization matter.
NETS = {
    "zfnet": (NARROW.with_input((64, 80)).with_classes(10), 100.0),
    "odd": (ODD, 1.0),
}


class Results(NamedTuple):
    """A network on one batch.

    Gradients are those of one random combination of the logits, for parameters and
    images.
    """

    model: ConvNet
    images: jax.Array
    logits: jax.Array
    features: Features
    gradients: tuple[Any, jax.Array]
    expected_gradients: tuple[Any, jax.Array]


def parameters(model):
    layers = {name: getattr(model, name) for name in model.arch.kernel_shapes()}
    return {name: (one.kernel[...], one.bias[...]) for name, one in layers.items()}


def plain(arch, weights, x):
    """The logits in plain lax, as the paper draws the layers."""
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
                x = jax.nn.relu(x + bias)
            case MaxPool():
                window, stride = (1, *layer.kernel, 1), (1, *layer.stride, 1)
                edges = ((0, 0), *layer.padding, (0, 0))
                x = lax.reduce_window(x, -jnp.inf, lax.max, window, stride, edges)
            case ContrastNorm():
                apart = np.arange(x.shape[-1]) - np.arange(x.shape[-1])[:, None]
                before = layer.size // 2
                band = (apart >= -before) & (apart < layer.size - before)
                squares = x**2 @ band.T.astype(np.float32)
                x = x * (layer.k + layer.alpha * squares) ** -layer.beta
            case Dense():
                kernel, bias = weights[layer.name]
                x = x.reshape(len(x), -1) @ kernel + bias
                x = jax.nn.relu(x) if layer.relu else x
    return x


@functools.cache
def results(name) -> Results:
    arch, scale = NETS[name]
    model = random_model(arch)
    rng = np.random.default_rng(1)
    shape = (2, *arch.input_hw, arch.channels)
    images = jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
    directions = rng.normal(size=(2, arch.num_classes)).astype(np.float32)

    def ours(model, images):
        logits = model(images)
        return jnp.vdot(logits, directions), logits

    def theirs(weights, images):
        return jnp.vdot(plain(arch, weights, images), directions)

    @jax.jit
    def run(model, images):
        gradients, logits = jax.grad(ours, (0, 1), has_aux=True)(model, images)
        gradients = parameters(gradients[0]), gradients[1]
        expected = jax.grad(theirs, (0, 1))(parameters(model), images)
        return logits, model.features(images), gradients, expected

    return Results(model, images, *jax.device_get(run(model, images)))


@pytest.mark.parametrize("name", NETS)
def test_features_and_switches_are_those_of_numpy(name):
    model, images, logits, out, *_ = results(name)
    arch, weights = model.arch, reference.weights_of(model)
    assert out.features.keys() == arch.shapes().keys()
    assert all(x.dtype == np.float32 for x in out.features.values())
    for i, image in enumerate(np.asarray(images)):
        for step in reference.forward(arch, weights, image, "logits"):
            layer = step.layer.name
            assert distance(out.features[layer][i], step.out) < 1e-5
            if step.switches is not None:
                assert out.switches[layer].dtype == np.int32
                np.testing.assert_array_equal(out.switches[layer][i], step.switches)
    # The forward pass of a gradient convolves in another form, equal to rounding.
    assert distance(logits, out.features["logits"]) < 1e-5


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_those_of_plain_lax(name):
    out = results(name)
    assert distance(out.gradients[1], out.expected_gradients[1]) < 1e-5
    for layer, expected in out.expected_gradients[0].items():
        for actual, value in zip(out.gradients[0][layer], expected, strict=True):
            assert distance(actual, value) < 1e-5, layer


def tiny(*layers, hw=(4, 4), channels=1, classes=2):
    """A model of a few layers with the classifier that they need; weights are zero."""
    logits = Dense("logits", classes, relu=False)
    arch = Architecture("tiny", hw, (*layers, logits), channels)
    return ConvNet(arch, init=lambda key, *spec: jnp.zeros(*spec), rngs=nnx.Rngs(0))


def test_a_tie_that_the_bias_makes_goes_to_its_first_pixel():
    """Switches and gradients are those of the rectified map, not of the products."""
    model = tiny(Conv("conv1", 1, 1), MaxPool("pool1", 2, 2), hw=(2, 2), classes=1)
    model.conv1.kernel[...] = jnp.ones((1, 1, 1, 1))
    model.conv1.bias[...] = jnp.full(1, 1e4)
    model.logits.kernel[...] = jnp.ones((1, 1))
    # At 1e4 float32 has steps of 1e-3: the second pixel is greater by less.
    images = jnp.array([1.0, 1.0001, 0.5, 0.25]).reshape(1, 2, 2, 1)
    switch = jax.jit(model.features)(images).switches["pool1"]
    gradient = jax.jit(jax.grad(lambda x: model(x).sum()))(images)
    assert switch.item() == 0
    assert gradient.ravel().tolist() == [1, 0, 0, 0]


def test_until_stops():
    model, images, *_ = results("odd")
    out = jax.eval_shape(lambda images: model.features(images, until="pool1"), images)
    assert out.features.keys() == {"pool0", "conv1", "pool1"}
    assert out.switches.keys() == {"pool0", "pool1"}


def test_a_layer_cannot_take_the_name_of_something_else():
    with pytest.raises(ValueError, match="tiny: no layer can be named 'features'"):
        tiny(Dense("features", 2))


def test_images_of_another_shape_are_refused(monkeypatch):
    # As users see it: without the tests' own shape checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    message = r"odd takes images of shape \(batch, 29, 46, 2\), not \(2, 46, 29, 2\)"
    with pytest.raises(ValueError, match=message):
        results("odd").model(jnp.zeros((2, 46, 29, 2)))


# --- dropout ---


@jax.jit
def apply(model, images, keys=None):
    return model(images, dropout_keys=keys)


def identity_network(*rates, units=64):
    """A model whose logits are its one-pixel image, through layers that drop out."""
    layers = [
        Dense(f"fc{index}", units, dropout=rate) for index, rate in enumerate(rates)
    ]
    model = tiny(*layers, hw=(1, 1), channels=units, classes=units)
    for name in model.arch.kernel_shapes():
        getattr(model, name).kernel[...] = jnp.eye(units)
    return model, jnp.arange(1.0, units + 1).reshape(1, 1, 1, units)


def test_dropout_drops_at_its_rate_and_keeps_the_expectation():
    rate, trials = 0.2, 4000
    model, image = identity_network(rate, units=8)
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


def test_the_mask_of_an_image_is_its_own():
    """It depends on the image's key, not on the batch, and differs between layers."""
    model, image = identity_network(0.5, 0.5)
    images = image * jnp.arange(1.0, 7).reshape(-1, 1, 1, 1)
    keys = jax.random.split(jax.random.key(0), 6)
    out = np.asarray(apply(model, images, keys))
    assert len({tuple(row) for row in out > 0}) == 6
    order = np.array([4, 0, 2, 2, 5, 1])
    np.testing.assert_array_equal(apply(model, images[order], keys[order]), out[order])
    # The same mask twice would keep a half; five standard deviations are 0.11.
    assert abs(np.mean(out > 0) - 0.25) < 0.11
    # Without keys nothing is dropped.
    np.testing.assert_array_equal(apply(model, images), images.reshape(6, -1))


# --- types, parameters, transformations ---


def test_bfloat16_is_for_the_computation_only():
    model, images, logits, *_ = results("odd")
    half = ConvNet(ODD, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for name, (kernel, bias) in parameters(model).items():
        assert getattr(half, name).kernel[...].dtype == jnp.float32
        getattr(half, name).kernel[...], getattr(half, name).bias[...] = kernel, bias
    # bfloat16 has 8 bits: 0.004 for each rounding.
    assert 1e-4 < distance(jax.jit(half)(images), logits) < 5e-2
    out = jax.eval_shape(half.features, images)
    dtypes = {name: feature.dtype for name, feature in out.features.items()}
    assert dtypes.pop("logits") == jnp.float32
    assert set(dtypes.values()) == {jnp.dtype(jnp.bfloat16)}


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


def test_the_model_is_a_pytree():
    model = results("odd").model
    doubled = jax.tree.map(lambda weights: 2 * weights, model)
    assert isinstance(doubled, ConvNet) and doubled.arch == model.arch
    np.testing.assert_array_equal(doubled.conv1.kernel, 2 * model.conv1.kernel[...])

"""Attribution maps by hand, by laws and by independent implementations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zfnet_jax as zf
from tests import reference_deconvnet as reference
from tests.comparison import distance
from tests.networks import as_function, random_model
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.attribution import attribute
from zfnet_jax.deconvnet import backproject
from zfnet_jax.networks import network
from zfnet_jax.projections import project
from zfnet_jax.relu_rules import with_relu_rule

RULES = ("gradient", "guided", "deconvnet")


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return rng.normal(size=shape).astype(np.float32)


LAYERS = (
    Conv("conv1", 4, kernel=3, padding=1),
    MaxPool("pool1", kernel=3, stride=2, padding=1),
    ContrastNorm("norm1", alpha=0.3),
    Conv("conv2", 5, kernel=3, padding=1),
    Dense("fc3", 6),
    Dense("logits", 3, relu=False),
)
SMALL = Architecture("small", (9, 8), LAYERS, channels=2)
IMAGES = draw(4, 9, 8, 2)
TARGETS = np.array([2, 0, 1, 2])


@pytest.fixture(scope="module")
def model() -> zf.ConvNet:
    return random_model(SMALL, seed=6)


@functools.partial(jax.jit, static_argnums=(0, 1))
def pull_back(fn, rule, images, signal):
    """A signal sent down a function by a rule, without the package's networks."""
    return jax.vjp(with_relu_rule(fn, rule), images)[1](signal)[0]


def two_layers(x):
    """Of the image (1, 2): hidden units (0, 3, 1), then (1, 0), then logits (2, -1)."""
    first = jnp.array([[1.0, 1.0, 3.0], [-1.0, 1.0, -1.0]])
    second = jnp.array([[2.0, 1.0], [1.0, -1.0], [-2.0, 1.0]])
    last = jnp.array([[2.0, -1.0], [3.0, 1.0]])
    hidden = jax.nn.relu(x.reshape(-1, 2) @ first)
    return jax.nn.relu(hidden @ second) @ last


@pytest.mark.parametrize(
    ("rule", "target", "expected"),
    [
        # (2, 3) comes down on the upper ReLU; then (4, 2, -4) or, where the silent unit
        # passes it too, (7, -1, -1) on the lower one.
        ("gradient", 0, (-10, 6)),
        ("guided", 0, (2, 2)),
        ("deconvnet", 0, (7, -7)),
        # (-1, 1); then (-2, -1, 2), nothing, or (1, -1, 1).
        ("gradient", 1, (5, -3)),
        ("guided", 1, (0, 0)),
        ("deconvnet", 1, (4, -2)),
    ],
)
def test_two_relus_by_hand(rule, target, expected):
    x = np.array([1, 2], np.float32).reshape(1, 1, 2, 1)
    np.testing.assert_array_equal(two_layers(x), [[2, -1]])
    maps = attribute(two_layers, x, target, rule=rule)
    assert maps.dtype == x.dtype and maps.shape == x.shape
    np.testing.assert_array_equal(maps.reshape(-1), expected)


@pytest.mark.parametrize(
    "targets",
    [1, [1, "cat", 1], jnp.array([1, 1, 1])],
    ids=str,
)
def test_the_gradient_of_a_linear_function_is_its_weights(targets):
    weights, x = draw(2 * 3 * 2, 4), draw(3, 2, 3, 2)
    net = network(
        lambda x: x.reshape(len(x), -1) @ weights,
        (2, 3, 2),
        class_names=("bird", "cat", "dog", "frog"),
    )
    maps = attribute(net, x, targets)
    np.testing.assert_allclose(maps, [weights[:, 1].reshape(2, 3, 2)] * 3, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_convnet_agrees_with_loops_in_float64(rule, model):
    """With the contrast normalization, by the page and as a plain function."""
    weights = reference.weights_of(model)
    norm = "backprop" if rule == "gradient" else "skip"
    expected = [
        reference.descend(
            reference.forward(SMALL, weights, image, "logits"),
            weights,
            np.eye(3)[target],
            rule,
            norm=norm,
        )
        for image, target in zip(IMAGES, TARGETS, strict=True)
    ]
    maps = attribute(model, IMAGES, TARGETS, rule=rule)
    assert maps.shape == IMAGES.shape and maps.dtype == np.float32
    assert distance(maps, expected) < 1e-5
    maps = attribute(as_function(model), IMAGES, TARGETS, rule=rule)
    assert distance(maps, expected) < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_on_the_model_s_own_call_is_its_projection(rule, model):
    """`with_relu_rule` knows nothing of `project`, which starts with the logit."""
    logits = np.asarray(model(IMAGES))
    unit = int(logits.sum(0).argmax())
    assert (logits[:, unit] > 0).all()  # A rule that rectifies has no other scale.
    signal = np.where(np.arange(3) == unit, logits, 0)
    expected = pull_back(model, rule, IMAGES, signal)
    projections = project(model, IMAGES, "logits", unit, rule=rule)
    assert distance(projections.pixels, expected) < 1e-5
    pixels = backproject(model, IMAGES, "logits", signal, rule=rule)
    assert distance(pixels, expected) < 1e-5
    maps = attribute(model, IMAGES, unit, rule=rule)
    assert distance(maps * logits[:, unit, None, None, None], expected) < 1e-5


def test_batches_change_nothing(model):
    calls = []
    together = attribute(model, IMAGES, TARGETS)
    maps = attribute(
        network(model),
        IMAGES,
        TARGETS,
        batch_size=3,
        progress=lambda *done: calls.append(done),
    )
    assert distance(maps, together) < 1e-5
    assert calls == [(3, 4), (4, 4)]


def test_any_scalar_is_a_class(model):
    """The difference of two logits, as a network of one output."""

    def difference(x):
        logits = model(x)
        return logits[:, :1] - 2 * logits[:, 1:2]

    expected = pull_back(difference, "guided", IMAGES, np.ones((4, 1), np.float32))
    assert distance(attribute(difference, IMAGES, 0, rule="guided"), expected) < 1e-5


def test_a_rule_needs_relus_and_only_those():
    rule = "deconvnet"
    x = draw(1, 2, 2, 1)

    def linear(x):
        return x.sum((1, 2))

    def curved(x):
        return jnp.tanh(jax.nn.silu(jax.nn.relu(linear(x))))

    with pytest.raises(ValueError, match="no ReLU"):
        attribute(linear, x, 0, rule=rule)
    with pytest.raises(ValueError, match=r"(?s)strict=False.*tanh") as raised:
        attribute(curved, x, 0, rule=rule)
    assert "logistic" in str(raised.value)
    (expected,) = jax.vjp(curved, x)[1](np.ones((1, 1), np.float32))
    maps = attribute(curved, x, 0, rule=rule, strict=False)
    np.testing.assert_allclose(maps, np.maximum(expected, 0), rtol=1e-5)

"""Attribution maps by hand, by laws and by independent implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zfnet_jax as zf
from tests import reference_deconvnet as reference
from tests.comparison import distance
from tests.networks import MIXED, as_function, random_model
from zfnet_jax.attribution import attribute
from zfnet_jax.networks import network

RULES = ("gradient", "guided", "deconvnet")


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return rng.normal(size=shape).astype(np.float32)


IMAGES = draw(4, 23, 19, 3)
TARGETS = np.array([2, 0, 1, 2])


@pytest.fixture(scope="module")
def model() -> zf.ConvNet:
    return random_model(MIXED, seed=6)


def two_layers(x):
    """For the image (1, 2): hidden (0, 3, 1), then (1, 0), then logits (2, -1)."""
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


def test_the_gradient_of_a_linear_function_is_its_weights():
    weights, x = draw(2 * 3 * 2, 4), draw(3, 2, 3, 2)
    net = network(
        lambda x: x.reshape(len(x), -1) @ weights,
        (2, 3, 2),
        class_names=("bird", "cat", "dog", "frog"),
    )
    for targets in (1, [1, "cat", 1], jnp.array([1, 1, 1])):
        maps = attribute(net, x, targets)
        expected = [weights[:, 1].reshape(2, 3, 2)] * 3
        np.testing.assert_allclose(maps, expected, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_convnet_agrees_with_loops_in_float64(rule, model):
    """With the contrast normalization, by the page and as a plain function."""
    weights = reference.weights_of(model)
    norm = "backprop" if rule == "gradient" else "skip"
    expected = [
        reference.descend(
            reference.forward(MIXED, weights, image, "logits"),
            weights,
            np.eye(4)[target],
            rule,
            norm=norm,
        )
        for image, target in zip(IMAGES, TARGETS, strict=True)
    ]
    for net in (model, as_function(model)):
        maps = attribute(net, IMAGES, TARGETS, rule=rule)
        assert maps.dtype == np.float32
        assert distance(maps, expected) < 1e-5


def test_batches_change_nothing(model):
    together, calls = attribute(model, IMAGES, TARGETS), []
    options = {"batch_size": 3, "progress": lambda *done: calls.append(done)}
    assert distance(attribute(model, IMAGES, TARGETS, **options), together) < 1e-5
    assert calls == [(3, 4), (4, 4)]


def test_a_rule_needs_relus_and_only_those():
    x = draw(1, 2, 2, 1)

    def linear(x):
        return x.sum((1, 2))

    def curved(x):
        return jnp.tanh(jax.nn.silu(jax.nn.relu(linear(x))))

    with pytest.raises(ValueError, match="no ReLU"):
        attribute(linear, x, 0, rule="deconvnet")
    with pytest.raises(ValueError, match=r"(?s)strict=False.*tanh"):
        attribute(curved, x, 0, rule="deconvnet")
    (expected,) = jax.vjp(curved, x)[1](np.ones((1, 1), np.float32))
    maps = attribute(curved, x, 0, rule="deconvnet", strict=False)
    np.testing.assert_allclose(maps, np.maximum(expected, 0), rtol=1e-5)

"""The ReLUs of a function, and the operations that a ReLU rule says nothing about."""

import re
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from zfnet_jax import cpu, ops
from zfnet_jax.arch import MaxPool
from zfnet_jax.relu_audit import Audit
from zfnet_jax.relu_rules import with_relu_rule

X = jnp.array([-2.0, 0.0, 3.0, 5.0, -1.0])
BATCH = jnp.arange(24.0).reshape(4, 6) - 11

relu = jax.nn.relu


def findings(fn, x: Any = X):
    """Descriptions of the operations that are reported, one for each."""
    audit = Audit(jax.make_jaxpr(fn)(x))
    return [operation for _, operation in audit.findings.values()]


def complaint(fn, x: Any = X, **options) -> str:
    """The one message that with_relu_rule raises."""
    with pytest.raises(ValueError) as raised:
        with_relu_rule(fn, "guided", **options)(x)
    return str(raised.value)


@jax.custom_vjp
def exponential(x):
    return jnp.exp(x)


exponential.defvjp(lambda x: (jnp.exp(x), None), lambda _, g: (g,))

COMPARISON = "select_n by a comparison with a constant"

REFUSED = {
    "tanh": (["tanh"], jnp.tanh),
    "silu": (["logistic", "mul of two inputs"], jax.nn.silu),
    "exp": (["exp"], jnp.exp),
    "abs": (["abs"], jnp.abs),
    "product": (["mul of two inputs"], lambda x: x * x[::-1]),
    "quotient": (["div by an input"], lambda x: 1 / x),
    "hard tanh": (
        ["max with a constant", "min with a constant"],
        lambda x: jnp.clip(x, -1, 1),
    ),
    "minimum": (["min with a constant"], lambda x: jnp.minimum(x, 0)),
    "scaled cap": (["min with a constant"], lambda x: jnp.minimum(relu(x) - 1, 6)),
    "unknown": (["max with a constant"], lambda x: jnp.maximum(x, jnp.arange(5.0) * 0)),
    "leaky": ([COMPARISON], jax.nn.leaky_relu),
    "leaky maximum": (["max of a value"], lambda x: jnp.maximum(x, x / 10)),
    "leaky of relus": (["sub of the ReLUs"], lambda x: relu(x) - 0.1 * relu(-x)),
    "absolute of relus": (["add of the ReLUs"], lambda x: relu(x) + relu(-x)),
    "where": ([COMPARISON], lambda x: jnp.where(x > 0, x, 0)),
    "gate": (
        ["convert_element_type by a comparison", "mul of two inputs"],
        lambda x: x * (x > 0),
    ),
    "table": (
        ["gather by a comparison"],
        lambda x: jnp.stack([0 * x, x])[(x > 0).astype(int), jnp.arange(5)],
    ),
    "derivative": ([COMPARISON], jax.grad(lambda x: relu(x).sum())),
    "in a scan": (["tanh"], lambda x: lax.scan(lambda c, y: (c, jnp.tanh(y)), 0, x)[1]),
    "in a carry": (
        ["mul of two inputs"],
        lambda x: lax.fori_loop(0, 3, lambda i, c: c * x, jnp.ones(5)),
    ),
    "in a custom_vjp": (["exp"], exponential),
    "softplus": (["exp", "log"], lambda x: jnp.log(1 + jnp.exp(x))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_operation_is_reported_with_its_line(name):
    expected, fn = REFUSED[name]
    reported = findings(lambda x: fn(x * 1.0))
    assert len(reported) == len(expected), reported
    for operation, start in zip(reported, expected, strict=True):
        assert operation.startswith(start)
    message = complaint(lambda x: fn(relu(x * 1.0) - relu(x[::-1])))
    assert re.search(rf"{__file__}:\d+.*: .*{re.escape(expected[0])}", message)


PASSING = {
    "running maximum from 0": lambda x: lax.scan(
        lambda c, y: (jnp.maximum(c, y), None), jnp.array(0.0), x
    )[0],
    "two branches": lambda x: lax.cond(x[0] > 0, jnp.copy, jnp.negative, x),
    "concatenated relus": lambda x: jnp.concatenate([relu(x), relu(-x)]),
    "residual": lambda x: relu(x) + x + relu(x),
    "logarithm of weights": lambda x: relu(x) * jnp.log(jnp.arange(5.0)),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_is_linear_or_chooses_is_not_reported(name):
    assert findings(PASSING[name]) == []


def test_one_message_lists_every_line_once():
    def fn(x):
        for _ in range(3):
            x = jnp.tanh(relu(x)) + jnp.sin(x)
            x = jnp.exp(x)
        return x

    message = complaint(fn)
    first, *rows = message.splitlines()
    assert "'guided'" in first and "strict=False" in first
    assert [row.rpartition(": ")[2] for row in rows] == ["tanh", "sin", "exp"]
    lines = [int(re.findall(r"\.py:(\d+)", row)[0]) for row in rows]
    assert lines == [lines[0], lines[0], lines[0] + 1]
    assert "\n" not in complaint(lambda x: jnp.tanh(relu(x)))


def test_a_function_without_relu_names_what_it_has():
    message = complaint(lambda x: jax.nn.silu(x))
    assert "no ReLU" in message and "logistic" in message and __file__ in message
    assert "logistic" not in complaint(lambda x: jax.nn.silu(x), strict=False)


# Patterns of several operations.

SOFTMAXES = {
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "by hand": lambda x: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp(x)),
    "logsumexp": lambda x: x - jax.nn.logsumexp(x, axis=-1, keepdims=True),
    "reciprocal": lambda x: jnp.exp(x) * (1 / jnp.exp(x).sum(-1, keepdims=True)),
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_softmax_is_one_finding(name):
    # Written as two exponentials, the other one remains.
    first = ["exp"] if name == "reciprocal" else []
    assert findings(SOFTMAXES[name], BATCH) == [*first, "a softmax"]


def test_a_softmax_at_the_end_asks_for_the_logits():
    weights = np.ones((6, 3), np.float32)
    message = complaint(lambda x: jax.nn.softmax(relu(x) @ weights), BATCH)
    assert "a softmax at the end: take the logits instead" in message
    assert "\n" not in message
    # In the middle of a network it is no question of logits.
    message = complaint(lambda x: jax.nn.softmax(relu(x)) @ weights, BATCH)
    assert message.endswith("a softmax")


class Model(nnx.Module):
    def __init__(self, **layers):
        self.dense = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
        self.layer = nnx.data(layers["layer"])

    def __call__(self, x):
        return relu(self.layer(self.dense(x)))


def linen(module, **options):
    variables = module.init(jax.random.key(0), BATCH)
    keys = {"dropout": jax.random.key(1)}
    return lambda x: module.apply(variables, relu(x), rngs=keys, **options)


def equinox_batch_norm(x):
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(6, "batch", mode="batch")
    return jax.vmap(lambda y: norm(relu(y), state)[0], axis_name="batch")(x)


def batch_norm_by_hand(x):
    x = relu(x)
    return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)


TRAINING = {
    "nnx batch norm": Model(layer=nnx.BatchNorm(6, rngs=nnx.Rngs(0))),
    "nnx dropout": Model(layer=nnx.Dropout(0.5, rngs=nnx.Rngs(0))),
    "linen batch norm": linen(nn.BatchNorm(use_running_average=False)),
    "linen dropout": linen(nn.Dropout(0.5, deterministic=False)),
    "equinox batch norm": equinox_batch_norm,
    "equinox dropout with a key": lambda x: relu(
        eqx.nn.Dropout(0.5)(x, key=jax.random.key(0))
    ),
    "batch norm by hand": batch_norm_by_hand,
    "dropout by hand": lambda x: (
        relu(x) * jax.random.bernoulli(jax.random.key(0), 0.5, (6,))
    ),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_mode_asks_for_eval(name):
    message = complaint(TRAINING[name], BATCH)
    assert "call model.eval()" in message and "\n" not in message


def test_models_in_evaluation_pass():
    rngs = nnx.Rngs(0)
    for layer in (nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)):
        model = Model(layer=layer)
        model.eval()
        assert findings(model, BATCH) == []


NORMALIZATIONS = {
    "layer": lambda x: nnx.LayerNorm(6, rngs=nnx.Rngs(0))(x),
    "group": lambda x: nnx.GroupNorm(6, num_groups=2, rngs=nnx.Rngs(0))(x),
    "length": lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
    "local response": lambda x: (
        x / (1 + lax.reduce_window(x**2, 0.0, lax.add, (1, 3), (1, 1), "SAME")) ** 0.75
    ),
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_normalization_is_one_kind_of_finding(name):
    reported = findings(NORMALIZATIONS[name], BATCH)
    assert {*reported} == {"a normalization by the input's own statistics"}
    # Its variance, clipped at 0, is no ReLU.
    assert "no ReLU" in complaint(NORMALIZATIONS[name], BATCH, strict=False)


def test_keras_activations():
    keras = pytest.importorskip("keras", reason="needs the keras extra")
    if keras.backend.backend() != "jax":
        pytest.skip("needs KERAS_BACKEND=jax")
    layers = keras.layers
    for passing in (keras.activations.relu6, layers.ReLU(6.0), layers.ReLU(3.0)):
        assert findings(passing, BATCH) == []
        assert Audit(jax.make_jaxpr(passing)(BATCH)).rectifiers
    for leaky in (
        layers.ReLU(6.0, negative_slope=0.1),
        layers.LeakyReLU(),
        layers.ReLU(threshold=1.0),
    ):
        assert len(findings(leaky, BATCH)) == 1
    assert findings(keras.activations.softmax, BATCH) == ["a softmax"]
    norm = layers.BatchNormalization()
    norm.build((4, 6))
    training = "a normalization by the statistics of the batch: call model.eval()"
    # Training assigns new statistics, which Keras holds apart in a stateless call.
    state = (
        [v.value for v in norm.trainable_variables],
        [v.value for v in norm.non_trainable_variables],
    )
    for mode, expected in ((True, [training]), (False, [])):
        reported = findings(
            lambda x, mode=mode: norm.stateless_call(*state, x, training=mode)[0], BATCH
        )
        assert reported == expected


def test_windows_that_choose_pass_and_others_are_reported():
    pool = MaxPool("pool", kernel=3, stride=2)
    x = np.random.default_rng(0).normal(size=(1, 9, 9, 2)).astype("f4")
    with cpu.use_definitions(True):
        assert findings(lambda x: ops.max_pool(relu(x), pool)[0], x) == []

    def add_and_multiply(x):
        operands, init = (x, x), (np.float32(0), np.float32(1))
        combine = lambda a, b: (a[0] + b[0], a[1] * b[1])  # noqa: E731
        window, stride = (1, 3, 3, 1), (1,) * 4
        return lax.reduce_window(operands, init, combine, window, stride, "VALID")[0]

    assert "reduce_window" in complaint(lambda x: add_and_multiply(relu(x)), x)

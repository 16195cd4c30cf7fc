"""Another backward rule for every ReLU of any function."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from zfnet_jax import ops
from zfnet_jax.arch import Conv, MaxPool
from zfnet_jax.relu_rules import with_relu_rule

RULES = ("deconvnet", "guided", "gradient")

# A signal R that passes backward through a ReLU of X, worked out by hand.
X = jnp.array([-2.0, 0.0, 3.0, 5.0, -1.0])
R = jnp.array([1.0, 2.0, -4.0, 6.0, -7.0])
PULLED = {
    "deconvnet": [1.0, 2.0, 0.0, 6.0, 0.0],
    "guided": [0.0, 0.0, 0.0, 6.0, 0.0],
    "gradient": [0.0, 0.0, -4.0, 6.0, 0.0],
}

relu = jax.nn.relu


def backward(fn, rule, x=X, signal=R, **options):
    """The value of a function, and a signal pulled back through it by a rule."""
    value, vjp = jax.vjp(with_relu_rule(fn, rule, **options), x)
    return value, vjp(signal)[0]


@jax.custom_vjp
def reversed_relu(x):
    return relu(x) * 1.0


reversed_relu.defvjp(lambda x: (reversed_relu(x), None), lambda _, g: (-g,))


ZEROS = np.zeros(5, np.float32)

FORMS = {
    "jax.nn": relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "zeros turned": lambda x: jnp.maximum(x[None], jnp.zeros((5, 1)).T)[0],
    "zero first": lambda x: jnp.maximum(0.0, x),
    "lax zeros": lambda x: lax.max(jnp.zeros_like(x), x),
    "closed-over": lambda x: jnp.maximum(x, ZEROS),
    "zeros as argument of jit": lambda x: jax.jit(jnp.maximum)(jnp.zeros(()), x),
    "clip": lambda x: jnp.clip(x, 0),
}

CLIPPED = {
    "relu6": jax.nn.relu6,
    "clamp": lambda x: lax.clamp(0.0, x, 6.0),
    "maximum of minimum": lambda x: jnp.maximum(jnp.minimum(x, 6), 0),
    "across functions": lambda x: jax.jit(jnp.maximum)(jax.jit(jnp.minimum)(6.0, x), 0),
    "clip of relu": lambda x: jnp.clip(relu(x), 0, 6),
    "in a scan": lambda x: lax.scan(lambda c, y: (c, jax.nn.relu6(y)), 0, x)[1],
}

# Each holds more than a ReLU, so that the wrapping has to be built again.
WRAPPINGS = {
    "jit": jax.jit(lambda x: relu(x) + 0.0),
    "checkpoint with policy": jax.checkpoint(
        lambda x: relu(x) * 1.0, policy=jax.checkpoint_policies.everything_saveable
    ),
    "vmap": jax.vmap(lambda x: jnp.maximum(x, 0) * 1.0),
    "vmap of zeros": lambda x: jax.vmap(jnp.maximum)(x, jnp.zeros(5)),
    "scan carry": lambda x: lax.scan(lambda c, _: (relu(c), None), x, None, 2)[0],
    "switch": lambda x: lax.switch(jnp.array(1), [jnp.negative, relu, jnp.copy], x),
    "all at once": jax.jit(
        lambda x: lax.scan(
            lambda c, _: (
                lax.cond(
                    jnp.array(True),
                    jax.checkpoint(jax.vmap(jax.jit(lambda y: reversed_relu(y) + 0))),
                    jnp.negative,
                    c,
                ),
                None,
            ),
            x,
            None,
            2,
        )[0]
    ),
}


@pytest.mark.parametrize("form", [*FORMS, *WRAPPINGS])
def test_every_form_of_relu_gets_the_rule(form):
    fn = (FORMS | WRAPPINGS)[form]
    for rule in RULES:
        value, pulled = backward(fn, rule)
        np.testing.assert_array_equal(value, fn(X))
        np.testing.assert_array_equal(pulled, PULLED[rule])


def test_a_scalar_against_an_array_of_zeros():
    # The signal is rectified before it is summed over what the scalar was copied to.
    _, pulled = backward(lambda x: jnp.maximum(x[3], ZEROS), "deconvnet")
    np.testing.assert_array_equal(pulled, [0, 0, 0, 9, 0])


def test_while_loops_run_and_differentiate_what_lies_around_them():
    def fn(x, y):
        turns = lax.while_loop(
            lambda s: s[0] < 3, lambda s: (s[0] + 1, relu(s[1] - 1)), (0, y)
        )
        return relu(x) + turns[1]

    y = jnp.array([5.0, 1.0, 3.0, 4.0, 0.0])
    ruled = with_relu_rule(fn, "deconvnet")
    np.testing.assert_array_equal(ruled(X, y), fn(X, y))
    pulled = jax.vjp(lambda x: ruled(x, y), X)[1](R)[0]
    np.testing.assert_array_equal(pulled, PULLED["deconvnet"])


def test_what_holds_no_relu_stays_as_it_was():
    @jax.custom_vjp
    def scaled(x):
        return x * 2.0

    scaled.defvjp(lambda x: (scaled(x), None), lambda _, g: (100 * g,))
    np.testing.assert_array_equal(
        backward(lambda x: relu(scaled(x)), "gradient")[1],
        np.multiply(100, PULLED["gradient"]),
    )


# A network against backpropagation written by hand.

RNG = np.random.default_rng(0)
WEIGHTS = {
    name: RNG.normal(size=shape).astype(np.float32)
    for name, shape in {
        "first": (6, 8),
        "shared": (8, 8),
        "left": (8, 5),
        "right": (8, 7),
        "last": (12, 3),
    }.items()
}


def branching(x):
    """A layer used twice, two branches joined, one of them without a ReLU."""
    x = relu(x @ WEIGHTS["first"])
    for _ in range(2):
        x = jnp.maximum(x @ WEIGHTS["shared"], 0) + 0.1
    branches = [relu(x @ WEIGHTS["left"]), x @ WEIGHTS["right"]]
    return jnp.concatenate(branches) @ WEIGHTS["last"]


def branching_by_hand(x, signal, rule):
    """Values on the way up, and the signal on the way down, in float64 NumPy."""
    w = {name: array.astype(np.float64) for name, array in WEIGHTS.items()}

    def send(before, signal):
        if rule in ("deconvnet", "guided"):
            signal = np.where(signal > 0, signal, 0)
        return signal if rule == "deconvnet" else signal * (before > 0)

    first = x @ w["first"]
    second = np.maximum(first, 0) @ w["shared"]
    third = (np.maximum(second, 0) + 0.1) @ w["shared"]
    joint = np.maximum(third, 0) + 0.1
    left = joint @ w["left"]
    out = np.r_[np.maximum(left, 0), joint @ w["right"]] @ w["last"]
    signal = w["last"] @ signal
    signal = w["left"] @ send(left, signal[:5]) + w["right"] @ signal[5:]
    signal = w["shared"] @ send(third, signal)
    signal = w["shared"] @ send(second, signal)
    return out, w["first"] @ send(first, signal)


@pytest.mark.parametrize("rule", RULES)
def test_a_network_with_branches_agrees_with_backpropagation_by_hand(rule):
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    signals = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    ruled = with_relu_rule(branching, rule)

    def pull(x, signal):
        return jax.vjp(ruled, x)[1](signal)[0]

    batched = jax.jit(jax.vmap(pull))(xs, signals)
    for x, signal, together in zip(xs, signals, batched, strict=True):
        out, expected = branching_by_hand(x, signal, rule)
        np.testing.assert_array_equal(ruled(x), branching(x))
        np.testing.assert_allclose(ruled(x), out, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-3)


def test_clipped_relus_pass_inside_the_clip():
    x = jnp.array([-1.0, 0.0, 2.0, 4.0, 6.0, 9.0, 3.0])
    signal = jnp.array([1.0, 2.0, -3.0, 4.0, 5.0, 6.0, -7.0])
    expected = {
        "deconvnet": [1, 2, 0, 4, 5, 6, 0],
        "guided": [0, 0, 0, 4, 0, 0, 0],
        "gradient": [0, 0, -3, 4, 0, 0, -7],
    }
    for name, fn in CLIPPED.items():
        for rule in RULES:
            value, pulled = backward(fn, rule, x, signal)
            np.testing.assert_array_equal(value, [0, 0, 2, 4, 6, 6, 3], name)
            np.testing.assert_array_equal(pulled, expected[rule], name)


@functools.partial(jax.jit, static_argnums=1)
def contrast_norm(x, spec):
    return x / (spec + x * x)


def test_contrast_normalization_passes_the_signal():
    def fn(x):
        return relu(contrast_norm(relu(x), 2.0))

    slope = np.array([0, 0, 2 - 9, 2 - 25, 0]) / np.array([1, 1, 11, 27, 1]) ** 2
    for rule, pulled in (PULLED | {"gradient": R * slope}).items():
        for wrap in (jax.jit, jax.vmap):
            value, signal = backward(wrap(fn), rule)
            np.testing.assert_array_equal(value, fn(X))
            np.testing.assert_allclose(signal, pulled, rtol=1e-6)


def test_closed_over_parameters_are_differentiated_too():
    # Zeros and weights that are themselves being traced are constants to the inputs.
    def loss(scale, rule):
        return with_relu_rule(lambda x: relu(x * scale), rule)(X) @ R

    grads = {rule: jax.grad(loss)(1.0, rule) for rule in RULES}
    assert grads == {rule: jnp.array(PULLED[rule]) @ X for rule in RULES}


def test_operations_of_this_package_keep_their_derivatives():
    kernels = jax.random.normal(jax.random.key(1), (2, 3, 3, 16, 16))
    conv = Conv("conv", 16, (3, 3), (1, 1), ((1, 1), (1, 1)))
    pool = MaxPool("pool", (3, 3), (2, 2), ((1, 1), (1, 1)))

    def fn(x):
        # Rectified first, so that most windows of pooling are ties of zeros.
        x = ops.max_pool(relu(ops.conv(x, kernels[0], conv) - 9), pool)[0]
        return relu(ops.conv(x, kernels[1], conv)).sum()

    x = jax.random.normal(jax.random.key(0), (1, 9, 9, 16))
    ruled = jax.jit(jax.value_and_grad(with_relu_rule(fn, "gradient")))
    value, grad = ruled(x)
    expected, plain = jax.jit(jax.value_and_grad(fn))(x)
    assert value == expected
    np.testing.assert_allclose(grad, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())
    # Both kinds of operation have a derivative of their own.
    text = str(jax.make_jaxpr(with_relu_rule(fn, "gradient"))(x))
    names = re.findall(r"custom_vjp_call\[\s*name=(\w+)", text)
    assert sorted(names) == ["_clip"] * 2 + ["_float32_conv"] * 2 + ["max_pool"]


def test_trees_go_in_and_out():
    def fn(pair, *, scale, flag, name=None):
        first, second = pair["first"], pair["second"]
        assert flag is True and name == "net"
        return {
            "out": (relu(first) * 2 if flag else first) + second,
            "none": name and (),
        }

    ruled = functools.partial(
        with_relu_rule(fn, "deconvnet"), scale=0.5, flag=True, name="net"
    )
    pair = {"first": X, "second": np.float32(1)}
    value, vjp = jax.vjp(ruled, pair)
    np.testing.assert_array_equal(value["out"], relu(X) * 2 + 1)
    assert value["none"] == ()
    (pulled,) = vjp({"out": R, "none": ()})
    np.testing.assert_array_equal(pulled["first"], np.multiply(2, PULLED["deconvnet"]))
    assert pulled["second"] == R.sum()


# What is allowed to lie between ReLUs.

PASSING = {
    "maxout": lambda x: jnp.maximum(x[:-1], x[1:]),
    "maximum over pairs": lambda x: jnp.where(x[:-1] > x[1:], x[:-1], x[1:]),
    "reduced maximum": lambda x: x.max() + x.min(),
    "sort": jnp.sort,
    "where it is a number": lambda x: jnp.where(jnp.isnan(x), 0, x),
    "running maximum": lambda x: lax.scan(
        lambda c, y: (jnp.maximum(c, y), None), jnp.array(-jnp.inf), x
    )[0],
    "by an integer input": lambda x: x[jnp.arange(2)] * jnp.exp(jnp.arange(2.0)),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_is_linear_or_chooses_passes(name):
    fn = PASSING[name]
    # Jitted, since division by a constant is rounded otherwise in a program of its own.
    ruled = jax.jit(with_relu_rule(lambda x: fn(relu(x)), "gradient"))
    value, vjp = jax.vjp(ruled, X)
    expected, plain = jax.vjp(jax.jit(lambda x: fn(relu(x))), X)
    np.testing.assert_array_equal(value, expected)
    signal = jnp.ones_like(value)
    np.testing.assert_allclose(vjp(signal)[0], plain(signal)[0], rtol=1e-6)


def test_without_strict_only_relus_get_the_rule():
    # A variance that is clipped at 0 and a lower clip are no ReLUs.
    norm = nnx.LayerNorm(5, rngs=nnx.Rngs(0))

    def fn(x):
        return jnp.minimum(norm(relu(x) * 1.5), 1) + jax.nn.softmax(x)

    _, pulled = backward(fn, "gradient", strict=False)
    expected = jax.vjp(fn, X)[1](R)[0]
    np.testing.assert_allclose(pulled, expected, rtol=1e-5, atol=1e-6)

    def tail(y):
        return jnp.minimum(norm(y * 1.5), 1)

    _, pulled = backward(lambda x: tail(relu(x)), "deconvnet", strict=False)
    expected = jnp.maximum(jax.vjp(tail, relu(X))[1](R)[0], 0)
    np.testing.assert_allclose(pulled, expected, rtol=1e-5, atol=1e-6)


def test_a_function_without_relu_is_refused():
    for fn in (lambda x: x + relu(jnp.ones(5)), lambda x: jnp.ones(3)):
        with pytest.raises(ValueError, match="no ReLU"):
            with_relu_rule(fn, "guided")(X)

"""Layers read off equations that are hard to read: names, shapes and values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from zfnet_jax.arch import ReceptiveField
from zfnet_jax.networks import network
from zfnet_jax.receptive_fields import IMAGES, Span, View, read_views
from zfnet_jax.tracing import trace

SHAPE = (4, 6, 3)


def images(count: int = 2) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(count, *SHAPE))
    return values.astype("f4")


def conv(x: Any, width: int, size: int = 3, stride: int = 1) -> jax.Array:
    """A convolution with random weights."""
    shape = (size, size, x.shape[-1], width)
    kernel = np.random.default_rng(width).normal(size=shape)
    return lax.conv_general_dilated(
        x,
        jnp.asarray(kernel, jnp.float32),
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def read(function, shape=(2, *SHAPE)) -> View:
    """The view of a function's result."""
    program, _ = trace(function, jax.ShapeDtypeStruct(shape, jnp.float32))
    return read_views(program, {program.inputs[0]: IMAGES})[program.outputs[0]]


def axes(view: View) -> str:
    """Meanings of the axes, by their first letters: `k` for channels, `-` if lost."""
    letters = {"batch": "b", "rows": "r", "columns": "c", "channels": "k", None: "-"}
    return "".join(letters[axis] for axis in view.axes)


def test_statistics_over_a_named_batch_are_refused():
    def model(x):
        def one(image):
            return (image - lax.pmean(image.mean((0, 1)), "batch")).mean((0, 1))

        return jax.vmap(one, axis_name="batch")(x)

    with pytest.raises(ValueError, match=r"mixes the images.*eqx\.nn\.inference_mode"):
        network(model, SHAPE)


def test_names_on_any_value_end_there():
    def model(x):
        double = checkpoint_name(2 * x, "double")
        relu = jax.nn.relu(double)
        kept = checkpoint_name(relu, "kept")  # The ReLU has another use.
        return (kept + relu).mean((1, 2))

    net = network(model, SHAPE)
    assert list(net.layers)[:3] == ["double", "relu1", "kept"]
    rectified = [layer.rectified for layer in net.layers.values()][:3]
    assert rectified == [False, True, True]
    values = net.activations(images(), ["double", "kept"])
    np.testing.assert_array_equal(values["double"], 2 * images())
    np.testing.assert_array_equal(values["kept"], np.maximum(2 * images(), 0))


def space_to_depth(x):
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def mask_by_any(x):
    return jnp.where(jnp.any(x > 1, -1, keepdims=True), x, 0)


def choose(x):
    def one(image):
        return lax.cond(image.sum() > 0, lambda y: 2 * y, lambda y: -y, image)

    return jax.vmap(one)(x)


def attend(x):
    b, h, w, c = x.shape
    tokens = x.reshape(b, h * w, c)
    weights = jax.nn.softmax(tokens @ tokens.transpose(0, 2, 1))
    return (weights @ tokens).reshape(b, h, w, c)


CHANGES = {
    "repeat": (lambda x: x.repeat(2, 1).repeat(2, 2), (8, 12)),
    "one axis": (lambda x: jax.image.resize(x, (len(x), 4, 9, 4), "cubic"), (4, 9)),
    "space to depth": (space_to_depth, (2, 3)),
    "mask by any": (mask_by_any, (4, 6)),
    "cond": (choose, (4, 6)),
    "attention": (attend, (4, 6)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_maps_stay_maps(change):
    function, hw = CHANGES[change]

    def model(x):
        x = jax.nn.relu(conv(function(jax.nn.relu(conv(x, 4))), 5))
        return conv(x, 7).mean((1, 2))

    net = network(model, SHAPE)
    layers = [net.layers[name] for name in ("conv1", "conv2", "conv3", "conv3.pool")]
    assert [layer.shape for layer in layers] == [
        (*SHAPE[:2], 4),
        (*hw, 5),
        (*hw, 7),
        (7,),
    ]
    assert layers[0].receptive_field == ReceptiveField(
        (3, 3), (1, 1), (-1, -1), SHAPE[:2]
    )
    # A mask by the channels of a pixel sees that pixel; the others see it all.
    assert (layers[1].receptive_field is not None) == (change == "mask by any")
    values = net.activations(images(3), "conv2")["conv2"]
    expected = jax.nn.relu(conv(function(jax.nn.relu(conv(images(3), 4))), 5))
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_meanings_of_axes():
    one, five = Span(1, 1, 0), Span(5, 1, -2)
    for function, expected, rows, columns in (
        (lambda x: x[:, ::-1], "brck", None, None),
        (lambda x: jnp.concatenate([x, x[:, :, :2]], 2), "brck", one, None),
        (lambda x: jnp.split(x, 3, axis=3)[1], "brck", one, one),
        (lambda x: jnp.split(x, 2, axis=1)[1], "brck", None, one),
        (lambda x: x.reshape(2, 2, 2, 6, 3), "br-ck", None, one),
        (lambda x: x.reshape(2, 4, 3, 2, 3), "brc-k", one, None),
        (lambda x: x.reshape(2, 24, 3), "b-k", None, None),
        # The same axes of other sizes are not the same pixels.
        (lambda x: x.reshape(2, 6, 4, 3), "brck", None, None),
        (lambda x: x[:, :, None].repeat(2, 2).reshape(2, 8, 6, 3), "brck", None, one),
        # A product along the rows gives rows, along both an unknown axis.
        (lambda x: jnp.einsum("brck,rR->bRck", x, np.ones((4, 9))), "brck", None, one),
        (lambda x: jnp.einsum("brck,cC->brCk", x, np.ones((6, 2))), "brck", one, None),
        (
            lambda x: jnp.einsum("brck,rcn->bnk", x, np.ones((4, 6, 2))),
            "bkk",
            None,
            None,
        ),
        # Rows and columns in exchanged places do not meet.
        (lambda x: x[:, :, :4] + x[:, :, :4].transpose(0, 2, 1, 3), "brck", None, None),
        (lambda x: x + x[:, :1, :1], "brck", None, None),
        (lambda x: x + x[:, 0, 0][:, None, None], "brck", None, None),
        (lambda x: x + conv(x, 3, 5), "brck", five, five),
    ):
        view = read(function)
        assert (axes(view), view.rows, view.columns) == (expected, rows, columns)


def test_the_union_takes_each_meaning_from_whichever_knows_it():
    span = Span(3, 1, -1)
    whole = View(("batch", "rows", "columns", "channels"), span, span)
    lost = View(("batch", None, None, None))
    guess = View(("batch", None, "channels", None))
    for other in (lost, guess):
        for union in (whole.union(other), other.union(whole)):
            assert union == View(whole.axes)
    shifted = whole._replace(rows=Span(2, 1, 1), columns=Span(1, 2, 0))
    assert whole.union(shifted) == View(whole.axes, Span(4, 1, -1))


def test_a_channels_first_head_is_the_result():
    params = {"head": {"kernel": jnp.full((1, 1, 4, 5), 0.5)}}

    def model(params, x):
        x = jax.nn.relu(conv(x, 4)).mean((1, 2), keepdims=True)
        x = lax.conv_general_dilated(
            x.transpose(0, 3, 1, 2),
            params["head"]["kernel"],
            (1, 1),
            "VALID",
            dimension_numbers=("NCHW", "HWIO", "NCHW"),
        )
        return x.squeeze((2, 3))

    net = network(model, SHAPE, params=params)
    assert list(net.layers) == ["conv1", "conv1.pool", "head"]
    assert (net.layers["head"].shape, net.layers["head"].kind) == ((5,), "conv")
    np.testing.assert_allclose(
        net(images()), model(params, images()), rtol=1e-4, atol=1e-5
    )
    doubled = net.map_weights("head", lambda x: 2 * x)
    np.testing.assert_allclose(doubled(images()), 2 * net(images()), rtol=1e-4)


def test_a_pooling_at_the_end_is_the_result():
    def model(x):
        pooled = lax.reduce_window(
            conv(x, 4), -jnp.inf, lax.max, (1, 4, 6, 1), (1, 1, 1, 1), "VALID"
        )
        return pooled.squeeze((1, 2)).astype(jnp.bfloat16)

    net = network(model, SHAPE)
    shapes = {name: layer.shape for name, layer in net.layers.items()}
    assert shapes == {"conv1": (4, 6, 4), "conv1.pool": (4,)}
    assert net(images()).dtype == jnp.bfloat16


def test_a_result_that_does_not_depend_on_the_images_is_refused():
    with pytest.raises(ValueError, match="the result does not depend on the images"):
        network(lambda x: jnp.zeros_like(x).mean((1, 2)) + 1, SHAPE)


def test_pixels_in_the_batch_are_refused():
    def merged(x):
        batch, height, width, channels = x.shape
        y = jax.nn.relu(x.reshape(-1, channels) @ jnp.ones((3, 5)))
        return y.reshape(batch, height, width, 5).mean((1, 2))

    with pytest.raises(ValueError, match="cannot be told apart by image"):
        network(merged, (6, 5, 3))

"""Projections by hand, by an independent deconvnet in NumPy, and by PyTorch."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import zfnet_jax as zf
from tests import reference_deconvnet as reference
from tests.references.deconvnet_cases import (
    STORE,
    Key,
    case,
    draw_state,
    photographs,
)
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.deconvnet import project_activations

RULES = ("deconvnet", "guided", "gradient")
OVERLAPS = ("sum", "last")
NORMS = ("skip", "backprop")
MODES = ("unit", "map", "threshold")

# What the paper's networks do not hold: a pooling of the image and of a pooled map,
# groups, rectangles, lopsided padding, strides that skip, and a normalisation just
# before a dense layer.
ODD = Architecture(
    "odd",
    (29, 46),
    (
        MaxPool("pool0", (1, 2), (1, 2)),
        Conv("conv1", 8, (3, 2), stride=(2, 1), padding=((1, 0), (0, 1))),
        MaxPool("pool1", 3, 2, ((1, 0), (0, 2))),
        MaxPool("pool2", (3, 2), (1, 2)),
        ContrastNorm("norm2", size=3, k=1.0, alpha=0.3),
        Conv("conv3", 6, 2, padding=((0, 2), (1, 0)), groups=2),
        MaxPool("pool3", 1, 2),
        ContrastNorm("norm3", size=4, k=1.0, alpha=0.3),
        Dense("fc4", 7),
        Dense("logits", 4, relu=False),
    ),
    channels=2,
)


@pytest.fixture
def quick_compilation():
    """For networks so small that to compile a program is what takes the time."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


def distance(actual, expected) -> float:
    """Relative L2 distance; what should be zero must be."""
    actual, expected = np.asarray(actual), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    error, scale = np.linalg.norm(actual - expected), np.linalg.norm(expected)
    return float(error / scale) if scale else float(error > 0)


@functools.cache
def built(arch: Architecture, dtype: str = "float32", seed: int = 0) -> zf.ConvNet:
    return computing_in(dtype, zf.load_weights(draw_state(arch, seed), arch))


def computing_in(dtype: str, model: zf.ConvNet) -> zf.ConvNet:
    model.dtype = jnp.dtype(dtype)
    return model


def drawn_images(arch: Architecture, count=1, scale=1.0, seed=0) -> np.ndarray:
    shape = (count, *arch.input_hw, arch.channels)
    return scale * np.random.default_rng(seed).normal(size=shape)


def cut(pixels, box):
    """A box of an image, zero outside of it."""
    top, left, bottom, right = box
    out = np.zeros((bottom - top, right - left, pixels.shape[-1]))
    for row, column in itertools.product(range(top, bottom), range(left, right)):
        if 0 <= row < pixels.shape[0] and 0 <= column < pixels.shape[1]:
            out[row - top, column - left] = pixels[row, column]
    return out


def check(
    model: zf.ConvNet, images, layer: str, units, positions=None, within=1e-6, **options
) -> zf.Projections:
    """Compare all that `project` returns with the deconvnet in NumPy."""
    arch, weights = model.arch, reference.weights_of(model)
    wide = model.dtype == np.float64
    with jax.enable_x64(wide):
        images = np.asarray(images, np.float64 if wide else np.float32)
        got = zf.project(model, images, layer, units, positions, **options)
    keep = {k: options[k] for k in ("mode", "threshold") if k in options}
    rules = {k: options[k] for k in ("rule", "overlap", "norm") if k in options}
    whole = keep.get("mode", "unit") != "unit"
    n = 0
    for i, image in enumerate(images):
        steps = reference.forward(arch, weights, image, layer)
        out = steps[-1].out
        for u, unit in enumerate(units):
            if positions is None:
                places = [reference.strongest(out, unit)]
            else:
                there = np.asarray(positions)
                there = there if there.ndim == 2 else there[i, u]
                places = [(int(row), int(column)) for row, column in there]
            for place in places:
                signal = reference.kept(out, unit, place, **keep)
                pixels = reference.descend(steps, weights, signal, **rules)
                box = (0, 0, *arch.input_hw)
                if not whole:
                    box = reference.seen(arch, layer, place)
                    assert not np.any(pixels - outside_zeroed(pixels, box))
                assert tuple(got.boxes[n]) == box
                assert tuple(got.positions[n]) == place
                assert (got.images[n], got.units[n]) == (i, unit)
                value = out[(*place, unit)] if out.ndim == 3 else out[unit]
                np.testing.assert_allclose(got.values[n], value, rtol=10 * within)
                expected = cut(pixels, box) if options.get("crop") else pixels
                assert distance(got.pixels[n], expected) <= within, (i, unit, place)
                n += 1
    assert len(got.pixels) == len(got.values) == len(got.boxes) == n
    assert got.pixels.dtype == got.values.dtype == images.dtype
    return got


def outside_zeroed(pixels, box):
    top, left, bottom, right = box
    out = np.zeros_like(pixels)
    inside = slice(max(top, 0), bottom), slice(max(left, 0), right)
    out[inside] = pixels[inside]
    return out


# --- by hand ---


def one_map(*rows):
    return np.array(rows, np.float32)[None, ..., None]


def with_weights(arch, **kernels):
    """A network of given kernels, HWIO; a pair is a kernel and a bias."""
    model = zf.ConvNet(arch, init=lambda key, *spec: jnp.zeros(*spec), rngs=nnx.Rngs(0))
    for name, value in kernels.items():
        kernel, bias = value if isinstance(value, tuple) else (value, 0)
        affine = getattr(model, name)
        affine.kernel[...] = jnp.asarray(kernel, jnp.float32).reshape(
            affine.kernel.shape
        )
        affine.bias[...] = jnp.broadcast_to(
            jnp.asarray(bias, jnp.float32), affine.bias.shape
        )
    return model


TWO_LAYERS = Architecture(
    "two-layers",
    (4, 4),
    (
        Conv("conv1", 2, 1),
        MaxPool("pool1", 2, 2),
        Conv("conv2", 1, 2),
        Dense("logits", 1, relu=False),
    ),
    channels=1,
)
# conv1 has the maps relu(x) and relu(2 - x); the second is 0 in the whole first window.
# Pooled they are [[4, 1], [1, 5]] and [[0, 2], [2, 2]], so conv2 is
# 4 + 2 - 1 + 5 and -4 + 2 + 2, 10 together, and the kernel times 10 is what comes down.
IMAGE = one_map([3, 2, 0, 1], [4, 2, 0, 0], [0, 0, 5, 0], [1, 0, 0, 2])
BY_HAND = {
    # 10, 20 and 10 of the first map at its maxima, less 30, 10 and 10 of the second's.
    "deconvnet": [[-30, 0, 0, 20], [10, 0, 0, 0], [-10, 0, 10, -10], [0, 0, 0, 0]],
    # The 30 went to a window of zeros.
    "guided": [[0, 0, 0, 20], [10, 0, 0, 0], [-10, 0, 10, -10], [0, 0, 0, 0]],
    # The -10 of the first map and the -20 of the second come down as well.
    "gradient": [[0, 0, 20, 20], [10, 0, 0, 0], [-10, 0, 10, -10], [-10, 0, 0, 0]],
}


def two_layers(scale=1.0):
    pixels_to_maps = np.array([1.0, -1.0]), np.array([0.0, 2.0])
    # [rows, columns, maps, 1]
    above = np.stack([[[1, 2], [-1, 1]], [[3, -2], [1, 1]]], -1)[..., None]
    return with_weights(
        TWO_LAYERS, conv1=pixels_to_maps, conv2=above, logits=np.array([scale])
    )


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_two_layers_by_hand(rule, local):
    got = zf.project(two_layers(), IMAGE, "conv2", 0, rule=rule, local=local)
    np.testing.assert_array_equal(got.pixels[0, ..., 0], BY_HAND[rule])
    assert got.values.tolist() == [10] and got.positions.tolist() == [[0, 0]]
    assert got.boxes.tolist() == [[0, 0, 4, 4]]
    assert got.images.tolist() == got.units.tolist() == [0]


@pytest.mark.parametrize("rule", RULES)
def test_the_classifier_has_no_relu(rule):
    """A negative logit comes down as it is: -0.5 of 10 is -5, and -5 times -0.5."""
    got = zf.project(two_layers(-0.5), IMAGE, "logits", 0, rule=rule)
    assert got.values.tolist() == [-5]
    expected = np.multiply(BY_HAND[rule], 0.25)
    np.testing.assert_array_equal(got.pixels[0, ..., 0], expected)
    # A positive signal that the classifier turns negative ends at the ReLU below it.
    got = zf.project(
        with_weights(
            TWO_LAYERS,
            conv1=(np.array([1.0, -1.0]), np.array([0.0, 2.0])),
            conv2=np.ones(8),
            logits=(np.array([-1.0]), 100.0),
        ),
        IMAGE,
        "logits",
        0,
        rule=rule,
    )
    assert got.values[0] > 0 and got.pixels.any() == (rule == "gradient")


OVERLAPPING = Architecture(
    "overlapping",
    (4, 4),
    (Conv("conv1", 1, 1), MaxPool("pool1", 3, 2, 1), Dense("logits", 1, relu=False)),
    channels=1,
)
# Two windows share the 9 at (1, 2); the later of them holds it twice.
SHARED = one_map([1, 5, 2, 0], [3, 4, 9, 7], [8, 6, 9, 2], [0, 1, 3, 4])


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(
    ("overlap", "kept"),
    # The zero of the later window overwrites what comes from the earlier one.
    [("sum", [9, 9]), ("last", [0, 9])],
)
def test_overlapping_windows_by_hand(overlap, kept, local):
    model, places = with_weights(OVERLAPPING, conv1=np.ones(1)), [(0, 1), (1, 1)]
    options: dict[str, Any] = {"overlap": overlap, "local": local}
    got = zf.project(model, SHARED, "pool1", 0, np.array(places), **options)
    expected = np.zeros((2, 4, 4))
    expected[:, 1, 2] = kept
    np.testing.assert_array_equal(got.pixels[..., 0], expected)
    assert got.values.tolist() == [9, 9]
    # The window of position (0, 1) reaches one pixel above the image.
    assert got.boxes.tolist() == [[-1, 1, 2, 4], [1, 1, 4, 4]]
    crops = zf.project(
        model, SHARED, "pool1", 0, np.array(places), crop=True, **options
    )
    np.testing.assert_array_equal(crops.boxes, got.boxes)
    expected = np.zeros((2, 3, 3))
    expected[0, 2, 1], expected[1, 0, 1] = kept
    np.testing.assert_array_equal(crops.pixels[..., 0], expected)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
    ("mode", "overlap", "expected"),
    [
        ("map", "sum", {0.0: {(0, 1): 5, (1, 2): 18, (2, 0): 8}}),
        ("map", "last", {0.0: {(0, 1): 5, (1, 2): 9, (2, 0): 8}}),
        (
            "threshold",
            "sum",
            {5.0: {(1, 2): 18, (2, 0): 8}, 8.5: {(1, 2): 18}, 9.0: {}},
        ),
        ("threshold", "last", {5.0: {(1, 2): 9, (2, 0): 8}, 9.0: {}}),
    ],
)
def test_whole_maps_by_hand(mode, overlap, expected):
    """By threshold, the places that get something; 5 does not pass 5."""
    model = with_weights(OVERLAPPING, conv1=np.ones(1))
    for threshold, places in expected.items():
        options: dict[str, Any] = {"mode": mode, "overlap": overlap}
        if mode == "threshold":
            options["threshold"] = threshold
        got = zf.project(model, SHARED, "pool1", [0], **options)
        pixels = np.zeros((4, 4))
        for place, value in places.items():
            pixels[place] = value
        np.testing.assert_array_equal(got.pixels[0, ..., 0], pixels)
        assert got.boxes.tolist() == [[0, 0, 4, 4]]
        # The first of the two nines is the strongest.
        assert got.values.tolist() == [9] and got.positions.tolist() == [[0, 1]]


def test_a_window_of_zeros_sends_its_signal_to_its_first_place():
    """So it does by the paper's rule; by the others such a window gets nothing."""
    model = with_weights(TWO_LAYERS, conv1=np.array([1.0, -3.0]), conv2=np.ones(8))
    image = one_map(*np.eye(4))  # the second map is 0 throughout
    for rule in RULES:
        got = zf.project(model, image, "conv2", 0, rule=rule)
        # 2 comes to each of the four windows of both maps.
        expected = np.zeros((4, 4))
        if rule == "deconvnet":
            expected[::2, ::2] = 2 - 3 * 2
        else:
            expected[[0, 2], [0, 2]] = 2
        np.testing.assert_array_equal(got.pixels[0, ..., 0], expected)


# --- against the deconvnet in NumPy ---


SETTINGS = list(itertools.product(RULES, OVERLAPS, NORMS))


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("rule", "overlap", "norm"), SETTINGS)
def test_every_setting(rule, overlap, norm):
    """In the middle of an odd network; the other way to compute it in every second."""
    places = np.array([(0, 0), (1, 2), (2, 2)])
    local = (overlap == "sum") == (norm == "skip")
    options: dict[str, Any] = {"rule": rule, "overlap": overlap, "norm": norm}
    model, images = built(ODD, "float64"), drawn_images(ODD, 2)
    check(model, images, "norm3", [1, 3], places, local=local, **options)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("layer", ["pool0", "conv1", "pool2", "fc4", "logits"])
def test_every_kind_of_layer(layer):
    check(built(ODD, "float64"), drawn_images(ODD, 2), layer, [0, 1], norm="backprop")


@st.composite
def stacks(draw):
    """An image's shape and up to four layers, each no larger than what it stands on."""

    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    hw, channels = pair(5, 14), draw(st.integers(1, 4))
    shape, layers = (*hw, channels), []
    for index in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "pool", "pool", "norm"]))
        name, kernel, stride = f"{kind}{index}", pair(1, 4), pair(1, 3)
        kernel = min(kernel[0], hw[0]), min(kernel[1], hw[1])
        if kind == "norm":
            layers.append(ContrastNorm(name, draw(st.integers(1, 5)), 1.0, alpha=0.5))
            continue
        if kind == "conv":
            edges = pair(0, 2), pair(0, 2)
            groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
            channels = groups * draw(st.integers(1, 3))
            layers.append(Conv(name, channels, kernel, stride, edges, groups))
        else:
            edges = pair(0, kernel[0] - 1), pair(0, kernel[1] - 1)
            layers.append(MaxPool(name, kernel, stride, edges))
        hw = tuple(
            (extent + sum(edge) - size) // step + 1
            for extent, edge, size, step in zip(hw, edges, kernel, stride, strict=True)
        )
    return shape, (*layers, Dense("logits", 3, relu=False))


@pytest.mark.usefixtures("quick_compilation")
@settings(max_examples=8)
@given(stacks(), st.data())
def test_any_network(stack, data):
    (height, width, channels), layers = stack
    arch = Architecture("random", (height, width), layers, channels)
    model = computing_in("float64", zf.load_weights(draw_state(arch), arch))
    images = drawn_images(arch, 2, seed=1)
    layer = data.draw(st.sampled_from([layer.name for layer in arch.layers]))
    *hw, features = (1, 1, *arch.shapes()[layer])[-3:]
    units = [0, features - 1]
    options: dict[str, Any] = {
        "mode": data.draw(st.sampled_from(MODES)),
        "rule": data.draw(st.sampled_from(RULES)),
        "overlap": data.draw(st.sampled_from(OVERLAPS)),
        "norm": data.draw(st.sampled_from(NORMS)),
        "crop": data.draw(st.booleans()),
    }
    if options["mode"] == "threshold":
        options["threshold"] = 0.3
    places = None
    if options["mode"] == "unit":
        rows, columns = (st.integers(0, extent - 1) for extent in hw)
        place = data.draw(st.tuples(rows, columns))
        places = np.array([(0, 0), place, (hw[0] - 1, hw[1] - 1)])
    for local in (True, False):
        check(model, images, layer, units, places, local=local, **options)


# Inputs of the paper lie within about ±128, and only there does normalisation matter.
@pytest.mark.parametrize(
    ("arch", "layer", "options"),
    [
        (zf.ZFNET, "norm2", {"rule": "gradient", "norm": "backprop"}),
        (zf.ZFNET, "conv5", {"overlap": "last"}),
        (zf.ZFNET, "logits", {}),
        (zf.ALEXNET, "conv3", {"norm": "backprop"}),
        (zf.ALEXNET, "fc7", {"rule": "guided", "overlap": "last"}),
        (zf.ZFNET32, "conv2", {"rule": "guided", "crop": True}),
        (zf.ZFNET32, "conv5", {"overlap": "last", "crop": True}),
        (zf.ZFNET32, "pool5", {"mode": "threshold", "threshold": 0.3}),
        (zf.ZFNET32, "logits", {"rule": "gradient"}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_papers_networks(arch, layer, options, request):
    """In two corners and in the middle of a border, or at the strongest place."""
    if arch is zf.ZFNET32:
        request.getfixturevalue("quick_compilation")
    model = built(arch, "float64")
    images = drawn_images(arch, 1, scale=1.0 if arch is zf.ZFNET32 else 60.0)
    shape = arch.shapes()[layer]
    places = None
    if len(shape) == 3 and options.get("mode", "unit") == "unit":
        rows, columns = shape[0] - 1, shape[1] - 1
        places = np.array([(0, 0), (0, columns // 2), (rows, columns)])
    check(model, images, layer, [2, shape[-1] - 1], places, **options)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", ["conv2", "conv5"])
def test_single_precision_is_close(layer, rule):
    net = zf.load_pretrained("zfnet32-cifar10")
    check(net.model, case("shipped").image[None], layer, [1, 5], rule=rule, within=1e-4)


# --- laws ---


def test_local_is_whole_at_every_position():
    """Borders, corners and all, where windows reach outside the image."""
    for arch, layer, overlap, rule in (
        (ODD, "norm3", "sum", "deconvnet"),
        (ODD, "norm3", "last", "guided"),
        (zf.ZFNET32, "conv5", "sum", "deconvnet"),
    ):
        model, images = built(arch), drawn_images(arch, 1)
        places = np.array([*np.ndindex(arch.shapes()[layer][:2])])
        shared: dict[str, Any] = {"overlap": overlap, "rule": rule}
        differing: list[dict[str, Any]] = [{}, {"local": False}, {"crop": True}]
        ours, whole, crops = (
            zf.project(model, images, layer, [0, 5], places, **shared, **options)
            for options in differing
        )
        assert_same(ours, whole)
        for crop, box, pixels in zip(
            crops.pixels, crops.boxes, whole.pixels, strict=True
        ):
            assert distance(crop, cut(pixels, box)) < 1e-5


def assert_same(ours: zf.Projections, theirs: zf.Projections, within=1e-5):
    for field in ("boxes", "images", "units", "positions"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    np.testing.assert_allclose(ours.values, theirs.values, rtol=within)
    for actual, expected in zip(ours.pixels, theirs.pixels, strict=True):
        assert distance(actual, expected) <= within


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("layer", ["norm3", "logits"])
def test_the_gradient_is_jaxs(layer):
    """With nothing skipped and nothing rectified, it is the vector-Jacobian product."""
    model, images = built(ODD, "float64"), drawn_images(ODD, 1, seed=3)

    @jax.jit
    def down(x, signal):
        return jax.vjp(lambda x: model.features(x, layer).features[layer], x)[1](signal)

    with jax.enable_x64(True):
        got = zf.project(model, images, layer, 2, rule="gradient", norm="backprop")
        out = reference.forward(ODD, reference.weights_of(model), images[0], layer)
        signal = reference.kept(out[-1].out, 2)
        expected = np.asarray(down(images, signal[None])[0])
    assert distance(got.pixels, expected) < 1e-6


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
    ("layer", "rule"),
    [("conv5", "deconvnet"), ("pool2", "guided"), ("logits", "gradient")],
)
def test_the_transformation_agrees(layer, rule):
    """The explicit stack, and the model's own code with other ReLUs, are two forms."""
    model, images = built(zf.ZFNET32), drawn_images(zf.ZFNET32, 1).astype(np.float32)
    units = [0, 7]
    got = zf.project(model, images, layer, units, rule=rule)

    def feature(x):
        return model.features(x, until=layer).features[layer]

    @jax.jit
    def down(x, signal):
        return jax.vjp(zf.with_relu_rule(feature, rule), x)[1](signal)[0]

    out = np.asarray(feature(jnp.asarray(images))[0])
    for pixels, unit in zip(got.pixels, units, strict=True):
        signal = reference.kept(out, unit).astype(np.float32)
        expected = down(jnp.asarray(images), jnp.asarray(signal[None]))
        assert distance(pixels, expected[0]) < 1e-4


# --- batches ---


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
    ("layer", "rule", "overlap", "norm"),
    [
        ("fc4", "deconvnet", "sum", "skip"),
        ("conv3", "guided", "last", "backprop"),
        ("fc4", "gradient", "sum", "backprop"),
    ],
)
def test_activations_in_place_of_the_layers_own(layer, rule, overlap, norm):
    model, images = built(ODD), drawn_images(ODD, 2, seed=1).astype(np.float32)
    settings: dict[str, Any] = {"rule": rule, "overlap": overlap, "norm": norm}
    forward = jax.jit(lambda x: model.features(x, until=layer).features[layer])
    own = np.asarray(forward(images))
    # Those of one unit are what `project` keeps of it.
    unit = int(own.argmax()) % own.shape[-1]
    kept = own * np.eye(own.shape[-1], dtype=np.float32)[unit]
    got = project_activations(model, images, layer, kept, **settings)
    expected = zf.project(model, images, layer, unit, mode="map", **settings).pixels
    assert expected.any() and distance(got, expected) < 1e-6
    if rule == "gradient":
        drawn = np.random.default_rng(1).normal(size=own.shape).astype(np.float32)
        got = project_activations(model, images, layer, drawn, **settings)
        expected = jax.jit(lambda x, y: jax.vjp(forward, x)[1](y)[0])(images, drawn)
        assert distance(got, expected) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "conv9"}, "no layer 'conv9'"),
        ({"rule": "saliency"}, "rule 'saliency' is not one of deconvnet, guided"),
        ({"activations": np.ones((1, 3), np.float32)}, r"\(1, 1\), not \(1, 3\)"),
        ({"activations": np.ones((2, 1), np.float32)}, r"\(1, 1\), not \(2, 1\)"),
    ],
)
def test_activations_that_do_not_fit_are_refused(change, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    given: dict[str, Any] = {
        "layer": "logits",
        "activations": np.ones((1, 1), np.float32),
    }
    with pytest.raises(ValueError, match=message):
        project_activations(two_layers(), IMAGE, **{**given, **change})


def test_a_batch_is_one_at_a_time():
    """Over images, then units, then positions."""
    model, images = built(ODD), drawn_images(ODD, 3)
    units, places = [4, 0, 4], np.array([(0, 1), (2, 0)])
    got = zf.project(model, images, "conv3", units, places)
    assert got.images.tolist() == np.repeat([0, 1, 2], 6).tolist()
    assert got.units.tolist() == [4, 4, 0, 0, 4, 4] * 3
    assert got.positions.tolist() == places.tolist() * 9
    for n, (image, unit, place) in enumerate(itertools.product(images, units, places)):
        alone = zf.project(model, image[None], "conv3", unit, place[None])
        assert distance(got.pixels[n], alone.pixels[0]) < 1e-5
        np.testing.assert_allclose(got.values[n], alone.values[0], rtol=1e-5)
        np.testing.assert_array_equal(got.boxes[n], alone.boxes[0])


@pytest.mark.usefixtures("quick_compilation")
def test_every_image_and_unit_may_have_its_own_positions():
    model, images = built(ODD, "float64"), drawn_images(ODD, 2)
    places = np.array([[[(0, 0)], [(1, 2)]], [[(2, 1)], [(0, 3)]]])
    got = check(model, images, "conv3", [1, 2], places)
    assert got.positions.tolist() == places.reshape(-1, 2).tolist()


@pytest.mark.usefixtures("quick_compilation")
def test_every_image_may_have_its_own_units():
    model, images = built(ODD), drawn_images(ODD, 3).astype(np.float32)
    units = np.array([[1, 4], [0, 5], [1, 1]])
    places = np.array([(0, 1), (2, 0)])
    for positions in (None, places):
        got = zf.project(model, images, "conv3", units, positions)
        for i, image in enumerate(images):
            alone = zf.project(model, image[None], "conv3", units[i], positions)
            here = np.flatnonzero(got.images == i)
            assert got.units[here].tolist() == alone.units.tolist()
            np.testing.assert_array_equal(got.positions[here], alone.positions)
            np.testing.assert_allclose(got.values[here], alone.values, rtol=1e-5)
            for actual, expected in zip(got.pixels[here], alone.pixels, strict=True):
                assert distance(actual, expected) < 1e-5


def test_the_strongest_position_is_the_first():
    """Equal maxima: row-major order decides."""
    model = with_weights(OVERLAPPING, conv1=np.ones(1))
    image = one_map([0, 0, 0, 3], [0, 3, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0])
    got = zf.project(model, image, "conv1", 0)
    assert got.positions.tolist() == [[0, 3]] and got.values.tolist() == [3]


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("mode", ["map", "threshold"])
def test_a_dense_unit_is_its_whole_map(mode):
    model, images = built(ODD), drawn_images(ODD, 2)
    fc4 = np.asarray(jax.jit(lambda x: model.features(x).features["fc4"])(images))
    unit = int(fc4.max(0).argmax())
    whole = zf.project(model, images, "fc4", unit, mode=mode)
    assert_same(whole, zf.project(model, images, "fc4", unit))
    assert whole.positions.tolist() == [[0, 0], [0, 0]]


def test_a_silent_unit_gives_nothing():
    """Zeros, and no division by them."""
    model = with_weights(TWO_LAYERS, conv1=(np.zeros(2), -1.0))
    got = zf.project(model, IMAGE, "conv1", [0, 1])
    assert not got.pixels.any() and got.values.tolist() == [0, 0]
    assert got.positions.tolist() == [[0, 0], [0, 0]]


def test_no_image_is_no_projection():
    model = built(ODD)
    got = zf.project(model, drawn_images(ODD, 2)[:0], "conv3", [0, 1])
    assert got.pixels.shape == (0, *ODD.input_hw, 2) and got.boxes.shape == (0, 4)


def test_the_forward_pass_runs_once(monkeypatch):
    """However many units and positions are asked for."""
    runs = []
    forward = zf.ConvNet.features

    def counted(self, images, until=None):
        # Counts what is executed, not what is traced.
        jax.debug.callback(lambda: runs.append(until))
        return forward(self, images, until)

    monkeypatch.setattr(zf.ConvNet, "features", counted)
    arch = dataclasses.replace(ODD, name="counted")
    model, images = built(arch), drawn_images(arch, 2)
    counts = []
    for units in ([0], [0, 1, 2, 3, 4, 5], [5]):
        places = np.array([(0, 0), (2, 1)])
        zf.project(model, images, "conv3", units, places).pixels.sum()
        jax.effects_barrier()
        counts.append(len(runs))
        runs.clear()
    assert counts == [1, 1, 1]


# --- types ---


@pytest.mark.usefixtures("quick_compilation")
def test_bfloat16():
    """No more is asked than what 8 bits of mantissa can hold."""
    images = drawn_images(zf.ZFNET32, 2).astype(np.float32)
    model, wide = built(zf.ZFNET32, "bfloat16"), built(zf.ZFNET32)
    places = np.array([(0, 0), (9, 30)])
    ours, theirs = (
        zf.project(m, images, "conv1", [3, 4], places) for m in (model, wide)
    )
    assert ours.pixels.dtype == ours.values.dtype == np.float32
    for actual, expected in zip(ours.pixels, theirs.pixels, strict=True):
        assert distance(actual, expected) < 0.05
    deep = zf.project(model, images, "conv5", [3, 4])
    assert np.isfinite(deep.pixels).all() and deep.pixels.any()


def test_what_comes_back_is_numpys():
    model, images = built(ODD), jnp.asarray(drawn_images(ODD, 2), jnp.float32)
    got = zf.project(model, images, "conv3", np.array([1, 2]))
    types = {"pixels": np.float32, "values": np.float32}
    for field in dataclasses.fields(got):
        array = getattr(got, field.name)
        assert type(array) is np.ndarray
        assert array.dtype == types.get(field.name, np.int32)
    with pytest.raises(dataclasses.FrozenInstanceError):
        got.pixels = np.zeros(0)  # pyright: ignore[reportAttributeAccessIssue]


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "conv9"}, "conv9.*conv1"),
        ({"units": 6}, "6"),
        ({"units": [0, -1]}, "-1"),
        ({"units": np.array([[0], [1]])}, "each image's own"),
        ({"units": []}, "each image's own"),
        ({"positions": np.array([(0, 0), (3, 9)])}, r"9"),
        ({"positions": np.array([(-1, 0)])}, r"-1"),
        ({"positions": np.array([0, 0])}, r"positions"),
        ({"positions": np.zeros((1, 2, 1, 2), int)}, r"positions"),
        ({"layer": "fc4", "positions": np.array([(0, 1)])}, r"1"),
        ({"images": np.zeros((1, 29, 45, 2), np.float32)}, r"29, 45"),
        ({"images": np.zeros((1, 29, 46, 3), np.float32)}, r"46, 3"),
        ({"mode": "units"}, "mode.*units"),
        ({"rule": "deconv"}, "rule.*deconv"),
        ({"overlap": "first"}, "overlap.*first"),
        ({"norm": "invert"}, "norm.*invert"),
        ({"mode": "map", "positions": np.array([(0, 0)])}, "positions"),
        ({"mode": "threshold", "positions": np.array([(0, 0)])}, "positions"),
        ({"threshold": 0.5}, "threshold"),
        ({"mode": "map", "threshold": 0.5}, "threshold"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_is_refused(change, message, monkeypatch):
    # As users see it: without the tests' own checks of types.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arguments: dict[str, Any] = {
        "images": drawn_images(ODD).astype(np.float32),
        "layer": "conv3",
        "units": [0],
        "positions": None,
    }
    with pytest.raises(ValueError, match=message) as raised:
        zf.project(built(ODD), **{**arguments, **change})
    assert "\n" not in str(raised.value)


# --- against PyTorch ---


def stored() -> dict[Key, np.ndarray]:
    with np.load(STORE) as arrays:
        return {Key.parse(name): arrays[name] for name in arrays.files}


def test_the_store_covers_what_it_should():
    keys = stored()
    assert STORE.stat().st_size < 500_000
    assert {key.case for key in keys} == {"shipped", "zfnet32", "zfnet-plain"}
    for name in {key.case for key in keys}:
        of = {(key.rule, key.overlap) for key in keys if key.case == name}
        assert of == {*((rule, "sum") for rule in RULES), ("deconvnet", "last")}
        assert len({key.layer for key in keys if key.case == name}) >= 2
        # Ties are common enough to be what is compared.
        net = case(name)
        weights = reference.weights_of(zf.load_weights(net.state, net.arch))
        pooled = reference.forward(net.arch, weights, net.image, "pool2")
        assert np.mean(pooled[-1].out == 0) > 0.3


@pytest.mark.parametrize(
    ("name", "layer"), sorted({(key.case, key.layer) for key in stored()})
)
def test_pytorch_gave_the_same(name, layer, request):
    """Captum, and MaxUnpool2d where later windows overwrite, in float64."""
    net = case(name)
    if net.arch.input_hw == (32, 32):
        request.getfixturevalue("quick_compilation")
    model = computing_in("float64", zf.load_weights(net.state, net.arch))
    for key, expected in stored().items():
        if (key.case, key.layer) != (name, layer):
            continue
        with jax.enable_x64(True):
            image, place = net.image[None].astype(np.float64), (key.row, key.column)
            options: dict[str, Any] = {"rule": key.rule, "overlap": key.overlap}
            got = zf.project(
                model, image, layer, key.unit, np.array([place]), **options
            )
        assert distance(key.sample(got.pixels[0], net.arch), expected) <= 1e-6, key


@pytest.fixture(scope="module")
def pytorch():
    """What makes references, and one network of the paper's full size in both."""
    pytest.importorskip("torch", reason="needs the parity extra")
    pytest.importorskip("captum", reason="needs the parity extra")
    from tests.references import make_deconvnet

    state = draw_state(zf.ZFNET_PLAIN, seed=5)
    net = make_deconvnet.torch_net(zf.ZFNET_PLAIN, state)
    return make_deconvnet, net, zf.load_weights(state, zf.ZFNET_PLAIN)


@pytest.mark.parity
@pytest.mark.parametrize("layer", ["conv1", "pool1", "conv2", "conv3", "conv5", "fc7"])
@pytest.mark.parametrize(
    ("rule", "overlap"), [*((rule, "sum") for rule in RULES), ("deconvnet", "last")]
)
def test_pytorch_gives_the_same(pytorch, layer, rule, overlap):
    """The paper's network in single precision, on photographs."""
    make, net, model = pytorch
    for image in photographs(2):
        theirs, switches = make.features(net, image, layer)
        *place, unit = np.unravel_index(theirs[layer].argmax(), theirs[layer].shape)
        place = (int(place[0]), int(place[1])) if place else (0, 0)
        expected = make.project(net, image, layer, int(unit), place, rule, overlap)

        def ours(model, image, unit=int(unit), place=place):
            where = np.array([place])
            return zf.project(
                model, image[None], layer, unit, where, rule=rule, overlap=overlap
            ).pixels[0]

        if distance(ours(model, image), expected) <= 1e-4:
            continue
        # Only rounding may have sent a signal elsewhere, where it decides between two
        # values of a window, or between a value and 0. In float64 it does not.
        assert near_ties(model, image, theirs, switches) > 0
        wide = computing_in("float64", nnx.clone(model))
        with jax.enable_x64(True):
            assert distance(ours(wide, image.astype(np.float64)), expected) <= 1e-6


def near_ties(model, image, theirs, switches) -> int:
    """How many choices rounding has turned; each must be one that rounding can turn."""
    *_, last = theirs
    ours = model.features(image[None], until=last)
    turned, below = 0, image
    for name, out in theirs.items():
        if name == "flatten":
            continue
        margin = 1e-5 * np.abs(below).max()
        if name in switches:
            chosen, other = np.asarray(ours.switches[name][0]), switches[name]
            flat = below.reshape(-1, below.shape[-1])
            here, there = (
                np.take_along_axis(flat, places.reshape(-1, places.shape[-1]), 0)
                for places in (chosen, other)
            )
            assert (abs(here - there) <= margin).all()
            turned += int((chosen != other).sum())
        else:
            differ = (np.asarray(ours.features[name][0]) > 0) != (out > 0)
            assert (out[differ] <= margin).all()
            turned += int(differ.sum())
        below = out
    return turned

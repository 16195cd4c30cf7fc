"""Projections by hand, by an independent deconvnet in NumPy, and by PyTorch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

import zfnet_jax as zf
from tests import networks
from tests import reference_deconvnet as reference
from tests.comparison import cut, distance
from tests.networks import MIXED, ODD, as_function, random_model
from tests.references.deconvnet_cases import (
    STORE,
    Key,
    case,
    draw_state,
    photographs,
)
from zfnet_jax.arch import ARCHITECTURES, Architecture, Conv, Dense, MaxPool
from zfnet_jax.deconvnet import backproject, follow_signal
from zfnet_jax.projections import Projections, project
from zfnet_jax.relu_rules import with_relu_rule

RULES = ("deconvnet", "guided", "gradient")


@functools.cache
def build(arch: Architecture, dtype: str = "float32", seed: int = 0) -> zf.ConvNet:
    return with_dtype(dtype, random_model(arch, seed))


def with_dtype(dtype: str, model: zf.ConvNet) -> zf.ConvNet:
    model.dtype = jnp.dtype(dtype)
    return model


def draw_images(arch: Architecture, count=1, scale=1.0, seed=0) -> np.ndarray:
    shape = (count, *arch.input_hw, arch.channels)
    images = scale * np.random.default_rng(seed).normal(size=shape)
    return images.astype(np.float32)


def signals_of(projections: Projections, shape) -> np.ndarray:
    """Each projection's layer with all but its activation set to zero."""
    signals = np.zeros((len(projections), *shape), projections.activations.dtype)
    for n, signal in enumerate(signals):
        place = tuple(projections.positions[n]) if len(shape) == 3 else ()
        signal[(*place, projections.units[n])] = projections.activations[n]
    return signals


def check(
    model: zf.ConvNet, images, layer: str, units, positions=None, within=1e-6, **options
) -> Projections:
    """Compare `project`, and the page, with the deconvnet in NumPy."""
    arch, weights = model.arch, reference.weights_of(model)
    is_wide, rule = model.dtype == np.float64, options.get("rule", "deconvnet")
    norm = "backprop" if rule == "gradient" else "skip"
    images = np.asarray(images, np.float64 if is_wide else np.float32)
    with jax.enable_x64(is_wide):
        projections = project(model, images, layer, units, positions, **options)
        signals = signals_of(projections, arch.shapes()[layer])
        chosen = images[projections.images]
        page = np.asarray(backproject(model, chosen, layer, signals, rule=rule))
    given = None
    if positions is not None:
        given = np.broadcast_to(positions, (len(images), len(units), 2))
    n = 0
    for i, image in enumerate(images):
        steps = reference.forward(arch, weights, image, layer)
        out = steps[-1].out
        for u, unit in enumerate(units):
            row, column = (
                reference.strongest(out, unit) if given is None else given[i, u]
            )
            place = int(row), int(column)
            signal = reference.keep(out, unit, place)
            pixels = reference.descend(steps, weights, signal, rule, norm=norm)
            box = zf.receptive_field(arch, layer).box(*place, clip=False)
            # The box holds all of the projection.
            assert np.count_nonzero(cut(pixels, box)) == np.count_nonzero(pixels)
            assert tuple(projections.boxes[n]) == box
            assert tuple(projections.positions[n]) == place
            assert (projections.images[n], projections.units[n]) == (i, unit)
            value = out[(*place, unit)] if out.ndim == 3 else out[unit]
            np.testing.assert_allclose(
                projections.activations[n], value, rtol=10 * within, atol=within
            )
            expected = cut(pixels, box) if options.get("crop") else pixels
            assert distance(projections.pixels[n], expected) <= within, (i, unit, place)
            assert distance(page[n], pixels) <= within, (i, unit, place)
            n += 1
    assert len(projections) == len(projections.boxes) == n
    assert projections.pixels.dtype == projections.activations.dtype == images.dtype
    return projections


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


@pytest.mark.parametrize("rule", RULES)
def test_two_layers_by_hand(rule):
    for net in (two_layers(), as_function(two_layers())):
        projections = project(net, IMAGE, "conv2", 0, rule=rule)
        np.testing.assert_array_equal(projections.pixels[0, ..., 0], BY_HAND[rule])
        assert projections.activations.tolist() == [10]
    # The classifier has no ReLU, so a negative logit keeps its sign: -0.5 of 10 is -5,
    # and -5 times -0.5.
    projections = project(two_layers(-0.5), IMAGE, "logits", 0, rule=rule)
    assert projections.activations.tolist() == [-5]
    expected = np.multiply(BY_HAND[rule], 0.25)
    np.testing.assert_array_equal(projections.pixels[0, ..., 0], expected)


OVERLAPPING = Architecture(
    "overlapping",
    (4, 4),
    (Conv("conv1", 1, 1), MaxPool("pool1", 3, 2, 1), Dense("logits", 1, relu=False)),
    channels=1,
)
# Two windows share the 9 at (1, 2); the later of them holds it twice.
SHARED = one_map([1, 5, 2, 0], [3, 4, 9, 7], [8, 6, 9, 2], [0, 1, 3, 4])


def test_overlapping_windows_by_hand():
    model = with_weights(OVERLAPPING, conv1=np.ones(1))
    places = np.array([[(0, 1), (1, 1)]])
    whole, crops = (
        project(model, SHARED, "pool1", [0, 0], places, crop=crop)
        for crop in (False, True)
    )
    expected = np.zeros((2, 4, 4))
    expected[:, 1, 2] = 9
    np.testing.assert_array_equal(whole.pixels[..., 0], expected)
    assert whole.activations.tolist() == [9, 9]
    # The window of position (0, 1) reaches one pixel above the image.
    assert whole.boxes.tolist() == [[-1, 1, 2, 4], [1, 1, 4, 4]]
    np.testing.assert_array_equal(crops.boxes, whole.boxes)
    expected = np.zeros((2, 3, 3))
    expected[0, 2, 1] = expected[1, 0, 1] = 9
    np.testing.assert_array_equal(crops.pixels[..., 0], expected)


def test_a_window_of_zeros_sends_its_signal_to_its_first_place():
    """By the paper's rule; by the other two such a window gets nothing."""
    model = with_weights(TWO_LAYERS, conv1=np.array([1.0, -3.0]), conv2=np.ones(8))
    image = one_map(*np.eye(4))  # the second map is 0 throughout
    for rule in RULES:
        projections = project(model, image, "conv2", 0, rule=rule)
        # 2 comes to each of the four windows of both maps.
        expected = np.zeros((4, 4))
        if rule == "deconvnet":
            expected[::2, ::2] = 2 - 3 * 2
        else:
            expected[[0, 2], [0, 2]] = 2
        np.testing.assert_array_equal(projections.pixels[0, ..., 0], expected)


# --- against the deconvnet in NumPy ---


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("arch", "layer", "crop"),
    [
        (ODD, "pool0", False),
        (ODD, "norm3", True),
        (ODD, "logits", False),
        (MIXED, "conv3", True),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_rule_and_kind_of_layer(arch, layer, crop, rule):
    model, images = build(arch, "float64"), draw_images(arch, 2)
    rows, columns, _ = (1, 1, *arch.shapes()[layer])[-3:]
    places = [(0, 0), (rows // 2, 0), (rows - 1, columns - 1)]
    places = np.stack([places, places[::-1]])
    check(model, images, layer, [0, 1, 1], places, rule=rule, crop=crop)


# The paper's geometry, in fewer units.
PYTORCHCV = ARCHITECTURES["zfnet-imagenet"]
NARROW = {f"conv{n}": 8 * n for n in (1, 2, 3, 4, 5)} | {"fc6": 8, "fc7": 8}


# Inputs of the paper are within about ±128, and only there does normalization matter.
@pytest.mark.parametrize(
    ("arch", "layer", "options"),
    [
        (zf.ablate(zf.ZFNET, widths=NARROW), "conv5", {}),
        (zf.ablate(PYTORCHCV, widths=NARROW), "conv5", {}),
        (zf.ablate(PYTORCHCV, widths=NARROW), "conv2", {"rule": "gradient"}),
        (zf.ZFNET32, "conv5", {"rule": "guided", "crop": True}),
        (zf.ZFNET32, "logits", {}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_networks_of_the_paper(arch, layer, options):
    """In two corners and in the middle of a border, or at the strongest position."""
    model = build(arch, "float64")
    images = draw_images(arch, 1, scale=1.0 if arch is zf.ZFNET32 else 60.0)
    shape = arch.shapes()[layer]
    units, places = [2, shape[-1] - 1], None
    if len(shape) == 3:
        rows, columns = shape[0] - 1, shape[1] - 1
        places = np.array([[(0, 0), (0, columns // 2), (rows, columns)]])
        units = [2, shape[-1] - 1, 2]
    check(model, images, layer, units, places, **options)


@pytest.mark.parametrize("rule", RULES)
def test_single_precision_is_close(rule):
    model = zf.load("zfnet32-cifar10").model
    check(model, case("shipped").image[None], "conv5", [1, 5], rule=rule, within=1e-4)


# --- laws ---


@pytest.mark.parametrize("rule", RULES)
def test_any_other_network_gives_the_same(rule):
    """The page and the model itself under `with_relu_rule` are two definitions."""
    layer, model, images = "norm3", build(ODD), draw_images(ODD, 3, seed=3)
    shape = (3, *ODD.shapes()[layer])
    signal = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    with_windows, plain = (
        (
            project(net, images, layer, [0, 3, 1], rule=rule, crop=True),
            np.asarray(backproject(net, images, layer, signal, rule=rule)),
        )
        for net in (model, as_function(model))
    )
    assert_same(with_windows[0], plain[0])
    assert with_windows[1].any() and distance(with_windows[1], plain[1]) < 1e-5


def assert_same(actual: Projections, expected: Projections, within=1e-5):
    for field in ("boxes", "images", "units", "positions"):
        np.testing.assert_array_equal(getattr(actual, field), getattr(expected, field))
    np.testing.assert_allclose(
        actual.activations, expected.activations, rtol=within, atol=within
    )
    for pixels, others in zip(actual.pixels, expected.pixels, strict=True):
        assert distance(pixels, others) <= within


# --- a signal on its way ---


@pytest.mark.parametrize("rule", RULES)
def test_the_signal_at_every_layer_is_that_of_the_deconvnet_in_numpy(rule):
    model, (image,) = build(ODD, "float64"), draw_images(ODD).astype(np.float64)
    weights, norm = reference.weights_of(model), "backprop" * (rule == "gradient")
    steps = reference.forward(ODD, weights, image, "norm3")
    signal = np.random.default_rng(1).normal(size=ODD.shapes()["norm3"])
    with jax.enable_x64(True):
        arguments = (model, image[None], "norm3", signal[None])
        signals, pixels = follow_signal(*arguments, rule=rule)
        assert distance(pixels, backproject(*arguments, rule=rule)) < 1e-12
    assert list(signals) == [step.layer.name for step in steps[-2::-1]]
    for index, arriving in enumerate([pixels, *reversed(signals.values())]):
        expected = reference.descend(steps[index:], weights, signal, rule, norm=norm)
        assert expected.any() and distance(arriving[0], expected) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_the_signal_at_the_end_of_a_block_is_what_the_layers_above_send(rule):
    """And none is told of the branches of a residual block."""
    model, images = networks.residual_nnx(), networks.residual_images(1)
    net = zf.network(model, networks.IMAGE_SHAPE)
    signal = np.random.default_rng(0).normal(size=(1, networks.CLASSES))
    signals, pixels = follow_signal(net, images, "fc", signal.astype("f4"), rule=rule)
    assert list(signals) == ["block2.pool", "block2", "block1", "stem.pool", "stem"]
    assert distance(pixels, backproject(net, images, "fc", signal, rule=rule)) < 1e-6
    upper = with_relu_rule(lambda x: model.fc(model.block2(x).mean((1, 2))), rule)
    activations = net.activations(images, "block1")["block1"]
    (expected,) = jax.vjp(upper, activations)[1](jnp.asarray(signal, jnp.float32))
    assert distance(signals["block1"], expected) < 1e-5


# --- units, positions and batches ---


def test_many_images_are_one_at_a_time():
    """More than a batch; each image with units and positions of its own."""
    model, images = build(ODD), draw_images(ODD, 19)
    rng = np.random.default_rng(0)
    rows, columns, width = build(ODD).features(images).features["conv3"].shape[1:]
    units = rng.integers(width, size=(19, 2))
    places = np.stack(
        [rng.integers(rows, size=(19, 2)), rng.integers(columns, size=(19, 2))], -1
    )
    for positions in (None, places):
        projections = project(model, images, "conv3", units, positions)
        assert projections.images.tolist() == np.repeat(np.arange(19), 2).tolist()
        assert projections.units.tolist() == units.ravel().tolist()
        for i in (0, 7, 18):
            place = None if positions is None else positions[i : i + 1]
            alone = project(model, images[i : i + 1], "conv3", units[i], place)
            chosen = slice(2 * i, 2 * i + 2)
            for n, pixels in enumerate(projections.pixels[chosen]):
                assert distance(pixels, alone.pixels[n]) < 1e-5
            np.testing.assert_array_equal(
                projections.positions[chosen], alone.positions
            )


def test_images_and_positions_pair_up():
    """Nine images, nine positions and one unit are nine projections."""
    model, images = build(ODD), draw_images(ODD, 9)
    places = np.array([(n % 4, n % 3) for n in range(9)])
    projections = project(model, images, "conv3", 2, places)
    assert projections.positions.tolist() == places.tolist()
    assert_same(projections, project(model, images, "conv3", [2], places[:, None]))
    same = project(model, images, "conv3", 2, (1, 2))
    assert same.positions.tolist() == [[1, 2]] * 9


def test_the_strongest_unit_is_the_default():
    model, images = build(ODD), draw_images(ODD, 3)
    maps = np.asarray(model.features(images).features["conv3"])
    projections = project(model, images, "conv3")
    assert projections.units.tolist() == maps.max((1, 2)).argmax(1).tolist()
    assert projections.activations.tolist() == maps.max((1, 2, 3)).tolist()
    projections = project(model, images, "conv3", positions=(1, 2))
    assert projections.units.tolist() == maps[:, 1, 2].argmax(1).tolist()


# --- types ---


def test_bfloat16_is_as_exact_as_8_bits_allow():
    images = draw_images(zf.ZFNET32, 2)
    model, wide = build(zf.ZFNET32, "bfloat16"), build(zf.ZFNET32)
    places = np.array([(0, 0), (9, 30)])
    ours, theirs = (project(m, images, "conv1", [3, 4], places) for m in (model, wide))
    assert ours.pixels.dtype == ours.activations.dtype == np.float32
    for actual, expected in zip(ours.pixels, theirs.pixels, strict=True):
        assert distance(actual, expected) < 0.05


def test_projections_draw_themselves():
    model = with_weights(OVERLAPPING, conv1=np.ones(1))
    figure = project(model, SHARED, "pool1", [0, 0]).show()
    words = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert words.count("unit 0") == 2


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": 6}, r"unit 6: conv3 has 6 units \(0 to 5\)"),
        ({"units": np.array([[0], [1]])}, r"units are int64\[2, 1\].*each image's own"),
        ({"units": np.zeros(0, int)}, "unit missing"),
        ({"positions": (3, 9)}, r"position \(3, 9\) is outside the"),
        ({"positions": np.zeros((2, 2), int)}, "one per image"),
        ({"rule": "deconv"}, "rule.*deconv"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(change, message, monkeypatch):
    # As users see it: without the tests' own checks of types.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arguments: dict[str, Any] = {
        "images": draw_images(ODD),
        "layer": "conv3",
        "units": [0],
        "positions": None,
    }
    with pytest.raises(ValueError, match=message):
        project(build(ODD), **{**arguments, **change})


def test_a_signal_of_another_shape_is_refused():
    signal = np.ones((1, 3), np.float32)
    with pytest.raises(ValueError, match=r"\(1, 3\): logits takes \(1, 1\)"):
        backproject(two_layers(), IMAGE, "logits", signal)


# --- against PyTorch ---


def stored() -> dict[Key, np.ndarray]:
    with np.load(STORE) as arrays:
        return {Key.parse(name): arrays[name] for name in arrays.files}


@pytest.mark.parametrize(
    ("name", "layer"), sorted({(key.case, key.layer) for key in stored()})
)
def test_pytorch_gave_the_same(name, layer):
    """Captum in float64; and `MaxUnpool2d`, which overwrites, for the oracle."""
    net = case(name)
    model = with_dtype("float64", zf.load_weights(net.state, net.arch))
    for key, expected in stored().items():
        if (key.case, key.layer) != (name, layer):
            continue
        place = key.row, key.column
        if key.overlap == "last":
            pixels = overwrite(model, net.image, layer, key.unit, place)
        else:
            pixels = project_wide(model, net.image, layer, key.unit, place, key.rule)
        assert distance(key.sample(pixels, net.arch), expected) <= 1e-6, key


def project_wide(model: zf.ConvNet, image, layer, unit, place, rule) -> np.ndarray:
    with jax.enable_x64(True):
        wide = image[None].astype(np.float64)
        return project(model, wide, layer, unit, place, rule=rule).pixels[0]


def overwrite(model: zf.ConvNet, image, layer: str, unit: int, place) -> np.ndarray:
    """The deconvnet in NumPy, with unpooling that overwrites."""
    below = image.astype(np.float64)
    # Flat parts of a picture are ties, which NumPy's products break by rounding.
    with jax.enable_x64(True):
        features, switches = model.features(below[None], until=layer)
    steps = []
    for spec in model.arch.layers[: len(features)]:
        out = np.asarray(features[spec.name][0])
        chosen = switches.get(spec.name)
        chosen = None if chosen is None else np.asarray(chosen[0])
        steps.append(reference.Step(spec, below, out, chosen))
        below = out
    signal = reference.keep(below, unit, place)
    weights = reference.weights_of(model)
    return reference.descend(steps, weights, signal, "deconvnet", "last")


@pytest.fixture(scope="module")
def pytorch():
    """References, and one network of the paper's full size in both."""
    pytest.importorskip("torch", reason="needs the parity extra")
    pytest.importorskip("captum", reason="needs the parity extra")
    from tests.references import make_deconvnet

    state = draw_state(zf.ZFNET_PLAIN, seed=5)
    net = make_deconvnet.torch_net(zf.ZFNET_PLAIN, state)
    model = zf.load_weights(state, zf.ZFNET_PLAIN)
    return make_deconvnet, net, with_dtype("float64", model)


@pytest.mark.parity
@pytest.mark.parametrize("layer", ["pool1", "conv5", "fc7"])
@pytest.mark.parametrize(
    ("rule", "overlap"), [*((rule, "sum") for rule in RULES), ("deconvnet", "last")]
)
def test_pytorch_gives_the_same(pytorch, layer, rule, overlap):
    """The paper's network, on a photograph."""
    make, net, model = pytorch
    (image,) = photographs(1)
    theirs = make.features(net, image, layer)[0][layer]
    *place, unit = map(int, np.unravel_index(theirs.argmax(), theirs.shape))
    place = tuple(place) or (0, 0)
    expected = make.project(net, image, layer, unit, place, rule, overlap)
    if overlap == "last":
        pixels = overwrite(model, image, layer, unit, place)
    else:
        pixels = project_wide(model, image, layer, unit, place, rule)
    assert distance(pixels, expected) <= 1e-6

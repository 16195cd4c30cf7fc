"""Occlusion against full passes, and networks whose maps are known."""

import jax
import numpy as np
import pytest
from flax import nnx

import zfnet_jax as zf
from tests.comparison import assert_close
from tests.networks import MIXED, as_function
from zfnet_jax.analysis import occlusion as module
from zfnet_jax.analysis.occlusion import occlusion, share_on
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool

PLAIN = Architecture(
    "plain",
    (16, 16),
    (
        Conv("conv1", 4, kernel=3, padding=1),
        MaxPool("pool1"),
        Conv("conv2", 5, kernel=3, padding=1),
        Dense("logits", 3, relu=False),
    ),
)


@pytest.fixture(scope="module", params=[MIXED, PLAIN], ids=lambda arch: arch.name)
def model(request):
    return zf.ConvNet(request.param, rngs=nnx.Rngs(3))


def draw_images(model, count=2, seed=0):
    shape = (count, *model.arch.input_hw, 3)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


run = jax.jit(lambda model, images: model.features(images).features)


def run_covered(model, image, boxes, cover):
    """Every covered image through the whole network."""
    covered = np.repeat(image[None], len(boxes), 0)
    for picture, (top, left, bottom, right) in zip(covered, boxes, strict=True):
        part = slice(top, bottom), slice(left, right)
        picture[part] = np.broadcast_to(cover, image.shape)[part]
    return run(model, covered)


@pytest.mark.parametrize(
    ("size", "stride", "fill"),
    [(1, 3, "color"), ((3, 11), (4, 3), "image"), (16, (5, 2), "image")],
)
def test_full_passes_give_the_same(model, size, stride, fill):
    images = draw_images(model)
    cover = {
        "color": np.array([1.0, -2.0, 0.5], np.float32),
        "image": draw_images(model, seed=1)[0],
    }[fill]
    responses = occlusion(
        model, images, [1, 2], size=size, stride=stride, fill=cover, units=2
    )
    layer, (n, rows, cols, classes) = responses.layer, responses.logits.shape
    assert layer == model.arch.layers[-3 if layer == "conv3" else -2].name
    assert n == 2 and responses.units.tolist() == [2, 2]
    for i, image in enumerate(images):
        expected = run_covered(model, image, responses.boxes.reshape(-1, 4), cover)
        logits = np.asarray(expected["logits"]).reshape(rows, cols, classes)
        chances = np.asarray(jax.nn.softmax(logits))[..., i + 1]
        activity = expected[layer][..., 2].sum((1, 2)).reshape(rows, cols)
        assert_close(responses.logits[i], logits, atol=1e-4)
        assert_close(responses.probability[i], chances)
        assert_close(responses.label[i], responses.logits[i].argmax(-1))
        assert_close(responses.activity[i], activity, atol=1e-4)


def test_any_other_network_gives_the_same(model, monkeypatch):
    """Through the windows, in parts, and by one pass per position."""
    monkeypatch.setattr(module, "_WINDOWS", 7)
    monkeypatch.setattr(module, "_IMAGES", 9)
    images = draw_images(model)
    ours, theirs = (
        occlusion(net, images, 0, size=5, stride=4, layer="pool1")
        for net in (model, as_function(model))
    )
    assert_close(theirs, ours, atol=1e-4)


def test_squares_reach_every_pixel(model):
    images, calls = draw_images(model), []
    height, width = model.arch.input_hw
    responses = occlusion(
        model, images, 0, size=5, stride=4, progress=lambda *call: calls.append(call)
    )
    assert (responses.tops[-1], responses.lefts[-1]) == (height - 5, width - 5)
    assert set(np.diff(responses.tops)[:-1]) == {4}
    total = 2 * len(responses.tops) * len(responses.lefts)
    assert calls == [(total // 2, total), (total, total)]
    clean = run(model, images)
    np.testing.assert_allclose(responses.clean_logits, clean["logits"], rtol=1e-4)
    maps = np.asarray(clean[responses.layer])
    assert responses.units.tolist() == maps.max((1, 2)).argmax(1).tolist()
    activity = maps.sum((1, 2))[[0, 1], responses.units]
    np.testing.assert_allclose(responses.clean_activity, activity, rtol=1e-5)


def test_a_network_that_sees_one_pixel_gives_a_map_of_that_pixel():
    arch = Architecture(
        "one", (6, 8), (Conv("conv1", 1, 1), Dense("logits", 2, relu=False))
    )
    model = zf.ConvNet(arch, rngs=nnx.Rngs(0))
    model.conv1.kernel[...] = np.ones((1, 1, 3, 1), np.float32)
    weights = np.zeros((6, 8, 1, 2), np.float32)
    weights[4, 3, 0, 1] = 2.0
    model.logits.kernel[...] = weights.reshape(48, 2)
    images = np.ones((1, 6, 8, 3), np.float32)

    def drop_of(size):
        responses = occlusion(model, images, 1, size=size, stride=1)
        return responses, responses.clean_logits[0, 1] - responses.logits[0, ..., 1]

    expected = np.zeros((6, 8))
    expected[4, 3] = 6.0
    np.testing.assert_allclose(drop_of(1)[1], expected, atol=1e-6)
    # A rectangle of 2 x 3 covers it at six positions and shares it among its pixels.
    responses, drop = drop_of((2, 3))
    covering = [(3 + row, 1 + column) for row, column in np.ndindex(2, 3)]
    np.testing.assert_array_equal(np.argwhere(drop > 1), covering)
    pixels = responses.by_pixel(drop)
    assert pixels.shape == (6, 8)
    assert pixels[4, 3] == pytest.approx(6.0) and pixels[0, 0] == pytest.approx(0)
    assert pixels[3, 1] == pytest.approx(6.0 / 4)


def test_the_share_of_a_drop_on_an_object():
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    assert share_on(np.ones((4, 4)), mask) == 0.25
    assert share_on(np.where(mask, 2.0, -1.0), mask) == 1
    assert np.isnan(share_on(-np.ones((4, 4)), mask))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (4, 17)}, "square of 4 x 17 pixels does not fit an image of 16 x 16"),
        ({"stride": (1, 0)}, r"stride must be at least 1 pixel, not \(1, 0\)"),
        ({"units": 5}, r"unit 5: conv2 has 5 units \(0 to 4\)"),
        ({"layer": "logits"}, "logits has no feature maps"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(change, message):
    model = zf.ConvNet(PLAIN, rngs=nnx.Rngs(0))
    arguments = {"images": draw_images(model), "targets": 0, "size": 4, "stride": 4}
    with pytest.raises(ValueError, match=message):
        occlusion(model, **{**arguments, **change})

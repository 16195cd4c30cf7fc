"""Occlusion against full passes, and nets whose maps are known."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

import zfnet_jax as zf
from zfnet_jax.analysis import share_on
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool

pytestmark = pytest.mark.usefixtures("compiled_once")

# Uneven everything: strides, padding on one side, groups, a stride beyond its kernel.
MIXED = Architecture(
    "mixed",
    (23, 19),
    (
        Conv("conv1", 6, kernel=(5, 3), stride=(2, 1), padding=((2, 0), (1, 2))),
        ContrastNorm("norm1"),
        MaxPool("pool1", padding=1),
        Conv("conv2", 8, kernel=3, padding=1, groups=2),
        Conv("conv3", 6, kernel=1, stride=2),
        Dense("fc4", 7),
        Dense("logits", 4, relu=False),
    ),
)
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


def image_for(model, seed=0):
    shape = (*model.arch.input_hw, 3)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _features(graph, weights, images):
    return nnx.merge(graph, weights).features(images)


def by_full_passes(model, image, boxes, cover):
    """Every covered image through the whole network."""
    covered = np.repeat(image[None], len(boxes), 0)
    for picture, (top, left, bottom, right) in zip(covered, boxes, strict=True):
        part = slice(top, bottom), slice(left, right)
        picture[part] = np.broadcast_to(cover, image.shape)[part]
    return _features(*nnx.split(model), covered)


@pytest.mark.parametrize(("size", "stride"), [(1, 3), (7, 2), (16, 5)])
@pytest.mark.parametrize("fill", ["colour", "image"])
def test_it_is_what_full_passes_give(model, size, stride, fill):
    image = image_for(model)
    cover = {
        "colour": np.array([1.0, -2.0, 0.5], np.float32),
        "image": image_for(model, 1),
    }[fill]
    found = zf.occlusion(model, image, 1, size, stride, cover, unit=2)
    rows, cols, classes = found.logits.shape
    expected = by_full_passes(model, image, found.boxes.reshape(-1, 4), cover)
    logits = np.asarray(expected.logits).reshape(rows, cols, classes)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
    chances = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(found.probability, chances[..., 1], atol=1e-5)
    np.testing.assert_array_equal(found.label, found.logits.argmax(-1))
    activity = expected.features[found.layer][..., 2].sum((1, 2)).reshape(rows, cols)
    np.testing.assert_allclose(found.activity, activity, rtol=1e-4, atol=1e-4)


def test_squares_reach_every_pixel(model):
    image = image_for(model)
    height, width = model.arch.input_hw
    found = zf.occlusion(model, image, 0, 5, 4)
    assert (found.tops[-1], found.lefts[-1]) == (height - 5, width - 5)
    assert set(np.diff(found.tops)[:-1]) == {4}
    clean = _features(*nnx.split(model), image[None])
    np.testing.assert_allclose(found.clean_logits, clean.logits[0], rtol=1e-5)
    top = np.asarray(clean.features[found.layer][0])
    assert found.unit == top.max((0, 1)).argmax()
    assert found.clean_activity == pytest.approx(top[..., found.unit].sum(), rel=1e-5)


def test_a_net_that_sees_one_pixel_gives_a_map_of_that_pixel():
    arch = Architecture(
        "one", (6, 8), (Conv("conv1", 1, 1), Dense("logits", 2, relu=False))
    )
    model = zf.ConvNet(arch, rngs=nnx.Rngs(0))
    model.conv1.kernel[...] = np.ones((1, 1, 3, 1), np.float32)
    seen = np.zeros((6, 8, 1, 2), np.float32)
    seen[4, 3, 0, 1] = 2.0
    model.logits.kernel[...] = seen.reshape(48, 2)
    found = zf.occlusion(model, np.ones((6, 8, 3), np.float32), 1, 1, 1)
    drop = found.clean_logits[1] - found.logits[..., 1]
    expected = np.zeros((6, 8))
    expected[4, 3] = 6.0
    np.testing.assert_allclose(drop, expected, atol=1e-6)
    # A square of 2 x 2 covers it from four places, and every pixel of these shares.
    wide = zf.occlusion(model, np.ones((6, 8, 3), np.float32), 1, 2, 1)
    drop = wide.clean_logits[1] - wide.logits[..., 1]
    np.testing.assert_array_equal(
        np.argwhere(drop > 1) - (4, 3), [[-1, -1], [-1, 0], [0, -1], [0, 0]]
    )
    pixels = wide.by_pixel(drop)
    assert pixels.shape == (6, 8)
    assert pixels[4, 3] == pytest.approx(6.0) and pixels[0, 0] == pytest.approx(0)
    assert pixels[3, 2] == pytest.approx(6.0 / 4)


def test_a_square_of_the_whole_image_leaves_the_cover(model):
    size = min(model.arch.input_hw)
    square = dataclasses.replace(model.arch, input_hw=(size, size))
    model = zf.ConvNet(square, rngs=nnx.Rngs(1))
    cover = image_for(model, 5)
    found = zf.occlusion(model, image_for(model), 0, size, 3, cover)
    assert found.logits.shape[:2] == (1, 1)
    alone = _features(*nnx.split(model), cover[None]).logits
    np.testing.assert_allclose(found.logits[0, 0], alone[0], rtol=1e-4, atol=1e-5)


def test_pixels_that_no_square_covers_have_no_drop():
    model = zf.ConvNet(PLAIN, rngs=nnx.Rngs(0))
    found = zf.occlusion(model, image_for(model), 0, 2, 7)
    pixels = found.by_pixel(np.ones((3, 3)))
    assert pixels.sum() == 9 * 4 and set(np.unique(pixels)) == {0, 1}


def test_the_share_of_a_drop_on_an_object():
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    assert share_on(np.ones((4, 4)), mask) == 0.25
    assert share_on(np.where(mask, 2.0, -1.0), mask) == 1
    assert np.isnan(share_on(-np.ones((4, 4)), mask))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 17}, "square of 17 pixels does not fit an image of 16 x 16"),
        ({"size": 0}, "square of 0 pixels"),
        ({"stride": 0}, "stride must be at least 1 pixel, not 0"),
        ({"target": 3}, "target 3 .* 0 to 2"),
        ({"target": -1}, "target -1"),
        ({"unit": 5}, "unit 5 is not one of conv2's, 0 to 4"),
        ({"image": np.zeros((16, 15, 3), np.float32)}, r"16, 16, 3.*16, 15, 3"),
        ({"fill": np.zeros(4, np.float32)}, r"fill of shape \(4,\)"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    model = zf.ConvNet(PLAIN, rngs=nnx.Rngs(0))
    arguments = {"image": image_for(model), "target": 0, "size": 4, "stride": 4}
    with pytest.raises(ValueError, match=message):
        zf.occlusion(model, **{**arguments, **change})

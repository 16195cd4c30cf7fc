"""Projections on their sheet, and those that a result shows."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from zfnet_jax.projections import Projections
from zfnet_jax.viz.projections import draw_projections


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def shown(figure):
    return [np.asarray(x.get_array()) for x in figure.axes[0].images]


def test_a_row_is_the_framed_image_the_patch_and_each_rule_on_its_scale():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    boxes = np.array([[2, 1, 6, 5], [-2, 5, 2, 9]])
    pixels = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
    rules = {"deconvnet": pixels, "guided": 0 * pixels}
    captions = [("unit 3", "activation 2"), ("unit 7", "activation 1")]
    figure = draw_projections(
        "t", captions, rules, np.array([3, 7]), "layer", "max", image, boxes
    )
    first, second = shown(figure)[:4], shown(figure)[4:]
    peak = np.abs(pixels).max()
    for index, (framed, patch, projection, zeros) in enumerate((first, second)):
        np.testing.assert_array_equal(framed, image)
        expected = 0.5 + pixels[index] / peak / 2
        np.testing.assert_allclose(projection, expected, atol=1e-6)
        assert (zeros == 0.5).all()
        # Gray where the box leaves the image.
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), constant_values=128)
        top, left, bottom, right = boxes[index] + 4
        np.testing.assert_array_equal(patch, padded[top:bottom, left:right])
    assert texts(figure).count(f"deconvnet ± {peak:.3g}") == 2
    assert texts(figure).count("guided all zero") == 2


def test_projections_of_the_whole_image_need_no_patch():
    image, boxes = np.zeros((4, 4, 3), np.uint8), np.array([[0, 0, 4, 4]])
    rules = {"gradient": np.ones((1, 4, 4, 3), np.float32)}
    figure = draw_projections(
        "t", [("cat", "")], rules, np.array([0]), image=image, boxes=boxes
    )
    assert len(shown(figure)) == 2


def result(pixels, images=None):
    count, zeros = len(pixels), np.zeros(len(pixels), np.int32)
    return Projections(
        pixels=pixels,
        boxes=np.zeros((count, 4), np.int32),
        images=zeros if images is None else images,
        units=np.arange(count, dtype=np.int32),
        positions=np.zeros((count, 2), np.int32),
        activations=np.arange(count, dtype=np.float32),
    )


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_shown_projections_are_clipped_at_a_percentile(channels):
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, 20, 20, channels)).astype(np.float32)
    pixels[0, 0, 0] = 1e6
    expected = pixels.sum(3, keepdims=True) if channels == 2 else pixels
    figure = result(pixels, np.array([0, 4], np.int32)).show()
    for picture, values in zip(shown(figure), expected, strict=True):
        scale = np.percentile(np.abs(values), 99.5)
        values = np.broadcast_to(values, picture.shape)
        wanted = np.clip(0.5 + values / scale / 2, 0, 1)
        np.testing.assert_allclose(picture, wanted, atol=1e-6)
    assert "activation 1, image 4" in texts(figure)
    note = " ".join(texts(figure))
    assert ("summed over 2 channels" in note) == (channels == 2)


def test_at_most_64_projections_are_shown_and_none_is_an_error():
    figure = result(np.ones((70, 2, 2, 3), np.float32)).show()
    assert len(shown(figure)) == 64 and texts(figure)[0] == "70 projections"
    with pytest.raises(ValueError, match="no projections"):
        result(np.ones((0, 2, 2, 3), np.float32)).show()


def test_each_projection_stands_beside_the_patch_of_its_own_image():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    images = np.array([2, 0], np.int32)
    projections = dataclasses.replace(
        result(np.ones((2, 4, 4, 3), np.float32), images),
        boxes=np.array([[1, 2, 5, 6], [-1, 4, 3, 8]], np.int32),
    )
    first, _, second, _ = shown(projections.show(SimpleNamespace(pictures=pictures)))
    np.testing.assert_array_equal(first, pictures[2, 1:5, 2:6])
    np.testing.assert_array_equal(second[1:], pictures[0, :3, 4:])
    assert (second[0] == 128).all()

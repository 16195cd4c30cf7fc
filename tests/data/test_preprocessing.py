import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zfnet_jax.data import (
    TORCHVISION,
    Preprocessing,
    center_crop,
    fit_photograph,
    resize_shortest_side,
    ten_crop,
    ten_crop_size,
)


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_mean_image_by_hand():
    images = np.zeros((3, 1, 2, 3), np.uint8)
    images[:, 0, 0, 0] = [255, 255, 0]
    images[:, 0, 1, 2] = [1, 0, 0]
    mean = Preprocessing.fit(images).mean
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(
        mean, np.array([[[170, 0, 0], [0, 0, 1 / 3]]], np.float32), strict=True
    )
    # Each pixel has a mean of its own, neither one per channel nor one per image.
    preprocess = Preprocessing.fit(images, scale=2.0)
    np.testing.assert_allclose(preprocess(images)[:, 0, 0, 0], [170, 170, -340])
    with pytest.raises(ValueError, match="at least one"):
        Preprocessing.fit(images[:0])


@pytest.mark.parametrize("size", [None, (8, 18)])
def test_numpy_and_jitted_jax_agree(size):
    images = random_images(3, 4, 6, 3)
    preprocess = Preprocessing.fit(images, 1 / 64, size)
    ours, theirs = preprocess(images), jax.jit(preprocess)(jnp.asarray(images))
    assert isinstance(ours, np.ndarray) and isinstance(theirs, jax.Array)
    assert ours.shape == theirs.shape == (3, *(size or (4, 6)), 3)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_preprocessing_resizes_after_the_mean():
    images = random_images(3, 4, 6, 3)
    plain = Preprocessing.fit(images, scale=0.5)
    # Three times as wide: the middle one of each three columns keeps its place.
    rows = Preprocessing.fit(images, scale=0.5, size=(4, 18))(images)
    np.testing.assert_allclose(rows[:, :, 1::3], plain(images), rtol=1e-5, atol=1e-5)


def test_pictures_are_what_the_network_sees_without_the_mean():
    images = random_images(3, 6, 8, 3)
    mean = np.random.default_rng(1).uniform(0, 255, (6, 8, 3)).astype(np.float32)
    same = Preprocessing(mean, 0.5)
    assert same.pictures(images) is images
    larger = Preprocessing(mean, 0.5, (12, 20))
    shown = larger.pictures(images)
    assert shown.shape == (3, 12, 20, 3) and shown.dtype == np.uint8
    bare = Preprocessing(np.zeros_like(mean), 1.0, (12, 20))
    np.testing.assert_array_equal(shown, np.rint(bare(images)))


@pytest.mark.parametrize("size", [None, (4, 8)])
def test_one_channel_equals_each_of_three(size):
    gray = random_images(3, 2, 4, 1)
    color = np.repeat(gray, 3, 3)
    ours = Preprocessing.fit(gray, 0.5, size)
    theirs = Preprocessing.fit(color, 0.5, size)
    assert ours.mean.shape == (2, 4, 1)
    for channel in range(3):
        np.testing.assert_allclose(ours(gray)[..., 0], theirs(color)[..., channel])
        pictures = ours.pictures(gray)[..., 0], theirs.pictures(color)[..., channel]
        np.testing.assert_array_equal(*pictures)
    image = random_images(9, 14, 1)
    expected = fit_photograph(np.repeat(image, 3, 2), (6, 4))
    np.testing.assert_array_equal(fit_photograph(image, (6, 4)), expected[..., :1])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (random_images(2, 5, 6, 3), "5 x 6 x 3 do not fit the mean image of 6 x 5 x 3"),
        (random_images(6, 5, 3), r"takes a batch: for one image, image\[None\]"),
        (random_images(2, 6, 5, 3) / np.float32(255), "0 to 255, not float32"),
    ],
)
def test_images_that_do_not_fit(images, message, monkeypatch):
    # The users' own checks, without those of the tests.
    monkeypatch.setitem(jaxtyping.config.__dict__, "jaxtyping_disable", True)
    preprocess = Preprocessing.fit(random_images(2, 6, 5, 3), size=(12, 10))
    for call in (preprocess, preprocess.pictures):
        with pytest.raises(ValueError, match=message):
            call(images)
    with pytest.raises(ValueError, match=message):
        jax.jit(preprocess)(images)


def test_colors_are_normalized_as_by_torchvision(monkeypatch):
    images = random_images(2, 4, 5, 3)
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = (images / 255 - mean) / deviation
    ours, theirs = TORCHVISION(images), jax.jit(TORCHVISION)(jnp.asarray(images))
    assert isinstance(ours, np.ndarray) and isinstance(theirs, jax.Array)
    assert ours.dtype == theirs.dtype == np.float32
    for values in (ours, theirs):
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    # Not under the tests' own checks of types.
    monkeypatch.setitem(jaxtyping.config.__dict__, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="uint8 pixels, 0 to 255, not float32"):
        TORCHVISION(images / np.float32(255))


def test_resizing_averages_what_it_leaves_out():
    # Without antialiasing, stripes one pixel wide come out as stripes, not as gray.
    stripes = np.zeros((64, 96, 3), np.uint8)
    stripes[:, ::2] = 200
    resized = resize_shortest_side(stripes, 8)
    assert resized.shape == (8, 12, 3)
    assert np.abs(resized[:, 1:-1].astype(int) - 100).max() < 8


def test_resizing_matches_pillow_and_keeps_orientation():
    image = random_images(30, 50, 3)
    expected = Image.fromarray(image).resize((20, 12), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_shortest_side(image, 12), np.asarray(expected))


def test_center_crop_by_hand():
    image = np.arange(5 * 6).reshape(5, 6, 1)
    assert center_crop(image, (3, 2))[..., 0].tolist() == [[8, 9], [14, 15], [20, 21]]
    # Half a pixel too many: the upper and left one of the two possible crops.
    assert center_crop(image[None], (2, 3))[0, ..., 0].tolist() == [
        [7, 8, 9],
        [13, 14, 15],
    ]


def test_ten_crop_by_hand():
    images = np.arange(3 * 4).reshape(1, 3, 4, 1)
    crops = ten_crop(images, (1, 2))[0, :, 0, :, 0]
    straight = [[0, 1], [2, 3], [8, 9], [10, 11], [5, 6]]
    assert crops.tolist() == straight + [row[::-1] for row in straight]
    ours = jax.jit(lambda x: ten_crop(x, (1, 2)))(jnp.asarray(images))
    assert ours[0, :, 0, :, 0].tolist() == crops.tolist()


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_ten_crops_are_five_of_the_image_and_five_of_its_mirror_image(
    height, width, data
):
    size = data.draw(st.tuples(st.integers(1, height), st.integers(1, width)))
    images = random_images(2, height, width, 3)
    crops = ten_crop(images, size)
    assert crops.shape == (2, 10, *size, 3)
    assert crops.dtype == np.uint8
    # A left crop of the mirror image is the mirror image of a right crop.
    mirrored = ten_crop(images[:, :, ::-1], size)
    for ours, theirs in ((5, 1), (6, 0), (7, 3), (8, 2)):
        np.testing.assert_array_equal(crops[:, ours], mirrored[:, theirs])
    np.testing.assert_array_equal(crops[:, 4], center_crop(images, size))
    np.testing.assert_array_equal(crops[:, 9], crops[:, 4, :, ::-1])


@pytest.mark.parametrize("crop", [center_crop, ten_crop])
def test_crops_name_sizes_that_do_not_fit(crop):
    with pytest.raises(ValueError, match=r"8 x 6 .* 7 x 6"):
        crop(random_images(2, 7, 6, 3), (8, 6))


def test_images_for_ten_crops_are_larger_as_in_the_paper():
    assert ten_crop_size((224, 224)) == (256, 256)
    assert ten_crop_size((32, 16)) == (37, 18)


# The middle of the photograph


# A strip one pixel high must not take the memory of a square as wide.
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (33, 500), (1, 2_000_000)])
@pytest.mark.parametrize(("wanted", "crop"), [((32, 32), 1.0), ((20, 32), 0.875)])
def test_fitted_has_the_size_of_the_network(size, wanted, crop):
    pixels = np.zeros((*size, 3), np.uint8)
    assert fit_photograph(pixels, wanted, crop=crop).shape == (*wanted, 3)


def test_224_pixels_are_the_middle_of_256():
    image = random_images(300, 300, 3)
    large = Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR)
    fitted = fit_photograph(image, (224, 224), crop=0.875)
    np.testing.assert_array_equal(fitted, np.asarray(large)[16:240, 16:240])
    whole = fit_photograph(image, (224, 224), "stretch", 0.875)
    np.testing.assert_array_equal(whole, fit_photograph(image, (224, 224)))


def test_fitted_keeps_the_middle_upright():
    pixels = np.zeros((64, 164, 3), np.uint8)
    pixels[:, 50:114] = np.arange(64, dtype=np.uint8)[:, None, None] * 4
    pixels[:, :50] = 255
    result = fit_photograph(pixels, (32, 32)).astype(int)
    expected = np.arange(32)[:, None].repeat(32, 1) * 8 + 2
    np.testing.assert_allclose(result[..., 0], expected, atol=2)


def test_a_portrait_is_padded_with_gray_or_stretched():
    pixels = np.full((40, 20, 3), 200, np.uint8)
    padded = fit_photograph(pixels, (8, 8), "pad")
    assert (padded[:, 2:6] == 200).all() and (padded[:, [0, 1, 6, 7]] == 128).all()
    stretched = fit_photograph(pixels, (8, 8), "stretch")
    np.testing.assert_array_equal(stretched, np.full((8, 8, 3), 200))

"""Random views of images."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zfnet_jax.augmentation import (
    Augmentation,
    crop_and_flip,
    cut_out,
    mix_neighbors,
)

jitted_crop_and_flip = jax.jit(crop_and_flip, static_argnums=(2, 3))
VIEWS = np.random.default_rng(4).integers(0, 256, (600, 6, 9, 3), np.uint8)


def locate_views(
    how: Augmentation, height: int, width: int
) -> list[tuple[int, int, bool]]:
    """Row, column and flip of each view, in the reflected image."""
    key, size = jax.random.key(0), (height, width)
    views = np.asarray(jitted_crop_and_flip(jnp.asarray(VIEWS), key, how, size))
    assert (views.dtype, views.shape) == (np.uint8, (600, height, width, 3))
    margin = how.margin if size == (6, 9) else 0
    edges = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = np.pad(VIEWS, edges, mode="reflect")
    rows, columns = (
        range(have - side + 1)
        for have, side in zip(padded.shape[1:3], size, strict=True)
    )
    matches = [[] for _ in VIEWS]
    for row, column, flip in itertools.product(rows, columns, (False, True)):
        windows = padded[:, row : row + height, column : column + width]
        windows = windows[:, :, ::-1] if flip else windows
        for index in np.flatnonzero((views == windows).all((1, 2, 3))):
            matches[index].append((row, column, flip))
    assert all(len(match) == 1 for match in matches)
    return [match[0] for match in matches]


ALL = [*itertools.product(range(5), range(5))]


@pytest.mark.parametrize(
    ("how", "size", "windows"),
    [
        (Augmentation(margin=2), (6, 9), ALL),
        # As in the paper: the corners and the center.
        (
            Augmentation(margin=2, corners=True),
            (6, 9),
            [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)],
        ),
        (Augmentation(margin=0), (6, 9), [(0, 0)]),
        # Images larger than a crop are not reflected.
        (Augmentation(margin=2), (4, 5), [*itertools.product(range(3), range(5))]),
        (
            Augmentation(margin=2, corners=True),
            (4, 5),
            [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)],
        ),
    ],
)
def test_views_are_windows_of_the_reflected_image_and_their_mirrors(how, size, windows):
    places = locate_views(how, *size)
    assert set(places) == {(*place, flip) for place in windows for flip in (0, 1)}
    # 600 tosses of a fair coin: 300, with a standard deviation of 12.
    assert 250 < sum(flip for *_, flip in places) < 350


def test_each_image_is_mixed_with_its_neighbor():
    x = jnp.array([[0.0, 4.0], [8.0, 0.0], [1.0, 1.0], [5.0, 9.0]])
    mixed = mix_neighbors(x, jnp.float32(0.75))
    expected = [[2.0, 3.0], [6.0, 1.0], [2.0, 3.0], [4.0, 7.0]]
    np.testing.assert_allclose(mixed, expected)


def test_cut_out_removes_its_share_anywhere_inside_the_image():
    inputs = np.random.default_rng(0).normal(size=(600, 6, 9, 3)).astype(np.float32)
    views = np.asarray(cut_out(jnp.asarray(inputs), jax.random.key(0), 1 / 3))
    corners = set()
    for image, view in zip(inputs, views, strict=True):
        rows, columns, _ = np.nonzero(view == 0)
        top, left = int(rows.min()), int(columns.min())
        corners.add((top, left))
        expected = image.copy()
        expected[top : top + 2, left : left + 3] = 0
        np.testing.assert_array_equal(view, expected)
    assert corners == set(itertools.product(range(5), range(7)))

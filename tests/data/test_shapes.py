import itertools
from hashlib import sha256

import numpy as np
import pytest
from matplotlib.path import Path

from zfnet_jax.data import CORNERS, SHAPES, Dataset, make_shapes, shape_parts

SIDES = ("left", "right")


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return make_shapes(600, seed=3)


def grid(points: int) -> tuple[np.ndarray, np.ndarray]:
    line = (np.arange(points) + 0.5) / points * 2.4 - 1.2
    x, y = np.meshgrid(line, line)
    return x, y


def turned(vertices: list[tuple[float, float]], copies: int) -> np.ndarray:
    """The vertices, then the same turned by a `copies`-th of a circle, and so on."""
    points = np.array(vertices) @ [1, 1j]
    turns = np.exp(2j * np.pi * np.arange(copies) / copies)
    outline = (turns[:, None] * points).ravel()
    return np.stack([np.real(outline), np.imag(outline)], 1)


def radial(radius: float, degrees: float) -> tuple[float, float]:
    angle = np.deg2rad(degrees)
    return float(radius * np.cos(angle)), float(radius * np.sin(angle))


BARB = np.array([(0.95, 0.0), (0.0, 0.627 / 0.75), (0.0, 0.2), (-0.95, 0.2)])
OUTLINES = {
    "square": turned([(0.69, 0.69)], 4),
    "triangle": turned([(0.0, 1.0)], 3),
    "star": turned([radial(1.0, 0), radial(0.4, 36)], 5),
    "cross": turned([(0.93, -0.29), (0.93, 0.29), (0.29, 0.29)], 4),
    "hourglass": turned([(0.06, 0.0), (0.6225, 0.75), (-0.6225, 0.75)], 2),
    "arrow": np.concatenate([BARB, BARB[::-1] * [1, -1]]),
}


@pytest.mark.parametrize("name", OUTLINES)
def test_polygons_have_their_corners(name):
    x, y = grid(240)
    inside = Path(OUTLINES[name]).contains_points(np.stack([x.ravel(), y.ravel()], 1))
    np.testing.assert_array_equal(SHAPES[name](x, y) < 0, inside.reshape(x.shape))


def test_round_shapes_have_their_areas():
    points = 800
    x, y = grid(points)
    cell = (2.4 / points) ** 2
    areas = {name: float((SHAPES[name](x, y) < 0).sum() * cell) for name in SHAPES}
    np.testing.assert_allclose(areas["disk"], np.pi * 0.85**2, rtol=2e-3)
    np.testing.assert_allclose(areas["ring"], np.pi * (0.92**2 - 0.52**2), rtol=2e-3)
    # A square of side 1.08, and two half disks on its edges.
    np.testing.assert_allclose(areas["heart"], 1.08**2 + np.pi * 0.54**2, rtol=2e-3)
    # A disk less the lens in which another one overlaps it.
    r, s, d = 0.95, 0.78, 0.5
    lens = (
        r**2 * np.arccos((d**2 + r**2 - s**2) / (2 * d * r))
        + s**2 * np.arccos((d**2 + s**2 - r**2) / (2 * d * s))
        - np.sqrt((r + s - d) * (d + r - s) * (d - r + s) * (d + r + s)) / 2
    )
    np.testing.assert_allclose(areas["crescent"], np.pi * r**2 - lens, rtol=2e-3)


def test_a_longer_set_begins_with_the_shorter():
    short, long = make_shapes(17, seed=5), make_shapes(83, seed=5)
    assert short.digest() == long.take(np.arange(17)).digest()
    assert make_shapes(17, seed=6).digest() != short.digest()
    assert len({image.tobytes() for image in long.images}) == 83


def test_a_seed_gives_the_same_bytes():
    """Accuracies and figures in the documentation rest on these images."""
    for arguments, expected in [
        ((50, (32, 32), 0), "88ac26ed95c0016791ad7fc4907360e4"),
        ((10, (40, 27), 1), "d29231ccec42a7c19c8ff0cf77ca6713"),
    ]:
        data = make_shapes(*arguments)
        assert data.masks is not None
        content = data.images.tobytes() + data.masks.tobytes() + data.labels.tobytes()
        assert sha256(content).hexdigest().startswith(expected)


def test_every_ten_images_hold_each_class_once_in_no_fixed_order(shapes):
    blocks = shapes.labels.reshape(-1, 10)
    np.testing.assert_array_equal(
        np.sort(blocks), np.broadcast_to(np.arange(10), (60, 10))
    )
    assert len({tuple(block) for block in blocks}) > 50


def eroded(mask: np.ndarray) -> np.ndarray:
    """True where all nine pixels about it are true."""
    padded = np.pad(mask, 1)
    rows, cols = mask.shape
    windows = [
        padded[row : row + rows, col : col + cols]
        for row, col in itertools.product(range(3), repeat=2)
    ]
    return np.logical_and.reduce(windows)


@pytest.mark.parametrize("size", [(32, 32), (24, 61)])
def test_masks_are_exact(size):
    """The object has one color, and a pixel's share of it tells the mask."""
    data = make_shapes(60, size, seed=2)
    assert data.masks is not None
    checked = 0
    for image, mask in zip(data.images, data.masks, strict=True):
        assert not (mask[0].any() or mask[-1].any())
        assert not (mask[:, 0].any() or mask[:, -1].any())
        inner = eroded(mask)
        colors = image[inner].astype(int)
        if len(colors) < 4:
            continue
        checked += 1
        color = np.median(colors, axis=0)
        # Corners let the ground in a pixel deeper; nothing else changes the color.
        assert (colors == color).all(axis=1).mean() > 0.85
        # Texture does not repeat that color outside, but for rare chance.
        outside = eroded(~mask)
        assert (image[outside] == color).all(axis=1).mean() < 0.02
    assert checked > 40


@pytest.mark.parametrize("size", [(64, 64), (60, 93)])
def test_parts_lie_at_the_corners_of_the_mask(size):
    data = make_shapes(200, size, seed=4)
    assert data.masks is not None
    for name, corners in CORNERS.items():
        indices, boxes = shape_parts(name, 200, size, seed=4)
        np.testing.assert_array_equal(
            indices, np.flatnonzero(data.labels == data.class_names.index(name))
        )
        assert list(boxes) == list(corners)
        for index, *found in zip(indices, *boxes.values(), strict=True):
            mask = data.masks[index]
            points = np.argwhere(mask) + 0.5
            at = {
                corner: np.array([box[0] + box[2], box[1] + box[3]]) / 2
                for corner, box in zip(corners, found, strict=True)
            }
            radius = np.sqrt(mask.sum() / np.pi)
            middle = points.mean(0)
            for corner, place in at.items():
                outward = (place - middle) / np.linalg.norm(place - middle)
                reach = (points - middle) @ outward
                farthest = points[reach.argmax()]
                assert np.linalg.norm(place - farthest) < 0.55 * radius, (name, corner)
            for top, left, bottom, right in found:
                assert mask[top:bottom, left:right].mean() > 0.2


def test_the_tip_of_an_arrow_is_where_its_head_is():
    data = make_shapes(400, (48, 48), seed=6)
    assert data.masks is not None
    indices, boxes = shape_parts("arrow", 400, (48, 48), seed=6)
    at = {part: (box[:, :2] + box[:, 2:]) / 2 for part, box in boxes.items()}
    for n, index in enumerate(indices):
        place = np.argwhere(data.masks[index]) + 0.5
        offset = (place - place.mean(0)).T
        # The head is wide and the tail narrow.
        long = at["tip"][n] - at["tail"][n]
        long /= np.linalg.norm(long)
        along, across = long @ offset, np.array([-long[1], long[0]]) @ offset
        share = (along - along.min()) / np.ptp(along)
        tip, tail = (0.52 < share) & (share < 0.7), (0.2 < share) & (share < 0.4)
        assert across[tip].std() > 1.5 * across[tail].std()
        # As it flies upward: rows count downward.
        to_right = np.array([long[1], -long[0]])
        left, right = (
            to_right @ (at[f"{side} barb"][n] - at["tip"][n]) for side in SIDES
        )
        assert left < 0 < right


def test_the_lobes_of_a_heart_are_left_and_right_as_it_stands():
    _, boxes = shape_parts("heart", 400, (48, 48), seed=6)
    at = {part: (box[:, :2] + box[:, 2:]) / 2 for part, box in boxes.items()}
    down = at["tip"] - (at["left lobe"] + at["right lobe"]) / 2
    # Turned so that `down` points down the rows, columns go along (-down[1], down[0]).
    to_right = np.stack([-down[:, 1], down[:, 0]], 1)
    for side, sign in zip(SIDES, (-1, 1), strict=True):
        offset = at[f"{side} lobe"] - at["tip"]
        assert (np.sign((offset * to_right).sum(1)) == sign).all()


def test_shapes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least 8 x 8 pixels, not 7 x 32"):
        make_shapes(1, (7, 32))
    with pytest.raises(ValueError, match="corners of heart, arrow, not of 'disk'"):
        shape_parts("disk", 10)

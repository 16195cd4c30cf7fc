"""Ten shapes over textured backgrounds: images that are drawn, never downloaded.

Each image shows one filled shape of random position, size, rotation and color, over a
colored texture whose amplitude falls as 1/f, like that of natural images (Field 1987).
An attribution can be checked against the object's mask.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from zfnet_jax.data.dataset import Dataset

Coordinates = Float64[np.ndarray, "..."]

# Radius of the circle that holds the object, as a share of the shorter side.
_RADIUS = (0.26, 0.44)
# Gray levels: mean of the background, its variation, and how far the object differs.
_BACKGROUND = (64.0, 192.0)
_TEXTURE = (14.0, 30.0)
_CONTRAST = (70.0, 110.0)
_CHROMA = 45.0

# Half the side of the box about a corner, in the same unit as the outlines.
_CORNER = 0.25

_PARAMETERS = 16
_POSE = 4
_TEXTURES = 2
_CHUNK_PIXELS = 2**15


def make_shapes(count: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> Dataset:
    """Draw a set of images, every ten of which hold each class once.

    An image depends only on the seed, its index and its size, so a longer set begins
    with the shorter one. Use different seeds for training and test sets.

    Args:
        count: Number of images.
        size: Rows and columns of an image, in pixels, at least 8 each.
        seed: Seed for the random draws, 0 or more.

    Returns:
        The images. Their `masks` are true where a pixel's center is inside the object.

    Raises:
        ValueError: The images are smaller than 8 x 8 pixels.
    """
    if min(size) < 8:
        raise ValueError(
            f"shapes need at least 8 x 8 pixels, not {size[0]} x {size[1]}"
        )
    images = np.empty((count, *size, 3), np.uint8)
    masks = np.empty((count, *size), np.bool_)
    labels = _labels(count, seed)
    # The working set of a chunk fits the processor's cache.
    chunk = max(1, _CHUNK_PIXELS // (size[0] * size[1]))
    for start in range(0, count, chunk):
        part = slice(start, min(start + chunk, count))
        images[part], masks[part] = _draw(
            labels[part], range(part.start, part.stop), size, seed
        )
    return Dataset(
        images=images,
        labels=labels,
        class_names=tuple(SHAPES),
        name="shapes",
        masks=masks,
        source=f"shapes drawn by zfnet_jax, {size[0]} x {size[1]}, seed {seed}",
    )


def shape_parts(
    name: str, count: int, size: tuple[int, int] = (32, 32), seed: int = 0
) -> tuple[Int64[np.ndarray, " n"], dict[str, Int64[np.ndarray, "n 4"]]]:
    """Locate the corners of one class in the images of `make_shapes`.

    A box is a square about a corner, its side half the radius of the circle that holds
    the object, cut off at the image's border. The class is one of `CORNERS`; the other
    arguments are those of `make_shapes`.

    Returns:
        The indices of that class's images; and by the corner's name its box in each of
        them: top, left, bottom, right in pixels, ends exclusive.

    Raises:
        ValueError: The class has no named corners.
    """
    if name not in CORNERS:
        raise ValueError(
            f"there are named corners of {', '.join(CORNERS)}, not of {name!r}"
        )
    indices = np.flatnonzero(_labels(count, seed) == list(SHAPES).index(name))
    raw = [_raw(_POSE, seed, 1, int(index)) for index in indices]
    uniform = _uniform(np.array(raw, np.uint64).reshape(len(indices), _POSE))
    radius, center_x, center_y, turn = _pose(uniform, size)
    boxes = {}
    for corner, (x, y) in CORNERS[name].items():
        row = center_y + radius * (np.sin(turn) * x + np.cos(turn) * y)
        column = center_x + radius * (np.cos(turn) * x - np.sin(turn) * y)
        half = _CORNER * radius
        ends = np.stack([row - half, column - half, row + half, column + half], 1)
        # The pixels whose centers, which lie at half-integers, are inside.
        boxes[corner] = np.ceil(ends - 0.5).astype(np.int64).clip(0, [*size, *size])
    return indices, boxes


def _star(x: Coordinates, y: Coordinates) -> Coordinates:
    # Ten mirror images of one edge, from a tip at radius 1 to a notch at radius 0.4.
    angle = np.abs((np.arctan2(y, x) / (np.pi / 5)) % 2 - 1) * (np.pi / 5)
    radius = np.hypot(x, y)
    notch = np.array([0.4, 0.0])
    tip = np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    along = (tip - notch) / np.hypot(*(tip - notch))
    across = radius * np.cos(angle) - notch[0], radius * np.sin(angle) - notch[1]
    return across[0] * along[1] - across[1] * along[0]


def _heart(x: Coordinates, y: Coordinates) -> Coordinates:
    # A square on its corner, with half a disk on each of the two upper edges.
    y, half = y + 0.15, 0.54
    lobes = np.hypot(np.abs(x) - half / np.sqrt(2), y - half / np.sqrt(2)) - half
    return np.minimum(
        _box((x + y) / np.sqrt(2), (x - y) / np.sqrt(2), half, half), lobes
    )


def _arrow(x: Coordinates, y: Coordinates) -> Coordinates:
    head = np.maximum(-x, 0.66 * x + 0.75 * np.abs(y) - 0.627)
    return np.minimum(head, _box(x + 0.4, y, 0.55, 0.2))


def _hourglass(x: Coordinates, y: Coordinates) -> Coordinates:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(y - 0.75, 0.8 * (x - 0.06) - 0.6 * y)


def _box(x: Coordinates, y: Coordinates, half_x: float, half_y: float) -> Coordinates:
    return np.maximum(np.abs(x) - half_x, np.abs(y) - half_y)


SHAPES: dict[str, Callable[[Coordinates, Coordinates], Coordinates]] = {
    "disk": lambda x, y: np.hypot(x, y) - 0.85,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.2,
    "square": lambda x, y: _box(x, y, 0.69, 0.69),
    "triangle": lambda x, y: np.maximum(-y, np.sqrt(0.75) * np.abs(x) + 0.5 * y) - 0.5,
    "star": _star,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.93, 0.29), _box(x, y, 0.29, 0.93)),
    "crescent": lambda x, y: np.maximum(
        np.hypot(x, y) - 0.95, 0.78 - np.hypot(x - 0.5, y)
    ),
    "heart": _heart,
    "arrow": _arrow,
    "hourglass": _hourglass,
}
"""Signed distances from the outlines of the classes, in the order of their labels.

Each is a function of x and y, in units of the radius of a circle about the origin that
holds the whole shape. It is negative inside, and exact near the outline except at the
corners, which stay sharp.
"""

CORNERS: dict[str, dict[str, tuple[float, float]]] = {
    "heart": {
        "tip": (0.0, -0.78),
        "left lobe": (0.5, 0.45),
        "right lobe": (-0.5, 0.45),
    },
    "arrow": {
        "tip": (0.8, 0.0),
        "left barb": (0.08, -0.7),
        "right barb": (0.08, 0.7),
        "tail": (-0.85, 0.0),
    },
}
"""Corners of the classes whose corners differ, in the coordinates of `SHAPES`.

Left and right are as seen in a heart that stands on its tip, or an arrow that flies
upward.
"""


def _labels(count: int, seed: int) -> np.ndarray:
    classes = len(SHAPES)
    blocks = -(-count // classes)
    raw = [_raw(classes, seed, 0, block) for block in range(blocks)]
    order = np.argsort(np.array(raw, np.uint64).reshape(blocks, classes), axis=1)
    return order.astype(np.int32).reshape(-1)[:count]


def _draw(
    labels: np.ndarray, indices: range, size: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    height, width = size
    spectrum = (_TEXTURES, height, width // 2 + 1)
    numbers = _PARAMETERS + math.prod(spectrum)
    raw = np.stack([_raw(numbers, seed, 1, index) for index in indices])
    parameters = _uniform(raw[:, :_PARAMETERS])
    radius, center_x, center_y, turn = _pose(parameters[:_POSE], size)
    uniform = iter(parameters[_POSE:])

    def between(low: float, high: float) -> np.ndarray:
        return low + (high - low) * next(uniform)

    # Pixel centers lie at half-integers.
    x = (np.arange(width) + 0.5 - center_x[:, None]) / radius[:, None]
    y = (np.arange(height) + 0.5 - center_y[:, None]) / radius[:, None]
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    x, y = (
        (cos * x)[:, None, :] + (sin * y)[:, :, None],
        (cos * y)[:, :, None] - (sin * x)[:, None, :],
    )
    distance = np.empty((len(labels), *size))
    for label, shape in enumerate(SHAPES.values()):
        chosen = labels == label
        distance[chosen] = shape(x[chosen], y[chosen])
    coverage = np.clip(0.5 - distance * radius[:, None, None], 0, 1)

    gray = between(*_BACKGROUND)
    # A bright object over a bright background would be clipped to no contrast at all.
    contrast = np.where(gray < 128, 1, -1) * between(*_CONTRAST)
    hues = np.stack([between(-_CHROMA, _CHROMA) for _ in range(6)], 1)
    hues = hues.reshape(-1, 2, 3)
    hues -= hues.mean(axis=2, keepdims=True)
    ground = gray[:, None] + hues[:, 0]
    paint = np.clip((gray + contrast)[:, None] + hues[:, 1], 0, 255)
    strength = between(*_TEXTURE)
    tint = np.stack([between(-0.4, 0.4) for _ in range(3)], 1)

    textures = _textures(raw[:, _PARAMETERS:].reshape(-1, *spectrum), size)
    textures *= strength[:, None, None, None]
    # Channel by channel until the end, as loops over three values are slow.
    images = np.empty((len(labels), *size, 3), np.uint8)
    for channel in range(3):
        pixels = tint[:, channel, None, None] * textures[:, 1] + textures[:, 0]
        pixels += ground[:, channel, None, None]
        np.clip(pixels, 0, 255, out=pixels)
        pixels += (paint[:, channel, None, None] - pixels) * coverage
        images[..., channel] = np.floor(pixels + 0.5)
    return images, distance <= 0


def _uniform(raw: UInt64[np.ndarray, "n p"]) -> Float64[np.ndarray, "p n"]:
    return (raw >> np.uint64(11)).T * 2.0**-53


def _pose(
    uniform: Float64[np.ndarray, "4 n"], size: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    """Radius, x and y of the center in pixels, and clockwise turn in radians."""
    height, width = size
    radius = (_RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * uniform[0]) * min(size)
    center_x = radius + uniform[1] * (width - 2 * radius)
    center_y = radius + uniform[2] * (height - 2 * radius)
    return radius, center_x, center_y, 2 * np.pi * uniform[3]


def _textures(
    raw: UInt64[np.ndarray, "n t h f"], size: tuple[int, int]
) -> Float64[np.ndarray, "n t h w"]:
    """Random fields of amplitude 1/f, zero mean and unit variance."""
    # The halves of each number, as the real and the imaginary part.
    spectrum = np.empty(raw.shape, np.complex128)
    spectrum.real = (raw >> np.uint64(32)) * 2.0**-31 - 1
    spectrum.imag = (raw & np.uint64(2**32 - 1)) * 2.0**-31 - 1
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1]))
    frequency[0, 0] = np.inf
    spectrum /= frequency
    fields = np.fft.irfft2(spectrum, s=size)
    fields /= fields.std(axis=(-2, -1), keepdims=True)
    return fields


def _raw(numbers: int, *entropy: int) -> UInt64[np.ndarray, " numbers"]:
    return np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(numbers)

"""Photographs that packages ship, and what in them excites a unit most.

scikit-image's are in the public domain or free of known restrictions, and so is
matplotlib's of Grace Hopper. scikit-learn's china.jpg and flower.jpg are CC BY 2.0, by
danielbuechele and vultilion.
"""

from __future__ import annotations

import importlib.resources
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

import zfnet_jax as zf
from zfnet_jax.analysis.mining import TopActivations
from zfnet_jax.networks import Network
from zfnet_jax.viz.patches import cut_patches

_NAMES = {
    "skimage.data": "astronaut.png brick.png camera.png chelsea.png coffee.png "
    "coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png moon.png "
    "motorcycle_left.png page.png retina.jpg rocket.jpg text.png",
    "sklearn.datasets.images": "china.jpg flower.jpg",
    "matplotlib": "mpl-data/sample_data/grace_hopper.jpg",
}
# Sizes of a photograph's shorter side, in sides of a crop, and the most it is enlarged.
_SCALES, _LARGEST = (1, 1.5, 2.25), 1.6
# Of nine patches, the most from one photograph, and their distance in sides of a patch.
_MOST, _APART = 3, 0.6


def find_photographs() -> dict[str, Path]:
    """List the photographs by their names without suffix."""
    paths = [
        Path(str(importlib.resources.files(package) / name))
        for package, names in _NAMES.items()
        for name in names.split()
    ]
    return {path.stem: path for path in paths}


class Crops(NamedTuple):
    """Overlapping square crops of all photographs at several scales.

    Attributes:
        pixels: The crops.
        boxes: Top, left, bottom and right of each in its photograph.
        photographs: The number of its photograph.
    """

    pixels: UInt8[np.ndarray, "n side side 3"]
    boxes: Float[np.ndarray, "n 4"]
    photographs: Int[np.ndarray, " n"]


def cut_crops(side: int) -> Crops:
    """Cut crops that overlap by half."""
    parts = [
        (pixels, box, index)
        for index, path in enumerate(find_photographs().values())
        for pixels, box in _cut(Image.open(path).convert("RGB"), side)
    ]
    pixels, boxes, photographs = zip(*parts, strict=True)
    return Crops(np.stack(pixels), np.stack(boxes), np.array(photographs))


def _cut(photograph: Image.Image, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for scale in _SCALES:
        zoom = scale * side / min(photograph.size)
        if scale > 1 and zoom > _LARGEST:
            continue
        size = [round(zoom * extent) for extent in photograph.size]
        pixels = np.asarray(photograph.resize(size, Image.Resampling.LANCZOS))
        for top in _spread(pixels.shape[0], side):
            for left in _spread(pixels.shape[1], side):
                box = np.array([top, left, top + side, left + side])
                yield pixels[top : top + side, left : left + side], box / zoom


def _spread(extent: int, side: int) -> list[int]:
    """Choose the fewest starts of windows that overlap by half or more."""
    count = -(-(extent - side) // (side // 2)) + 1
    return np.linspace(0, extent - side, count).round().astype(int).tolist()


class Nine(NamedTuple):
    """Patches of a unit's nine strongest activations, and their projections."""

    patches: UInt8[np.ndarray, "9 h w 3"]
    projections: Float[np.ndarray, "9 h w 3"]
    boxes: Int[np.ndarray, "9 4"]
    pictures: UInt8[np.ndarray, "9 side side 3"]
    activations: Float[np.ndarray, " 9"]


def find_nine(net: Network, crops: Crops, top: TopActivations, unit: int) -> Nine:
    """Take a unit's strongest activations in places apart, and project them."""
    ranks = choose_ranks(net, crops, top, unit)
    pictures = crops.pixels[top.images[unit, ranks]]
    assert net.preprocess is not None
    projections = zf.project(
        net,
        net.preprocess(pictures),
        top.layer,
        units=np.full((len(ranks), 1), unit),
        positions=top.positions[unit, ranks][:, None],
        crop=True,
    )
    patches = cut_patches(pictures, projections.boxes)
    strongest = top.activations[unit, ranks]
    return Nine(patches, projections.pixels, projections.boxes, pictures, strongest)


def choose_ranks(
    net: Network, crops: Crops, top: TopActivations, unit: int
) -> Sequence[int]:
    """Choose nine of a unit's strongest crops, whose patches lie inside and apart."""
    field, side = net.layer(top.layer).receptive_field, crops.pixels.shape[1]
    assert field is not None
    ranks: list[int] = []
    places: list[tuple[int, np.ndarray, float]] = []
    for rank, crop in enumerate(top.images[unit].tolist()):
        box = np.array(field.box(*top.positions[unit, rank].tolist(), clip=False))
        photograph, whole = int(crops.photographs[crop]), crops.boxes[crop]
        zoom = (whole[2] - whole[0]) / side
        center, size = whole[:2] + zoom * (box[:2] + box[2:]) / 2, zoom * field.size[0]
        is_apart = all(
            photograph != other or np.abs(center - at).max() > _APART * max(size, old)
            for other, at, old in places
        )
        count = Counter(other for other, _, _ in places)[photograph]
        if box.min() >= 0 and box.max() <= side and is_apart and count < _MOST:
            ranks.append(rank)
            places.append((photograph, center, size))
        if len(ranks) == 9:
            break
    return ranks

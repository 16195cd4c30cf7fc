"""The networks and images of a gallery, with their digests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Int, UInt8

from zfnet_jax.data.images import digest_images
from zfnet_jax.files import digest
from zfnet_jax.networks import Network, as_network
from zfnet_jax.relu_rules import Rule


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Images to search, with what is known about them.

    Attributes:
        images: Preprocessed images or a source of them.
        pictures: The same images as uint8 pixels, indexed by an array.
        labels: Class of each image, an index into `class_names`; None if not known.
        class_names: Names of the classes.
        image_names: Name of each image; None if they have none.
        description: Origin of the images, in one line.
    """

    images: Any
    pictures: Any
    labels: Int[np.ndarray, " n"] | None
    class_names: tuple[str, ...]
    image_names: tuple[str, ...] | None
    description: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def read_pictures(self, indices: Any) -> UInt8[np.ndarray, "b h w 3"]:
        """Get pictures in color; channels other than 1 or 3 are averaged."""
        pictures = np.asarray(self.pictures[np.asarray(indices)])
        if pictures.shape[3] not in (1, 3):
            pictures = pictures.mean(3, keepdims=True).astype(np.uint8)
        return np.broadcast_to(pictures, (*pictures.shape[:3], 3))

    def name_image(self, index: int) -> str:
        """Name an image: by its file, else by its number."""
        names = self.image_names
        return f"image {index}" if names is None else names[index]

    def name_class(self, index: int) -> str | None:
        """Name the class of an image; None if it is not known."""
        return None if self.labels is None else self.class_names[self.labels[index]]

    def digest(self) -> str:
        """Compute the sha256, in hex, of the images and all that is known of them."""
        parts = [digest_images(self.images)]
        if not hasattr(self.images, "digest"):
            parts.append(digest_images(self.pictures))
        names = self.class_names, self.image_names
        return digest(*parts, self.labels, *names, self.description)


def open_source(
    net: Network,
    images: Any,
    labels: Sequence[int] | np.ndarray | Array | None = None,
    class_names: Sequence[str] | None = None,
    pictures: Any = None,
) -> Source:
    """Find the labels, names and pictures of some images; arguments take precedence."""
    if len(images) == 0:
        raise ValueError("there are no images")
    if labels is None:
        labels = getattr(images, "labels", None)
    names = class_names or getattr(images, "class_names", None) or net.class_names or ()
    if labels is not None:
        labels = np.asarray(labels)
        if len(labels) != len(images):
            raise ValueError(f"labels: {len(labels)} for {len(images)} images")
        count = max(net.num_classes, labels.max(initial=-1) + 1)
        names = names or [f"class {label}" for label in range(count)]
        if labels.max(initial=-1) >= len(names):
            raise ValueError(f"label {labels.max()}: there are {len(names)} classes")
    if pictures is None:
        pictures = getattr(images, "pictures", None)
    if pictures is None:
        pictures = _Stretched(images)
    shape = np.asarray(pictures[np.arange(1)]).shape[1:3]
    if shape != net.image_shape[:2]:
        raise ValueError(
            f"pictures of {shape[0]} x {shape[1]} do not fit the network's images of "
            f"{net.image_shape[0]} x {net.image_shape[1]}"
        )
    image_names = getattr(images, "names", None)
    if image_names is not None:
        image_names = tuple(map(str, image_names))
        if len(image_names) != len(images):
            raise ValueError(f"names: {len(image_names)} for {len(images)} images")
    description = getattr(images, "source", None) or "an array"
    known = labels, tuple(names), image_names, description
    return Source(images, pictures, *known)


@dataclasses.dataclass(frozen=True)
class _Stretched:
    """Pictures of float images, each from its least to its greatest value."""

    images: Any

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(
        self, indices: Int[np.ndarray, " b"]
    ) -> UInt8[np.ndarray, "b h w c"]:
        batch = np.asarray(self.images[indices], np.float64)
        low, high = (x((1, 2, 3), keepdims=True) for x in (batch.min, batch.max))
        scaled = (batch - low) / np.where(high > low, high - low, 1)
        return np.rint(255 * scaled).astype(np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """A search of some images for what the units of a network respond to.

    Attributes:
        net: The network.
        source: The images.
        k: Activations per unit.
        rules: Backward rules for their projections.
        epochs: Networks at several epochs of training; empty for none.
        training: The images to search with these.
        title: Title of the pages.
    """

    net: Network
    source: Source
    k: int
    rules: tuple[Rule, ...]
    epochs: Mapping[int, Network]
    training: Source
    title: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the network's classes."""
        count = self.net.num_classes
        return self.net.class_names or tuple(f"class {x}" for x in range(count))

    @property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        """The network's class of each image; None if it is not known."""
        has_same = self.source.class_names == self.classes
        return self.source.labels if has_same else None

    def name_unit(self, layer: str, unit: int) -> str:
        """Name a unit: by its class in the classifier, else by its number."""
        names = self.net.class_names
        if layer == self.net.output and names is not None:
            return names[unit]
        return f"unit {unit}"


@dataclasses.dataclass(frozen=True, eq=False)
class Other:
    """Another network to compare with.

    Attributes:
        name: Its name on the pages.
        net: The network.
        source: The same images, preprocessed for it.
    """

    name: str
    net: Network
    source: Source


def open_other(name: str, model: Network | Any, images: Any, source: Source) -> Other:
    """Check another network and its images."""
    net, images = as_network(model, images)
    if len(images) != len(source):
        raise ValueError(
            f"{name} is compared over {len(images)} images, not the gallery's "
            f"{len(source)}"
        )
    pictures = None
    if not hasattr(images, "pictures"):
        shape = source.read_pictures([0]).shape[1:3]
        pictures = source.pictures if shape == net.image_shape[:2] else None
    return Other(name, net, open_source(net, images, pictures=pictures))


def digest_code() -> str:
    """Compute the sha256, in hex, of this library's code and templates."""
    files = sorted(Path(__file__).parents[1].rglob("*"))
    return digest(*(file for file in files if file.suffix in (".py", ".html")))

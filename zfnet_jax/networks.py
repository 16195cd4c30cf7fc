"""Stand-in for the tests of this branch; replaced by the real module."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zfnet_jax.arch import Conv, MaxPool, ReceptiveField, receptive_field
from zfnet_jax.model import ConvNet


class Layer(NamedTuple):
    name: str
    kind: str
    shape: tuple[int, ...]
    receptive_field: ReceptiveField | None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["model"],
    meta_fields=["arch", "wrapped"],
)
class Network:
    def __init__(self, model: Any, arch: Any = None, wrapped: bool = False):
        self.model = model
        self.wrapped = wrapped
        self.arch = model.arch if arch is None else arch

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (*self.arch.input_hw, self.arch.channels)

    @property
    def num_classes(self) -> int:
        return self.arch.num_classes

    output = "logits"

    @property
    def layers(self) -> dict[str, Layer]:
        layers = {}
        for spec, _, shape in self.arch.walk():
            field = receptive_field(self.arch, spec.name) if len(shape) == 3 else None
            kind = {Conv: "conv", MaxPool: "max pool"}.get(type(spec), "dense")
            layers[spec.name] = Layer(spec.name, kind, shape, field)
        return layers

    def __call__(self, images: Any) -> Any:
        return self.features(images, ("logits",))["logits"]

    def features(self, images: Any, layers: Any) -> dict[str, Any]:
        model = self.model.inner if self.wrapped else self.model
        features = model.features(jnp.asarray(images)).features
        return {name: features[name] for name in layers}

    def layer(self, name: str) -> Layer:
        self.arch.layer(name)
        return self.layers[name]

    def targets(self, targets: Any, count: int) -> np.ndarray:
        targets = np.asarray(targets)
        if not ((targets >= 0) & (targets < self.num_classes)).all():
            raise ValueError(f"target {targets} of {self.num_classes} classes")
        return np.broadcast_to(targets, (count,)).astype(np.int32)

    def images(self, images: Any) -> np.ndarray:
        images = np.asarray(images)
        if images.shape[1:] != self.image_shape or not len(images):
            raise ValueError(f"images {images.shape} do not fit {self.image_shape}")
        return images

    def batches(self, images: Any, batch_size: int) -> Any:
        images = self.images(images)
        size = min(len(images), batch_size)
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            count = len(batch)
            yield start, np.resize(batch, (size, *batch.shape[1:])), count


class Inner(NamedTuple):
    inner: Any


def as_network(model: Any, images: Any = None) -> tuple[Network, Any]:
    if isinstance(model, Network):
        return model, images
    if isinstance(model, ConvNet):
        return Network(model), images
    raise TypeError(f"not a network: {type(model).__name__}")


def wrap(model: ConvNet) -> Network:
    """The same network as one that has no fast engine."""
    return Network(Inner(model), model.arch, True)

"""A network is a function from images to named activations.

`network` reads any JAX model: a `ConvNet`, a Flax NNX, Linen or Equinox module, a Keras
model on the JAX backend, a plain function. Every tool of the package works on what it
returns.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Int32

from zfnet_jax.adapters import adapt, keras_image_shape
from zfnet_jax.engines import ConvNetEngine, Engine, TracedEngine
from zfnet_jax.files import digest
from zfnet_jax.layers import Layer
from zfnet_jax.model import ConvNet


@runtime_checkable
class ImageSource(Protocol):
    """Images that are read as they are needed."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, indices: Any, /) -> Any:
        """Preprocessed images, float [b, h, w, c], at an integer array of indices."""
        ...


Images = Array | np.ndarray | ImageSource


class Network:
    """A network as named activations; made by `network`.

    It is a pytree whose leaves are the weights, so `jax.jit` takes it as an argument.

    Attributes:
        model: What it was made from.
        preprocess: From uint8 pixels to what the network takes; None if not known.
        class_names: By label; None if not known.
    """

    def __init__(
        self,
        model: Any,
        engine: Engine,
        read_weights: Callable[[], Any],
        preprocess: Callable[[Any], Any] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Use `network` instead."""
        self.model = model
        self._engine = engine
        self._read_weights = read_weights
        self.preprocess = preprocess
        self.class_names = None if class_names is None else tuple(class_names)
        if class_names is not None and len(class_names) != self.num_classes:
            raise ValueError(
                f"class_names has {len(class_names)} names; the network has "
                f"{self.num_classes} outputs"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self._engine.image_shape

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer by name, in the order of the forward pass."""
        return self._engine.layers

    @property
    def output(self) -> str:
        """Name of the layer that holds the result."""
        return list(self.layers)[-1]

    @property
    def embedding(self) -> str:
        """Name of the last hidden layer without positions; the result if none is."""
        shapes = {name: len(layer.shape) for name, layer in self.layers.items()}
        *hidden, output = shapes
        return next((name for name in reversed(hidden) if shapes[name] == 1), output)

    @property
    def is_convnet(self) -> bool:
        """True if the exact engine for a `ConvNet` serves the tools."""
        return isinstance(self.model, ConvNet)

    @property
    def num_classes(self) -> int:
        """Width of the result."""
        return self.layers[self.output].shape[-1]

    @property
    def parameters(self) -> int:
        """Number of weights that the result depends on; a shared one counts once."""
        return self._engine.parameters

    @property
    def multiply_adds(self) -> int:
        """Multiplications of all convolutions and products for one image."""
        return sum(layer.multiply_adds for layer in self.layers.values())

    def __call__(self, images: Array | np.ndarray) -> Float[Array, "b classes"]:
        """Logits, float [b, classes]."""
        if not isinstance(images, Tracer):
            images = self.images(images)
        return _activations(self, images, (self.output,))[self.output]

    def features(
        self,
        images: Float[Array, "b h w c"],
        layers: Sequence[str],
        offsets: Mapping[str, Float[Array, "b ..."]] | None = None,
    ) -> dict[str, Float[Array, "b ..."]]:
        """Activations by layer, for use inside `jax.jit`; images are not checked.

        Maps are [b, h, w, c] and vectors [b, units], whatever the network's own layout.
        `offsets` are added to the activations of layers, except in a `ConvNet`.
        """
        weights = self._read_weights()
        return self._engine.features(weights, images, tuple(layers), offsets or {})

    def trunk(self, layer: str) -> tuple[str, ...]:
        """Names of the layers that every path from the images to a layer leads through.

        In a `ConvNet` these are all layers below it; the branches of a residual block
        are no part of it, its end is. They are in the order of the forward pass.
        """
        return self._engine.trunk(self.layer(layer).name)

    def activations(
        self,
        images: Images,
        layers: Sequence[str] | str | None = None,
        *,
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Float[np.ndarray, "n ..."]]:
        """Activations of any number of images, batch by batch.

        Args:
            images: Preprocessed images [n, h, w, c], or a source of them.
            layers: Names of layers; all if None.
            batch_size: Images per batch.
            progress: Called with the number of images done and their total.

        Returns:
            For each layer an array with a leading axis of images.

        Raises:
            ValueError: The images do not fit the network, or there is no such layer.

        Example:
            >>> import numpy as np, zfnet_jax as zf
            >>> from flax import nnx
            >>> net = zf.network(zf.ConvNet(zf.ZFNET32, rngs=nnx.Rngs(0)))
            >>> net.activations(np.zeros((3, 32, 32, 3), "f4"), "conv5")["conv5"].shape
            (3, 8, 8, 96)
        """
        names = self.select(layers)
        images = self._open(images)
        count = len(images)
        results: dict[str, np.ndarray] = {}
        for start, batch, real in self.batches(images, batch_size):
            parts = _activations(self, _over_devices(batch), names)
            for name in names:
                part = parts[name]
                if name not in results:
                    results[name] = np.empty((count, *part.shape[1:]), part.dtype)
                results[name][start : start + real] = np.asarray(part)[:real]
            if progress is not None:
                progress(start + real, count)
        return results

    def layer(self, name: str) -> Layer:
        """One layer.

        Raises:
            ValueError: There is no such layer; the message lists those there are.
        """
        if name not in self.layers:
            names = list(self.layers)
            more = f" … and {len(names) - 40} more" if len(names) > 40 else ""
            raise ValueError(
                f"no layer {name!r}; the network has {' '.join(names[:40])}{more}"
            )
        return self.layers[name]

    def select(self, layers: Sequence[str] | str | None) -> tuple[str, ...]:
        """Names of layers in the order of the forward pass, each once; all if None."""
        if layers is None:
            return tuple(self.layers)
        names = [layers] if isinstance(layers, str) else layers
        wanted = {self.layer(name).name for name in names}
        if not wanted:
            raise ValueError("layers is empty: name at least one layer")
        return tuple(name for name in self.layers if name in wanted)

    def targets(self, targets: Any, count: int) -> Int32[np.ndarray, " count"]:
        """Classes as int32 [count].

        Args:
            targets: A label or a class name for all images, or one for each.
            count: Number of images.

        Raises:
            ValueError: There is no such class, or not one target for each image.
        """
        shape = self.layers[self.output].shape
        if len(shape) != 1:
            raise ValueError(
                f"the network gives a map of {_by(shape)} for each image and not logits"
            )
        single = isinstance(targets, str) or np.ndim(targets) == 0
        labels = [self._label(t) for t in ([targets] if single else targets)]
        if not single and len(labels) != count:
            raise ValueError(f"{len(labels)} targets for {count} images")
        return np.resize(np.array(labels, np.int32), count)

    def _label(self, target: Any) -> int:
        if isinstance(target, str):
            if self.class_names is None:
                raise ValueError(
                    f"target {target!r} is a name, and the network has no class_names"
                )
            if target not in self.class_names:
                raise ValueError(
                    f"no class {target!r}; the network knows "
                    f"{', '.join(self.class_names[:20])}"
                    + (" …" if len(self.class_names) > 20 else "")
                )
            return self.class_names.index(target)
        label = np.asarray(target)
        if not np.issubdtype(label.dtype, np.integer) or label.ndim:
            raise ValueError(f"target {target!r} is neither a label nor a class name")
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"target {target}: the network has classes 0 to {self.num_classes - 1}"
            )
        return int(label)

    def images(self, images: Images) -> Float[np.ndarray, "n h w c"]:
        """All of some images in one array, checked as `batches` checks them."""
        images = self._open(images)
        ((_, batch, count),) = self.batches(images, max(len(images), 1))
        return batch[:count]

    def _open(self, images: Any) -> Images:
        if isinstance(images, str | os.PathLike):
            return self.load_images(images)
        if isinstance(images, list):
            return np.asarray(images)
        if not hasattr(images, "__len__"):
            raise ValueError(
                f"images are a {type(images).__name__}: give an array [n, h, w, c], a "
                "source of images or a path"
            )
        return images

    def batches(
        self, images: Images, batch_size: int
    ) -> Iterator[tuple[int, Float[np.ndarray, "b h w c"], int]]:
        """Yield images in batches of one size, a multiple of the number of devices.

        Yields:
            Index of the first image, the batch, and how many of its images are real;
            the rest of the last batch repeats the last image.

        Raises:
            ValueError: There are no images, or they are not finite floats of the
                network's shape.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        count = len(images)
        if not count:
            raise ValueError("there are no images: the batch is empty")
        # Every device takes the same number of images.
        devices = jax.local_device_count()
        size = -(-min(batch_size, count) // devices) * devices
        for start in range(0, count, size):
            real = min(size, count - start)
            batch = self.read(images, np.arange(start, start + real))
            if real < size:
                padding = np.repeat(batch[-1:], size - real, 0)
                batch = np.concatenate([batch, padding])
            yield start, batch, real

    def read(
        self, images: Images, indices: Int[np.ndarray, " b"]
    ) -> Float[np.ndarray, "b h w c"]:
        """Read the images at an integer array of indices.

        Raises:
            ValueError: They are not finite floats of the network's shape.
        """
        # The copy on the host is made once, and is none on the CPU.
        source = np.asarray(images) if isinstance(images, jax.Array) else images
        batch = np.asarray(source[indices])
        height, width, channels = self.image_shape
        if batch.shape[1:] != self.image_shape:
            hint = ""
            if batch.shape[1:] == (channels, height, width):
                hint = "; channels come last: images.transpose(0, 2, 3, 1)"
            elif batch.shape == self.image_shape:
                hint = "; for a single image give image[None]"
            raise ValueError(
                f"the network takes images of shape (n, {height}, {width}, "
                f"{channels}), not {batch.shape}{hint}"
            )
        # bfloat16 is a float to JAX alone.
        if not jnp.issubdtype(batch.dtype, jnp.floating):
            raise ValueError(
                f"images are {batch.dtype}: preprocess them to floats first, as in "
                "net.preprocess(images)"
            )
        finite = np.isfinite(batch).all((1, 2, 3))
        if not finite.all():
            index = indices[np.argmin(finite)]
            raise ValueError(f"image {index} holds a value that is not finite")
        return batch.astype(jax.dtypes.canonicalize_dtype(batch.dtype), copy=False)

    def load_images(
        self, source: Any, fit: Literal["crop", "pad", "stretch"] = "crop"
    ) -> Any:
        """Open photographs, labeled images or a dataset as images for this network.

        They are read as they are needed, so a folder of any size takes little memory.

        Args:
            source: The path of a photograph or of a folder of them,
                `zfnet_jax.data.LabeledImages` or a `zfnet_jax.data.Dataset`.
            fit: How to bring a photograph to the network's shape: "crop" to the center,
                "pad" with gray or "stretch".

        Returns:
            `zfnet_jax.data.Photographs` or `zfnet_jax.data.DatasetImages`.

        Raises:
            ValueError: The network has no `preprocess`.
            DataNotFoundError: There is no photograph.
        """
        from zfnet_jax.data.dataset import Dataset
        from zfnet_jax.data.images import DatasetImages
        from zfnet_jax.data.photographs import Photographs

        if isinstance(source, Dataset):
            return DatasetImages(source, self.image_shape, self.preprocess)
        return Photographs(source, self.image_shape, self.preprocess, fit)

    def resize(self, image_hw: tuple[int, int]) -> Network | None:
        """The same network for images of another size; None if it takes one size."""
        engine = self._engine.resize(image_hw)
        if engine is None:
            return None
        return Network(self.model, engine, self._read_weights, self.preprocess)

    def map_weights(self, layer: str, change: Callable[[Array], Array]) -> Network:
        """The same network with every array of weights of a layer changed."""
        weights = self._read_weights()
        leaves, tree = jax.tree.flatten(weights)
        for index in self._engine.leaves(weights, self.layer(layer).name):
            leaves[index] = change(leaves[index])
        changed = jax.tree.unflatten(tree, leaves)
        return Network(
            changed, self._engine, lambda: changed, self.preprocess, self.class_names
        )

    def digest(self) -> str:
        """Compute the sha256, in hex, of the weights, the program and class names."""
        images = jax.ShapeDtypeStruct((1, *self.image_shape), np.float32)
        program = jax.make_jaxpr(lambda net, x: net.features(x, [net.output]))
        text = re.sub("0x[0-9a-f]+", "", str(program(self, images)))  # addresses vary
        leaves = (np.asarray(leaf) for leaf in jax.tree.leaves(self))
        return digest(*leaves, text, str(self), self.class_names)

    def __repr__(self) -> str:
        """One line."""
        height, width, channels = self.image_shape
        return (
            f"Network({height} x {width} x {channels} -> {self.num_classes}, "
            f"{len(self.layers)} layers)"
        )

    def __str__(self) -> str:
        """The table of layers, and totals in which a shared weight counts once."""
        rows: list[Sequence[str]] = [_HEADINGS]
        for layer in self.layers.values():
            field = layer.receptive_field
            rows.append(
                (
                    layer.name,
                    layer.kind,
                    _by(layer.shape),
                    "yes" if layer.rectified else "",
                    f"{layer.parameters:,}" if layer.parameters else "",
                    _by(field.size) if field else "whole image",
                    _by(field.stride) if field else "",
                    f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
                )
            )
        totals = f"{self.parameters:,}", f"{self.multiply_adds:,}"
        rows.append(("total", "", "", "", totals[0], "", "", totals[1]))
        return _align(rows)


_HEADINGS = (
    *("layer", "kind", "output", "ReLU", "parameters", "receptive field", "stride"),
    "multiply-adds",
)


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Join cells to lines, with numbers at the right of their column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_number = [heading in ("parameters", "multiply-adds") for heading in rows[0]]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in rows
    )


def _by(extents: Sequence[int]) -> str:
    return " x ".join(map(str, extents))


def _over_devices(batch: Float[np.ndarray, "b h w c"]) -> Float[Array, "b h w c"]:
    devices = np.array(jax.local_devices())
    mesh = Mesh(devices, ("images",), axis_types=(AxisType.Auto,))
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("images")))


@functools.partial(jax.jit, static_argnames="layers")
def _activations(net: Network, images: Array, layers: tuple[str, ...]) -> Any:
    return net.features(images, layers)


def _flatten(net: Network) -> tuple[tuple[Any], Engine]:
    return (net._read_weights(),), net._engine


def _unflatten(engine: Engine, children: tuple[Any]) -> Network:
    (weights,) = children
    return Network(weights, engine, lambda: weights)


jax.tree_util.register_pytree_node(Network, _flatten, _unflatten)


def network(
    model: Any,
    image_shape: Sequence[int] | None = None,
    *,
    params: Any = None,
    preprocess: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> Network:
    """Read a model as named activations, with shapes and receptive fields.

    The model is traced once and its layers are read off its equations. They are named
    by the paths of their parameters, as in `block1.conv2`; a pooling after the layer
    before it (`stem.pool`), a ReLU after an addition after the block that its branches
    share (`block1`), and by kind and order (`conv3`) where nothing is known.
    `jax.ad_checkpoint.checkpoint_name(x, "mine")` names any value.

    Args:
        model: A `ConvNet`, a Flax NNX module, an Equinox module (one image at a time,
            channels first or last), a Keras model, or a function from images
            [b, h, w, c] to logits [b, classes] or to a dict of activations, whose last
            entry is then the result. With `params` a function of them and images, such
            as the `apply` of a Linen module.
        image_shape: Height, width and channels; not needed for a `ConvNet` or Keras.
        params: Parameters, the first argument of `model`.
        preprocess: From uint8 pixels to what the network takes.
        class_names: One name for each output.

    Returns:
        The network. Weights of an NNX or Keras model that change later are seen.

    Raises:
        ValueError: The shape is missing or does not fit, the model is in training mode,
            or it ends in a softmax.

    Example:
        >>> import jax, jax.numpy as jnp, zfnet_jax as zf
        >>> def model(params, x):
        ...     return jax.nn.relu(x.mean((1, 2)) @ params["hidden"]["kernel"])
        >>> params = {"hidden": {"kernel": jnp.ones((3, 5))}}
        >>> list(zf.network(model, (8, 8, 3), params=params).layers)
        ['mean_pool1', 'hidden']
    """
    if isinstance(model, Network):
        return model
    if isinstance(model, ConvNet):
        engine = ConvNetEngine(model.arch)
        if image_shape is not None and tuple(image_shape) != engine.image_shape:
            raise ValueError(
                f"{model.arch.name} takes images of shape {engine.image_shape}, not "
                f"{tuple(image_shape)}"
            )
        return Network(model, engine, lambda: model, preprocess, class_names)
    if image_shape is None:
        image_shape = keras_image_shape(model)
    shape = tuple(int(extent) for extent in image_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image_shape is (height, width, channels), not {shape}")
    adapter = adapt(model, params, shape)
    engine = TracedEngine(adapter, shape)

    def read_weights() -> list[Any]:
        return [*adapter.read(), *engine.constants]

    return Network(model, engine, read_weights, preprocess, class_names)


def as_network(model: Any, images: Any) -> tuple[Network, Any]:
    """The network of a tool's first argument, and its images, loaded from a path."""
    if isinstance(images, list):
        images = np.asarray(images)
    if not isinstance(model, Network):
        shape = getattr(images, "shape", None)
        if shape is not None and len(shape) != 4:
            raise ValueError(f"images must be [n, h, w, c], not {list(shape)}")
        model = network(model, None if shape is None else shape[1:])
    return model, images if isinstance(images, Tracer) else model._open(images)

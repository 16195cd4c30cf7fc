"""A network is a function from images to named activations.

`network` reads any JAX model: a `ConvNet`, a Flax NNX, Linen or Equinox module, a Keras
model on the JAX backend, a plain function. Every tool of the package works on what it
returns.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from zfnet_jax import ops, relu_audit, tracing
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.arch import receptive_field as arch_receptive_field
from zfnet_jax.layers import Kind, Layer, Position, Reader
from zfnet_jax.model import ConvNet

# Images of the trace that the layers are read from; one image would look like none.
_TRACED = 2


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
        image_shape: Height, width and channels of an image.
        layers: Every layer by name, in the order of the forward pass.
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
        names = self.class_names
        if names is not None and len(names) != self.num_classes:
            raise ValueError(
                f"class_names has {len(names)} names; the network has "
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
        return next(reversed(self.layers))

    @property
    def num_classes(self) -> int:
        """Width of the result."""
        return self.layers[self.output].shape[-1]

    def __call__(self, images: Float[Array | np.ndarray, "b h w c"]) -> Array:
        """Logits, float [b, classes]."""
        if not isinstance(images, jax.core.Tracer):
            images = self.images(images)
        return _activations(self, images, (self.output,))[self.output]

    def features(
        self, images: Float[Array, "b h w c"], layers: Sequence[str]
    ) -> dict[str, Float[Array, "b ..."]]:
        """Activations by layer, for use inside `jax.jit`, `jax.grad` and the like.

        Args:
            images: Preprocessed images; not checked.
            layers: Names of layers.

        Returns:
            Maps as [b, h, w, c] and vectors as [b, units], whatever the layout of the
            network itself.
        """
        return self._engine.features(self._read_weights(), images, tuple(layers))

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
        count = len(images)
        results: dict[str, np.ndarray] = {}
        for start, batch, real in self.batches(images, batch_size):
            parts = _activations(self, batch, names)
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
        wanted = {
            self.layer(name).name
            for name in ([layers] if isinstance(layers, str) else layers)
        }
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
        ((_, batch, _),) = self.batches(images, max(len(images), 1))
        return batch

    def batches(
        self, images: Images, batch_size: int
    ) -> Iterator[tuple[int, Float[np.ndarray, "b h w c"], int]]:
        """Images in batches of one size.

        Args:
            images: Preprocessed images [n, h, w, c], or a source of them.
            batch_size: Images per batch.

        Yields:
            Index of the first image, the batch, and how many of its images are real;
            the rest of the last batch repeats the last image.

        Raises:
            ValueError: There are no images, they have another shape, they are not
                floats, or one holds a value that is not finite; the message names it.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        count = len(images)
        if not count:
            raise ValueError("there are no images: the batch is empty")
        size = min(batch_size, count)
        for start in range(0, count, size):
            stop = min(start + size, count)
            if isinstance(images, np.ndarray | jax.Array):
                batch = np.asarray(images[start:stop])
            else:
                batch = np.asarray(images[np.arange(start, stop)])
            batch = self._check(batch, start)
            real = stop - start
            if real < size:
                padding = np.repeat(batch[-1:], size - real, 0)
                batch = np.concatenate([batch, padding])
            yield start, batch, real

    def _check(self, batch: np.ndarray, start: int) -> np.ndarray:
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
                f"images are {batch.dtype}: the network takes preprocessed floats, "
                "for a network with preprocessing net.preprocess(images)"
            )
        finite = np.isfinite(batch).all((1, 2, 3))
        if not finite.all():
            index = start + int(np.argmin(finite))
            raise ValueError(f"image {index} holds a value that is not finite")
        return batch.astype(jax.dtypes.canonicalize_dtype(batch.dtype), copy=False)

    def load_images(self, path: str | os.PathLike[str]) -> Any:
        """A photograph, or a folder of them, as images for this network.

        Photographs are decoded, resized, cropped and preprocessed as they are needed,
        so a folder of any size takes little memory.

        Args:
            path: A photograph or a folder.

        Returns:
            `zfnet_jax.data.Photographs`.

        Raises:
            ValueError: The network has no `preprocess`, or there is no photograph.
        """
        from zfnet_jax.data.photographs import Photographs

        return Photographs(path, self.image_shape, self.preprocess)

    def map_weights(
        self, layer: str, change: Callable[[Float[Array, "..."]], Array]
    ) -> Network:
        """The same network with every array of weights of a layer changed."""
        weights = self._read_weights()
        leaves, tree = jax.tree.flatten(weights)
        for index in self._engine.leaves(weights, self.layer(layer).name):
            leaves[index] = change(leaves[index])
        changed = jax.tree.unflatten(tree, leaves)
        return Network(
            changed, self._engine, lambda: changed, self.preprocess, self.class_names
        )

    def __repr__(self) -> str:
        """One line."""
        height, width, channels = self.image_shape
        return (
            f"Network({height} x {width} x {channels} -> {self.num_classes}, "
            f"{len(self.layers)} layers)"
        )

    def __str__(self) -> str:
        """The table of layers."""
        rows = [("layer", "kind", "output", "ReLU", "receptive field", "stride")]
        for layer in self.layers.values():
            field = layer.receptive_field
            rows.append(
                (
                    layer.name,
                    layer.kind,
                    _by(layer.shape),
                    "yes" if layer.rectified else "",
                    _by(field.size) if field else "whole image",
                    _by(field.stride) if field else "",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def _by(extents: Sequence[int]) -> str:
    return " x ".join(map(str, extents))


@functools.partial(jax.jit, static_argnames="layers")
def _activations(net: Network, images: Array, layers: tuple[str, ...]) -> Any:
    return net.features(images, layers)


def _flatten(net: Network) -> tuple[tuple[Any], Engine]:
    return (net._read_weights(),), net._engine


def _unflatten(engine: Engine, children: tuple[Any]) -> Network:
    (weights,) = children
    return Network(weights, engine, lambda: weights)


jax.tree_util.register_pytree_node(Network, _flatten, _unflatten)


# Engines: how a model computes its layers. Under `jax.jit` they are static.


class Engine(Protocol):
    """Computes the layers of a model."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        ...

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer by name, in order."""
        ...

    def features(
        self, weights: Any, images: Array, names: tuple[str, ...]
    ) -> dict[str, Array]:
        """Activations by layer."""
        ...

    def leaves(self, weights: Any, layer: str) -> Sequence[int]:
        """Which leaves of the weights belong to a layer."""
        ...


_KINDS: dict[type, Kind] = {Conv: "conv", MaxPool: "max pool", ContrastNorm: "norm"}


@dataclasses.dataclass(frozen=True)
class ConvNetEngine:
    """The layers of a `ConvNet`, as its architecture describes them.

    Engines of one architecture are equal, so networks of it share compiled programs.
    """

    arch: Architecture

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return (*self.arch.input_hw, self.arch.channels)

    @functools.cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer by name, in order."""
        layers = {}
        for spec, _, shape in self.arch.walk():
            is_dense = isinstance(spec, Dense)
            layers[spec.name] = Layer(
                spec.name,
                _KINDS.get(type(spec), "dense"),
                shape,
                isinstance(spec, Conv) or (is_dense and spec.relu),
                None if is_dense else arch_receptive_field(self.arch, spec.name),
            )
        return types.MappingProxyType(layers)

    def features(
        self, weights: ConvNet, images: Array, names: tuple[str, ...]
    ) -> dict[str, Array]:
        """Activations by layer."""
        last = max(names, key=list(self.layers).index)
        features = weights.features(images, until=last).features
        return {name: features[name] for name in names}

    def leaves(self, weights: ConvNet, layer: str) -> Sequence[int]:
        """Kernel and bias."""
        paths = jax.tree_util.tree_leaves_with_path(weights)
        return [i for i, (path, _) in enumerate(paths) if _module(path) == layer]


class TracedEngine:
    """The layers of a function, read off its equations.

    Args:
        apply: From weights, a list of arrays, and images to the result.
        weights: The arrays; those that `apply` closes over are appended to them.
        paths: For each of them the path of its module, or None.
        image_shape: Height, width and channels.
        closed_over: Paths of arrays that `apply` may close over, by identity.
    """

    def __init__(
        self,
        apply: Callable[[list[Any], Any], Any],
        weights: list[Any],
        paths: list[str | None],
        image_shape: tuple[int, int, int],
        closed_over: Mapping[int, str],
    ) -> None:
        """Trace the function and read its layers."""
        self.apply = apply
        self.image_shape = image_shape
        self.given = len(weights)
        images = jax.ShapeDtypeStruct((_TRACED, *image_shape), jnp.float32)
        program, constants, names = self._trace(weights, images)
        self.paths = [*paths, *(closed_over.get(id(array)) for array in constants)]
        weights.extend(constants)
        self.positions = {p.layer.name: p for p in self._read(program, names)}
        self.layers: Mapping[str, Layer] = types.MappingProxyType(
            {name: position.layer for name, position in self.positions.items()}
        )

    def _trace(self, weights: Sequence[Any], images: Any) -> Any:
        """The program of weights and images, its constants, and names of results."""
        names: list[str] = []

        def run(weights: list[Any], images: Any) -> Any:
            result = self.apply(weights, images)
            if not isinstance(result, Mapping):
                return result
            names[:] = result
            return list(result.values())

        try:
            # A reader knows the plain operations, not their fast forms.
            with ops.reading(True):
                program, result = tracing.trace(run, list(weights), images)
        except Exception as error:
            message = relu_audit.explain_trace_error(error)
            if message is None:
                raise
            raise ValueError(message) from error
        for value in jax.tree.leaves(result):
            if value.ndim < 2 or len(value) != len(images):
                raise ValueError(
                    f"the model gives {value.dtype}{list(value.shape)} for "
                    f"{len(images)} images; it must return logits [images, classes], "
                    "or a dict of activations"
                )
        return *tracing.hoist(program), names

    def _read(self, program: tracing.Program, names: Sequence[str]) -> list[Position]:
        if any(
            "random_bits" in tracing.primitives(e.source) for e in program.equations
        ):
            raise ValueError("the model draws random numbers: call model.eval()")
        reader = Reader(program, self.paths)
        if names:
            return reader.read_outputs(names)
        positions = reader.read()
        _refuse_softmax(program, positions)
        return positions

    def features(
        self, weights: list[Any], images: Array, names: tuple[str, ...]
    ) -> dict[str, Array]:
        """Replay the function, traced for this number of images."""
        given, rest = weights[: self.given], weights[self.given :]
        program, constants, results = self._trace(given, images)
        positions = {p.layer.name: p for p in self._read(program, results)}
        # A constant may depend on the number of images.
        rest = [
            a if a.shape == b.shape else b for a, b in zip(rest, constants, strict=True)
        ]
        values = program.run(
            [*given, *rest, images], {positions[name].value for name in names}
        )
        return {
            name: positions[name].canonical(values[positions[name].value])
            for name in names
        }

    def leaves(self, weights: Any, layer: str) -> Sequence[int]:
        """Arrays that the layer's operations take."""
        del weights
        return sorted(self.positions[layer].weights)


def _refuse_softmax(program: tracing.Program, positions: Sequence[Position]) -> None:
    """Probabilities saturate: what is projected and attributed are logits."""
    layers = {position.value for position in positions[:-1]}
    values, names = set(program.outputs), set[str]()
    for equation in reversed(program.equations):
        if values.intersection(equation.outputs) and not layers.intersection(
            equation.outputs
        ):
            names.update(tracing.primitives(equation.source))
            values.update(equation.inputs)
    if {"exp", "reduce_sum"} <= names:
        raise ValueError(
            "the model ends in a softmax: take the logits, the values before it "
            "(Keras: classifier_activation=None)"
        )


# Models.


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
        image_shape = _keras_shape(model)
    shape = tuple(int(extent) for extent in image_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image_shape is (height, width, channels), not {shape}")

    errors: list[Exception] = []
    for adapter in _adapters(model, params):
        weights = adapter.read()
        try:
            engine = TracedEngine(
                adapter.apply, weights, adapter.paths, shape, adapter.closed_over
            )
        except ValueError:
            raise
        except Exception as error:
            errors.append(error)
            continue
        constants = weights[engine.given :]
        return Network(
            model,
            engine,
            lambda: [*adapter.read(), *constants],
            preprocess,
            class_names,
        )
    raise errors[-1]


def as_network(model: Any, images: Any) -> tuple[Network, Any]:
    """The network of a tool's first argument, and its images.

    Args:
        model: A `Network`, or any model that `network` takes.
        images: Images [n, h, w, c] or a source of them; a path is loaded.
    """
    if not isinstance(model, Network):
        shape = getattr(images, "shape", None)
        if shape is not None and len(shape) != 4:
            raise ValueError(f"images must be [n, h, w, c], not {list(shape)}")
        model = network(model, None if shape is None else shape[1:])
    if isinstance(images, str | os.PathLike):
        images = model.load_images(images)
    return model, images


class Adapter(NamedTuple):
    """A model as a function of a list of arrays and a batch of images.

    Attributes:
        apply: The function.
        read: Reads the arrays as they are now.
        paths: For each of them the path of its module, or None.
        closed_over: Paths of other arrays, by identity.
    """

    apply: Callable[[list[Any], Any], Any]
    read: Callable[[], list[Any]]
    paths: list[str | None]
    closed_over: Mapping[int, str]


def _adapters(model: Any, params: Any) -> Iterator[Adapter]:
    """Ways to call a model, the likeliest first."""
    if params is not None:
        is_linen = _is_a(model, "flax.linen", "Module")
        yield _tree_adapter(params, model.apply if is_linen else model)
    elif isinstance(model, nnx.Module):
        yield _tree_adapter(model, _call_nnx)
    elif _is_a(model, "equinox", "Module"):
        yield _tree_adapter(model, lambda module, x: jax.vmap(module)(x))
        yield _tree_adapter(
            model, lambda module, x: jax.vmap(module)(x.transpose(0, 3, 1, 2))
        )
    elif _is_a(model, "keras", "Model"):
        yield _keras_adapter(model)
    elif callable(model):
        yield Adapter(lambda _, x: model(x), list, [], _closed_over(model))
    else:
        raise TypeError(f"model is a {type(model).__name__}, which cannot be called")


def _is_a(model: Any, package: str, name: str) -> bool:
    """Whether a model is of a class of a package, which is not imported for it."""
    return package in sys.modules and isinstance(
        model, getattr(sys.modules[package], name)
    )


def _tree_adapter(tree: Any, call: Callable[[Any, Any], Any]) -> Adapter:
    def arrays(tree: Any) -> list[tuple[Any, Any]]:
        return [
            (path, leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if isinstance(leaf, jax.Array | np.ndarray)
        ]

    def apply(weights: list[Any], images: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        numbers = iter(weights)
        leaves = [
            next(numbers) if isinstance(leaf, jax.Array | np.ndarray) else leaf
            for leaf in leaves
        ]
        return call(jax.tree.unflatten(structure, leaves), images)

    paths = [_module(path) for path, _ in arrays(tree)]
    collection = isinstance(tree, Mapping) and "params" in tree
    if collection:  # of Linen: the first name is not a module's.
        paths = [path.partition(".")[2] or path for path in paths]
    return Adapter(apply, lambda: [leaf for _, leaf in arrays(tree)], [*paths], {})


def _call_nnx(module: nnx.Module, images: Any) -> Any:
    before = jax.tree.leaves(module)
    result = cast(Any, module)(images)
    if any(a is not b for a, b in zip(before, jax.tree.leaves(module), strict=True)):
        raise ValueError(
            "the model changes its own state (batch statistics or dropout): call "
            "model.eval()"
        )
    return result


def _keras_adapter(model: Any) -> Adapter:
    trainable = len(model.trainable_variables)

    def variables() -> list[Any]:
        return [*model.trainable_variables, *model.non_trainable_variables]

    def apply(weights: list[Any], images: Any) -> Any:
        return model.stateless_call(
            weights[:trainable], weights[trainable:], images, training=False
        )[0]

    return Adapter(
        apply,
        lambda: [variable.value for variable in variables()],
        [variable.path.rpartition("/")[0] or None for variable in variables()],
        {},
    )


def _keras_shape(model: Any) -> tuple[int, ...]:
    shape = getattr(model, "input_shape", None)
    if not _is_a(model, "keras", "Model") or None in (shape or [None])[1:]:
        raise ValueError("image_shape is needed: (height, width, channels)")
    return tuple(shape[1:])


def _module(path: tuple[Any, ...]) -> str:
    """Path of the module that a parameter belongs to."""
    names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    if len(names) > 1 and names[-1] == "value":  # of an NNX variable
        names.pop()
    name = ".".join(names)
    cut = max(name.rfind("."), name.rfind("/"))
    return name[:cut] if cut > 0 else name


def _closed_over(function: Any) -> dict[int, str]:
    """Paths of the arrays of the modules that a function closes over."""
    owners: list[Any] = [getattr(function, "__self__", None)]
    if isinstance(function, functools.partial):
        owners += [*function.args, *function.keywords.values()]
        function = function.func
    function = inspect.unwrap(function)
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        owners += [*variables.nonlocals.values(), *variables.globals.values()]
    return {
        id(leaf): _module(path)
        for owner in owners
        if isinstance(owner, nnx.Module | Mapping) or _is_a(owner, "equinox", "Module")
        for path, leaf in jax.tree_util.tree_leaves_with_path(owner)
    }

"""State dicts of PyTorch as networks: names, layouts, batch normalization.

`conv1.weight` is (out, in / groups, rows, columns), `fc6.weight` is (out, in), and the
first dense layer takes its map in (channel, row, column) order. The classifier `logits`
has the number after the last layer's: `fc8` after `fc7`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float64

from zfnet_jax.arch import ARCHITECTURES, Architecture, Conv, Dense
from zfnet_jax.model import ConvNet

# Both number their convolutions and dense layers in order: torchvision those of two
# sequences, along with the modules without weights, and pytorchcv those of two stems.
_TORCHVISION = r"(?:features|classifier)\.(?:(?:module|_orig_mod)\.)?[0-9]{1,6}"
_PYTORCHCV = r"features\.stage[0-9]{1,6}\.unit[0-9]{1,6}\.conv"
_PYTORCHCV += r"|output\.fc[0-9]{1,6}(?:\.fc)?"
# Names tell apart networks whose tensors are alike.
_SCHEMES = {
    _TORCHVISION: ("alexnet-torchvision", "vgg11", "vgg13", "vgg16", "vgg19"),
    _PYTORCHCV: ("zfnet-imagenet", "zfnetb-imagenet", "alexnet-imagenet"),
}
_NORM = ("running_mean", "running_var", "weight", "bias")
# PyTorch's default; a state dict does not contain it.
_EPSILON = 1e-5
_BLOCK = 2**20  # elements that are read at a time


class Weights(NamedTuple):
    """The weights of a layer.

    Attributes:
        layer: The layer.
        names: Its names in PyTorch: the first is written, each is read.
        window: Inputs of one unit, (rows, columns, channels) or (units,).
        shape: Shape of the weight in PyTorch.
    """

    layer: Conv | Dense
    names: tuple[str, ...]
    window: tuple[int, ...]
    shape: tuple[int, ...]


def list_weights(arch: Architecture) -> Iterator[Weights]:
    """Yield the weights of every layer that has some."""
    before = ""
    for layer, inputs, _ in arch.walk():
        if isinstance(layer, Conv):
            window = (*layer.kernel, inputs[-1] // layer.groups)
            shape = (layer.features, window[2], *layer.kernel)
        elif isinstance(layer, Dense):
            # A dense layer sees a map as a convolution with a window of its size.
            window, shape = inputs, (layer.features, math.prod(inputs))
        else:
            continue
        names = (layer.name,)
        if layer.name == "logits" and (number := re.search(r"\d+$", before)):
            names = (f"fc{int(number[0]) + 1}", layer.name)
        yield Weights(layer, names, window, shape)
        before = layer.name


def recognize(source: str, tensors: Mapping[str, Any]) -> Architecture:
    """Find the architecture of a state dict, with any number of classes.

    Args:
        source: Where the state dict comes from, for messages.
        tensors: Tensors by name, as for `build`.

    Raises:
        ValueError: It fits none of `ARCHITECTURES`, or several.
    """
    tensors = drop_counters(tensors)
    norms = _find_norms(source, tensors)
    matches, candidates = [], _list_candidates(tensors)
    for arch in candidates:
        *_, classifier = _match(source, tensors, arch, norms)
        bias = tensors.get(f"{classifier.module}.bias")
        if bias is not None and len(bias.shape) == 1 and bias.shape[0]:
            arch = arch.with_classes(bias.shape[0])
        expected = _list_shapes(tensors, _match(source, tensors, arch, norms))
        if all(n in tensors and tensors[n].shape == s for n, s in expected.items()):
            matches.append(arch)
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " and ".join(arch.name for arch in matches)
        raise ValueError(f"{source} fits {names}, whose tensors are alike: give `arch`")
    names = ", ".join(arch.name for arch in candidates)
    given = [f"{quote(name)} {x.shape}" for name, x in tensors.items()] or ["none"]
    raise ValueError(
        f"{source} fits none of {names}: give `arch` (its tensors: {join_first(given)})"
    )


def build(source: str, tensors: Mapping[str, Any], arch: Architecture) -> ConvNet:
    """Build a network from the tensors of a state dict.

    Each tensor is read once, block by block, into its final layout. Batch normalization
    is folded into the layer that it follows, or into the one that it precedes.

    Args:
        source: Where the state dict comes from, for messages.
        tensors: By name, arrays or other objects with `shape` and `dtype` that give
            `tensor[start:stop]` as arrays. They are copied.
        arch: The architecture.

    Raises:
        ValueError: Tensors are missing, unexpected, of another shape, not floats, or
            not finite, or batch normalization cannot be folded exactly.
    """
    tensors = drop_counters(tensors)
    places = _match(source, tensors, arch, _find_norms(source, tensors))
    shapes = _list_shapes(tensors, places)
    padded = [
        f"batch normalization {quote(place.before)} cannot be folded exactly into "
        f"{quote(place.module)}, which pads its input"
        for place in places
        if place.before and _is_padded(place.weights.layer)
    ]
    check(source, arch.name, tensors, shapes, padded)
    zeros = nnx.initializers.zeros_init()
    model = nnx.eval_shape(lambda: ConvNet(arch, init=zeros, rngs=nnx.Rngs(0)))
    for place in places:
        kernel, bias = _read_layer(source, tensors, place)
        affine = getattr(model, place.weights.layer.name)
        kernel = kernel.reshape(affine.kernel.shape)
        # On the CPU the memory itself becomes the network's.
        affine.kernel.set_value(jax.device_put(kernel, may_alias=True))
        affine.bias.set_value(jax.device_put(bias))
    return model


def check(
    source: str,
    network: str,
    tensors: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    problems: Sequence[str] = (),
) -> None:
    """Check that tensors are floats of some names and shapes, and no others.

    Raises:
        ValueError: They are not, or there are other problems; the message lists all.
    """
    problems = [
        *(
            f"{quote(name)} {problem}"
            for name, shape in shapes.items()
            if (problem := _find_problem(tensors.get(name), shape))
        ),
        *(f"{quote(name)} is not expected" for name in tensors if name not in shapes),
        *problems,
    ]
    if problems:
        listed = join_first(problems, "; ")
        raise ValueError(f"{source} does not fit {network}: {listed}")


def _find_problem(tensor: Any, shape: tuple[int, ...]) -> str | None:
    if tensor is None:
        return "is missing"
    if tensor.shape != shape:
        return f"has shape {tensor.shape}, expected {shape}"
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return f"has dtype {tensor.dtype}, expected a float"
    return None


def read(
    source: str, tensors: Mapping[str, Any], name: str, rows: slice = slice(None)
) -> np.ndarray:
    """Read rows of a tensor as float32.

    Raises:
        ValueError: They are not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.asarray(tensors[name][rows], np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{source}: {quote(name)} is not finite in float32")
    return values


def read_norm(
    source: str, tensors: Mapping[str, Any], module: str
) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Read batch normalization as a factor and a shift per channel.

    Raises:
        ValueError: A number is not finite, or a variance negative.
    """

    def read_part(part: str, default: float = 0.0) -> np.ndarray:
        name = f"{module}.{part}"
        values = read(source, tensors, name) if name in tensors else default
        return np.asarray(values, np.float64)

    mean, variance = read_part("running_mean"), read_part("running_var")
    if np.min(variance) < 0:
        raise ValueError(f"{source}: {quote(module)} has a negative variance")
    factor = read_part("weight", 1.0) / np.sqrt(variance + _EPSILON)
    return factor, read_part("bias") - mean * factor


# Names.


class Place(NamedTuple):
    """The place of a layer's weights in a state dict.

    Attributes:
        weights: The weights.
        module: Name of the layer's module.
        before: Name of the batch normalization of its inputs, if any.
        after: Name of the batch normalization of its outputs, if any.
    """

    weights: Weights
    module: str
    before: str | None
    after: str | None


class Norms(NamedTuple):
    """Batch normalization by the module of the layer that it precedes or follows."""

    before: dict[str, str]
    after: dict[str, str]


def drop_counters(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the tensors that only count updates."""
    # torch's AveragedModel counts its updates, and batch normalization its batches.
    counters = ("n_averaged", ".num_batches_tracked")
    return {name: x for name, x in tensors.items() if not name.endswith(counters)}


def _find_norms(source: str, tensors: Mapping[str, Any]) -> Norms:
    """Find the layers that batch normalization precedes or follows, by its number."""
    modules = {name: name.rpartition(".")[0] for name in tensors}
    weights = {modules[n]: x.shape for n, x in tensors.items() if n.endswith(".weight")}
    statistics = [n for n in tensors if n.endswith((".running_mean", ".running_var"))]
    names = dict.fromkeys(modules[name] for name in statistics)
    scales = [f"{n}.weight" for n, shape in weights.items() if len(shape) == 1]
    if others := [name for name in scales if modules[name] not in names]:
        raise ValueError(
            f"{source} has a normalization or similar layer, which no Architecture "
            f"has: {join_first(map(quote, others))}"
        )
    norms = Norms({}, {})
    for name in names:
        match = re.fullmatch(r"((?:.*\.)?)([0-9]{1,6})", name, re.DOTALL)
        if match is None:
            raise ValueError(
                f"{source} has batch normalization, and its name {quote(name)} does "
                "not tell which layer it follows: fold it into that layer before saving"
            )
        last, following = (f"{match[1]}{int(match[2]) + step}" for step in (-1, 1))
        if len(weights.get(last, ())) > 1:
            norms.after[last] = name
        elif len(weights.get(following, ())) > 1:
            norms.before[following] = name
        else:
            raise ValueError(
                f"{source} has batch normalization {quote(name)}, which does not "
                "directly follow a convolution or dense layer: it cannot be folded"
            )
    return norms


def _list_candidates(names: Iterable[str]) -> list[Architecture]:
    """Architectures whose naming a state dict follows."""
    modules = {name.rpartition(".")[0] for name in names}
    for scheme, networks in _SCHEMES.items():
        pattern = re.compile(rf"(?:.*\.)?(?:{scheme})", re.DOTALL)
        if any(map(pattern.fullmatch, modules)):
            return [ARCHITECTURES[name] for name in networks]
    others = {name for networks in _SCHEMES.values() for name in networks}
    return [arch for name, arch in ARCHITECTURES.items() if name not in others]


def _match(
    source: str, given: Collection[str], arch: Architecture, norms: Norms
) -> list[Place]:
    """Find the module of every layer, under any prefix that all names share."""
    weights = [*list_weights(arch)]
    layers = [re.escape(name) for entry in weights for name in entry.names]
    names = "|".join([*layers, *_SCHEMES])
    pattern = re.compile(rf"((?:.*?\.)??)({names})\.(?:weight|bias)", re.DOTALL)
    matches = [match for name in given if (match := pattern.fullmatch(name))]
    prefix = min((match[1] for match in matches), key=len, default="")
    if others := [quote(name) for name in given if not name.startswith(prefix)]:
        raise ValueError(
            f"{source}: the names of its layers start with {quote(prefix)!r}, but not "
            f"{join_first(others)}; give the layers' tensors alone"
        )
    modules = {match[2] for match in matches if match[1] == prefix}
    modules -= {n.removeprefix(prefix) for group in norms for n in group.values()}
    # So that 10 comes after 9.
    ordered = sorted(modules, key=lambda name: [*map(int, re.findall("[0-9]+", name))])
    convolutions = iter([name for name in ordered if name.startswith("features.")])
    dense = iter([n for n in ordered if n.startswith(("classifier.", "output."))])
    places = []
    for entry in weights:
        counted = next(convolutions if isinstance(entry.layer, Conv) else dense, "")
        options = (name for name in (*entry.names, counted) if name in modules)
        module = prefix + next(options, entry.names[0])
        norm = (norms.before.get(module), norms.after.get(module))
        places.append(Place(entry, module, *norm))
    return places


def _list_shapes(
    given: Collection[str], places: Iterable[Place]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a state dict must have, by name."""
    shapes = {}
    for (layer, _, _, shape), module, before, after in places:
        shapes[f"{module}.weight"] = shape
        # What a normalization would shift again needs no bias.
        if after is None or f"{module}.bias" in given:
            shapes[f"{module}.bias"] = shape[:1]
        groups = layer.groups if isinstance(layer, Conv) else 1
        for norm, size in ((before, shape[1] * groups), (after, shape[0])):
            names = [f"{norm}.{part}" for part in _NORM] if norm else []
            # Without `affine` it has statistics alone.
            names = names if set(names[2:]) & set(given) else names[:2]
            shapes |= dict.fromkeys(names, (size,))
    return shapes


def _is_padded(layer: Conv | Dense) -> bool:
    return isinstance(layer, Conv) and layer.padding != ((0, 0), (0, 0))


# Numbers.


def _read_layer(
    source: str, tensors: Mapping[str, Any], place: Place
) -> tuple[np.ndarray, np.ndarray]:
    """Read kernel and bias of a layer, with batch normalization folded."""
    (layer, _, window, shape), module, before, after = place
    kernel = _allocate((*window, shape[0]))
    _fill(kernel, functools.partial(read, source, tensors, f"{module}.weight"))
    bias = np.zeros(shape[0])
    if f"{module}.bias" in tensors:
        bias = read(source, tensors, f"{module}.bias").astype(np.float64)
    if before:
        norm = read_norm(source, tensors, before)
        factor, shift = (_spread(x, layer, window) for x in norm)
        axes = tuple(range(len(window)))
        bias = bias + np.sum(kernel * shift, axes, dtype=np.float64)
        kernel *= factor
    if after:
        factor, shift = read_norm(source, tensors, after)
        bias = bias * factor + shift
        kernel *= factor
    return kernel, bias.astype(np.float32)


def _allocate(shape: tuple[int, ...]) -> np.ndarray:
    """Allocate float32 where JAX can use it without a copy, aligned to 64 bytes."""
    size = math.prod(shape)
    memory = np.empty(size + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + size].reshape(shape)


def _fill(kernel: np.ndarray, read: Callable[[slice], np.ndarray]) -> None:
    """Fill [..., channels, out] block by block with rows of (out, channels, ...)."""
    *map_hw, channels, features = kernel.shape
    count = max(1, _BLOCK * features // kernel.size)
    for start in range(0, features, count):
        rows = slice(start, min(start + count, features))
        block = read(rows).reshape(-1, channels, *map_hw)
        kernel[..., rows] = np.moveaxis(block, (0, 1), (-1, -2))


def _spread(
    values: np.ndarray, layer: Conv | Dense, window: tuple[int, ...]
) -> np.ndarray:
    """Give every input of a layer its value, shaped to multiply the kernel."""
    if isinstance(layer, Conv):
        groups = values.reshape(layer.groups, -1)
        return np.repeat(groups, layer.features // layer.groups, 0).T
    return np.moveaxis(values.reshape(window[-1], *window[:-1]), 0, -1)[..., None]


# Messages.


def quote(name: str) -> str:
    """Shorten a name; a file can call its tensors anything, line breaks included."""
    name = name if len(name) <= 100 else f"{name[:100]}..."
    return name if name.isprintable() else repr(name)


def join_first(items: Iterable[str], separator: str = ", ") -> str:
    """Join the first eight items, and say how many more there are."""
    items = list(items)
    more = [f"{len(items) - 8} more"] if len(items) > 8 else []
    return separator.join([*items[:8], *more])

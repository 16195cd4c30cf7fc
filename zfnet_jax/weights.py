"""Weight files: the library's own, and those with PyTorch's names and layout.

`conv1.weight` is (out, in / groups, rows, columns), `fc6.weight` is (out, in), and the
first dense layer takes its map in (channel, row, column) order. The classifier `logits`
has the number after the last layer's: `fc8` after `fc7`.

A file that `save` writes is safetensors. It contains the mean image, and in its header
the architecture as data, the class names and the origin of the weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from zfnet_jax import networks
from zfnet_jax.arch import (
    ARCHITECTURES,
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
)
from zfnet_jax.data import Preprocessing
from zfnet_jax.files import DamagedFileError, DataNotFoundError, write_atomically
from zfnet_jax.model import ConvNet
from zfnet_jax.torch_file import read_state_dict

_SHIPPED = Path(__file__).parent / "pretrained"
_MEAN = "preprocessing.mean"
# One entry of the header holds everything: safetensors writes several in random order.
_HEADER = "zfnet_jax"
# Torchvision counts the modules of two sequences, those without weights too.
_COUNTED = r"(?:features|classifier)\.(?:(?:module|_orig_mod)\.)?[0-9]{1,6}"
_KINDS = {kind.__name__: kind for kind in (Conv, MaxPool, ContrastNorm, Dense)}


class Pretrained(networks.Network):
    """A trained network: a `Network` that knows where its weights come from.

    Attributes:
        model: The `ConvNet`.
        preprocess: From uint8[b, h, w, c] to the float32[b, h, w, c] it was trained on.
        class_names: One name per class, in the order of the labels.
        metadata: Origin of the weights: command, seed, accuracy and the like.
    """

    # Never None, as they can be for other networks.
    preprocess: Preprocessing  # pyright: ignore[reportIncompatibleVariableOverride]
    class_names: tuple[str, ...]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        model: ConvNet,
        preprocess: Preprocessing,
        class_names: Sequence[str],
        metadata: Mapping[str, str | int | float],
    ) -> None:
        """Describe a trained model."""
        engine = networks.ConvNetEngine(model.arch)
        super().__init__(model, engine, lambda: model, preprocess, class_names)
        self.metadata = dict(metadata)


# Inside a compiled function it is a network, as any other.
jax.tree_util.register_pytree_node(Pretrained, networks._flatten, networks._unflatten)


class BareWeightsError(ValueError):
    """A weight file does not describe its network."""


def load(name_or_path: str | os.PathLike[str]) -> Pretrained:
    """Load a trained network: one that ships with the package, or a file of `save`.

    Args:
        name_or_path: A shipped name such as "zfnet32-cifar10", or a path.

    Raises:
        DamagedFileError: The file is truncated, altered, or not a weight file.
        DataNotFoundError: There is no such file.
        ValueError: There is no shipped network of that name, the file contains weights
            alone, or its description is invalid.

    Example:
        >>> import zfnet_jax as zf
        >>> net = zf.load("zfnet32-cifar10")
        >>> net.model.arch.name, net.class_names[:2], net.metadata["seed"]
        ('zfnet32', ('airplane', 'automobile'), 0)
    """
    path = find_weights(name_or_path)
    arrays, header = _read(path)
    if header is None:
        raise BareWeightsError(f"{path} has weights alone: read it with load_weights")
    arch, preprocess, class_names, metadata = _parse(str(path), header, arrays)
    del arrays[_MEAN]
    model = _build(str(path), arrays, arch)
    return Pretrained(model, preprocess, class_names, metadata)


def find_weights(name_or_path: str | os.PathLike[str]) -> Path:
    """Find the file of a network, by a shipped name or a path.

    Raises:
        DataNotFoundError: There is no such file.
        ValueError: There is no shipped network of that name, or the path is not a file.
    """
    path = Path(name_or_path)
    shipped = {file.stem: file for file in sorted(_SHIPPED.glob("*.safetensors"))}
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    if not path.exists() and path.name == str(path) and not path.suffix:
        raise ValueError(
            f"no network is called {path.name!r}; shipped: {', '.join(shipped)}"
        )
    if not path.exists():
        raise DataNotFoundError(f"there is no weight file {path}")
    # Reading a pipe or a device could wait, or go on, forever.
    if not path.is_file():
        raise ValueError(f"{path} is a folder, pipe or device, not a weight file")
    return path


def load_weights(
    source: str | os.PathLike[str] | Mapping[str, np.ndarray],
    arch: Architecture | None = None,
    num_classes: int | None = None,
) -> ConvNet:
    """Build a network from weights alone; every tensor must fit.

    PyTorch is not needed for its files, and nothing in them is run.

    Args:
        source: Arrays by name, or a file: safetensors, or a state dict of `torch.save`,
            alone or in a checkpoint. Names are those of the layers, such as
            `conv1.weight` and `fc6.bias`, or torchvision's, where `features.N` is the
            next convolution and `classifier.N` the next dense layer. A prefix that all
            names share, such as `module.` or `_orig_mod.`, is dropped.
        arch: Architecture of the weights. By default it is the one in the file, or one
            of `ARCHITECTURES`, recognized by its tensors with any number of classes.
        num_classes: Width of the classifier; by default the architecture's own.

    Returns:
        The network, with weights in float32.

    Raises:
        DamagedFileError: The file is truncated, altered, or not a weight file.
        DataNotFoundError: There is no such file.
        ValueError: No architecture is recognized, or tensors are missing, unexpected,
            of another shape, not floats, or not finite. The message lists them.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> arch = zf.Architecture("tiny", (1, 2), (zf.Dense("logits", 1, relu=False),))
        >>> arrays = {"logits.weight": np.ones((1, 6)), "logits.bias": np.array([7.0])}
        >>> float(zf.load_weights(arrays, arch)(np.ones((1, 1, 2, 3)))[0, 0])
        13.0
    """
    if isinstance(source, Mapping):
        label, arrays, header = "the mapping", source, None
    else:
        label, (arrays, header) = str(source), _read(find_weights(source))
    # torch's AveragedModel counts its updates in `n_averaged`.
    skipped = (_MEAN, "n_averaged")
    tensors = {n: np.asarray(x) for n, x in arrays.items() if n not in skipped}
    _refuse_normalization(label, tensors)
    if arch is None and header is not None:
        arch = _parse(label, header, arrays)[0]
    if arch is None:
        arch = _recognize(label, tensors)
    if num_classes is not None:
        arch = arch.with_classes(num_classes)
    return _build(label, tensors, arch)


def save(
    path: str | os.PathLike[str],
    model: ConvNet | networks.Network,
    *,
    preprocess: Preprocessing,
    class_names: Sequence[str],
    metadata: Mapping[str, str | int | float],
) -> None:
    """Write a network to a file that `load` reads, with weights in float32.

    Equal content gives equal bytes. The file appears complete or not at all.

    Args:
        path: The file, usually `*.safetensors`; an existing one is replaced.
        model: A `ConvNet`, or the `Network` of one.
        preprocess: Preprocessing of its images.
        class_names: One name per class, in the order of the labels.
        metadata: Origin of the weights: command, seed, accuracy and the like.

    Raises:
        OSError: The file cannot be written.
        ValueError: The model is not a `ConvNet`, weights are not finite, or the
            description does not fit the network.

    Example:
        >>> import pathlib, tempfile, zfnet_jax as zf
        >>> net = zf.load("zfnet32-cifar10")
        >>> about = dict(preprocess=net.preprocess, class_names=net.class_names)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "copy.safetensors")
        ...     zf.save(file, net, **about, metadata={"origin": "a copy"})
        ...     zf.load(file).metadata
        {'origin': 'a copy'}
    """
    if isinstance(model, networks.Network):
        model = model.model
    if not isinstance(model, ConvNet):
        raise ValueError(f"save takes a ConvNet, not a {type(model).__name__}")
    arch = model.arch
    _check_description(arch, preprocess, class_names, metadata)
    settings = dataclasses.asdict(preprocess)
    arrays = {_MEAN: settings.pop("mean")}
    for layer, (name, *_), window, shape in _layers(arch):
        affine = getattr(model, layer)
        kernel = np.asarray(affine.kernel[...]).reshape(*window, shape[0])
        weight = np.moveaxis(kernel, (-1, -2), (0, 1)).reshape(shape)
        arrays[f"{name}.weight"] = weight
        arrays[f"{name}.bias"] = np.asarray(affine.bias[...])
    arrays = {n: np.ascontiguousarray(x, np.float32) for n, x in arrays.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite; {path} is not written")
    layers = [{"kind": type(x).__name__, **dataclasses.asdict(x)} for x in arch.layers]
    header: dict[str, Any] = {
        "architecture": {**dataclasses.asdict(arch), "layers": layers},
        "class_names": list(class_names),
        "preprocessing": settings,
        "metadata": dict(metadata),
    }
    text = json.dumps({**header, "sha256": _digest(header, arrays)}, sort_keys=True)
    write_atomically(path, safetensors.numpy.save(arrays, {_HEADER: text}))


# Names and shapes.


def _layers(
    arch: Architecture,
) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...], tuple[int, ...]]]:
    """Layers with weights.

    Yields:
        The name; the names in PyTorch, of which the first is written and each is read;
        the inputs of one unit, (rows, columns, channels) or (units,); and the shape of
        the weight in PyTorch.
    """
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
        yield layer.name, names, window, shape
        before = layer.name


def _shapes(
    source: str, given: Collection[str], arch: Architecture
) -> dict[str, tuple[int, ...]]:
    """Shapes of an architecture's tensors, by the names that they have in a state dict.

    Args:
        source: Where the state dict comes from, for messages.
        given: The names in the state dict.
        arch: The architecture.
    """
    layers = [re.escape(name) for _, names, *_ in _layers(arch) for name in names]
    pattern = rf"((?:.*\.)?)({'|'.join(layers)}|{_COUNTED})\.(?:weight|bias)"
    matches = [m for name in given if (m := re.fullmatch(pattern, name, re.DOTALL))]
    prefix = min((m[1] for m in matches), key=len, default="")
    if others := [_quote(name) for name in given if not name.startswith(prefix)]:
        raise ValueError(
            f"{source}: the names of its layers start with {_quote(prefix)!r}, but not "
            f"{_list(others)}; give the layers' tensors alone"
        )
    modules = sorted(
        {m[2] for m in matches if m[1] == prefix},
        key=lambda name: (len(name), name),  # so that 10 comes after 9
    )
    convolutions = iter([name for name in modules if name.startswith("features.")])
    dense = iter([name for name in modules if name.startswith("classifier.")])
    shapes = {}
    for _, names, _, shape in _layers(arch):
        counted = next(convolutions if len(shape) == 4 else dense, "")
        name = next((x for x in (*names, counted) if x in modules), names[0])
        shapes[f"{prefix}{name}.weight"] = shape
        shapes[f"{prefix}{name}.bias"] = shape[:1]
    return shapes


def _refuse_normalization(source: str, tensors: Mapping[str, np.ndarray]) -> None:
    statistics = [n for n in tensors if n.endswith((".running_mean", ".running_var"))]
    scales = [n for n, x in tensors.items() if n.endswith(".weight") and x.ndim == 1]
    if names := statistics or scales:
        raise ValueError(
            f"{source} has batch normalization or a similar layer, which no "
            f"Architecture has: {_list(map(_quote, names))}"
        )


def _recognize(source: str, tensors: Mapping[str, np.ndarray]) -> Architecture:
    """The architecture whose tensors these are, with any number of classes."""
    matches = []
    for arch in ARCHITECTURES.values():
        *_, bias = _shapes(source, tensors, arch)
        if bias in tensors and tensors[bias].size:
            arch = arch.with_classes(tensors[bias].size)
        shapes = _shapes(source, tensors, arch).items()
        if all(n in tensors and tensors[n].shape == shape for n, shape in shapes):
            matches.append(arch)
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " and ".join(arch.name for arch in matches)
        raise ValueError(f"{source} fits {names}, whose tensors are alike: give `arch`")
    given = [f"{_quote(name)} {x.shape}" for name, x in tensors.items()] or ["none"]
    raise ValueError(
        f"{source} fits none of {', '.join(ARCHITECTURES)}: give `arch` (its tensors: "
        f"{_list(given)})"
    )


def _build(
    source: str, tensors: Mapping[str, np.ndarray], arch: Architecture
) -> ConvNet:
    shapes = _shapes(source, tensors, arch)
    problems = [
        f"{_quote(name)} {problem}"
        for name, shape in shapes.items()
        if (problem := _find_problem(tensors.get(name), shape))
    ]
    problems += [f"{_quote(n)} is not expected" for n in tensors if n not in shapes]
    if problems:
        raise ValueError(f"{source} does not fit {arch.name}: {_list(problems, '; ')}")
    model = ConvNet(arch, init=lambda _, *spec: jnp.zeros(*spec), rngs=nnx.Rngs(0))
    # Copies: jax may share the memory of an array that its owner changes.
    arrays = iter([np.array(tensors[name], np.float32) for name in shapes])
    for layer, _, window, _ in _layers(arch):
        weight, bias = next(arrays), next(arrays)
        weight = weight.reshape(-1, window[-1], *window[:-1])
        kernel = np.moveaxis(weight, (0, 1), (-1, -2))
        affine = getattr(model, layer)
        affine.kernel[...] = jnp.asarray(kernel.reshape(affine.kernel.shape))
        affine.bias[...] = jnp.asarray(bias)
    return model


def _find_problem(array: np.ndarray | None, shape: tuple[int, ...]) -> str | None:
    if array is None:
        return "is missing"
    if array.shape != shape:
        return f"has shape {array.shape}, expected {shape}"
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return f"has dtype {array.dtype}, expected a float"
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32)).all()
    return None if finite else "is not finite in float32"


def _quote(name: str) -> str:
    # A file can call its tensors anything, line breaks included.
    name = name if len(name) <= 100 else f"{name[:100]}..."
    return name if name.isprintable() else repr(name)


def _list(items: Iterable[str], separator: str = ", ") -> str:
    """The first eight items, and how many more there are."""
    items = list(items)
    more = [f"{len(items) - 8} more"] if len(items) > 8 else []
    return separator.join([*items[:8], *more])


# Files.


def read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors of a safetensors file by name, and the texts of its header.

    Raises:
        DamagedFileError: The file is truncated, damaged, or not a safetensors file.
        DataNotFoundError: There is no such file.
        ValueError: The path is a folder or device, or NumPy has no type for a tensor.
    """
    try:
        with safetensors.safe_open(find_weights(path), framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            return arrays, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise DamagedFileError(
            f"{path} is truncated, damaged, or not a weight file: {error}"
        ) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has a type that NumPy lacks: {error}") from error


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Tensors of a file, and its header if `save` wrote it."""
    with path.open("rb") as file:
        start = file.read(9)
    # safetensors is the length of a JSON object, in 8 bytes, and the object.
    if start[8:] != b"{":
        try:
            return read_state_dict(path.read_bytes()), None
        except ValueError as error:
            raise DamagedFileError(
                f"{path} is truncated, damaged, or not a weight file: {error}"
            ) from error
    arrays, texts = read_safetensors(path)
    if _HEADER not in texts:
        return arrays, None
    try:
        header = json.loads(texts[_HEADER])
        if header.pop("sha256") != _digest(header, arrays):
            raise ValueError("another sha256")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{path} is damaged: it does not match its sha256"
        ) from error
    return arrays, header


def _digest(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _parse(
    source: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[Architecture, Preprocessing, tuple[str, ...], dict[str, Any]]:
    """Architecture, preprocessing, class names and metadata of a file."""
    try:
        fields = _to_tuples(header["architecture"])
        layers = [_KINDS[layer.pop("kind")](**layer) for layer in fields.pop("layers")]
        mean = np.asarray(arrays[_MEAN], np.float32)
        result = (
            Architecture(**fields, layers=tuple(layers)),
            Preprocessing(mean, **_to_tuples(header["preprocessing"])),
            tuple(header["class_names"]),
            dict(header["metadata"]),
        )
        _check_description(*result)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} has an invalid description: {error!r}") from error
    return result


def _to_tuples(value: Any) -> Any:
    """A copy of a value of JSON, with tuples in place of its lists."""
    if isinstance(value, dict):
        return {name: _to_tuples(item) for name, item in value.items()}
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def _check_description(
    arch: Architecture,
    preprocess: Preprocessing,
    class_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    mean = preprocess.mean
    shape = (*(preprocess.size or mean.shape[:2]), *mean.shape[2:])
    expected = (*arch.input_hw, arch.channels)
    wrong = [name for name, value in metadata.items() if not _is_plain(value)]
    if shape != expected:
        raise ValueError(f"preprocessing gives images {shape}, expected {expected}")
    if not np.isfinite(mean).all():
        raise ValueError("the mean image is not finite")
    if isinstance(preprocess.scale, str) or not _is_plain(preprocess.scale):
        raise ValueError(f"the scale {preprocess.scale!r} is not a finite number")
    if not all(isinstance(name, str) for name in class_names):
        raise ValueError("class names must be text")
    if len(class_names) != arch.num_classes:
        raise ValueError(f"{len(class_names)} class names, expected {arch.num_classes}")
    if wrong:
        raise ValueError(f"metadata {_list(wrong)} must be text or a finite number")


def _is_plain(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, int | float) and abs(value) < math.inf
    )

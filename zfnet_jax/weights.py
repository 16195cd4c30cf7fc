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
import importlib.resources
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from zfnet_jax.checkpoint import DamagedFileError
from zfnet_jax.data import Preprocessing
from zfnet_jax.model import ConvNet
from zfnet_jax.torch_file import read_state_dict

_SUFFIX = ".safetensors"
_MEAN = "preprocessing.mean"
# One entry of the header holds everything: safetensors writes several in random order.
_HEADER = "zfnet_jax"
# Torchvision counts the modules of two sequences, those without weights too.
_COUNTED = r"(?:features|classifier)\.(?:(?:module|_orig_mod)\.)?[0-9]{1,6}"
_KINDS = {kind.__name__: kind for kind in (Conv, MaxPool, ContrastNorm, Dense)}
_LISTED = 8


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


def load(name_or_path: str | os.PathLike[str]) -> Pretrained:
    """Load a trained network: one that ships with the package, or a file of `save`.

    Args:
        name_or_path: A shipped name such as "zfnet32-cifar10", or a path.

    Raises:
        DamagedFileError: The file is truncated, altered, or not a weight file.
        FileNotFoundError: There is no such file.
        ValueError: There is no shipped network of that name, the file contains weights
            alone, or its description is invalid.

    Example:
        >>> import zfnet_jax as zf
        >>> net = zf.load("zfnet32-cifar10")
        >>> net.model.arch.name, net.class_names[:2], net.metadata["seed"]
        ('zfnet32', ('airplane', 'automobile'), 0)
    """
    name = os.fspath(name_or_path)
    folder = importlib.resources.files("zfnet_jax") / "pretrained"
    files = folder.iterdir() if folder.is_dir() else ()
    shipped = {x.name.removesuffix(_SUFFIX): x for x in files if _SUFFIX in x.name}
    if name in shipped:
        with importlib.resources.as_file(shipped[name]) as path:
            return _load(path)
    path = Path(name)
    if not path.exists() and path.name == name and not path.suffix:
        raise ValueError(
            f"no network is called {name!r}; shipped: {', '.join(sorted(shipped))}"
        )
    return _load(path)


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
        FileNotFoundError: There is no such file.
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
        label, (arrays, header) = str(source), _read(Path(source))
    tensors = {n: np.asarray(x) for n, x in arrays.items() if n != _MEAN}
    # torch's AveragedModel counts in it.
    tensors.pop("n_averaged", None)
    _refuse_normalization(label, tensors)
    if arch is None and header is not None:
        arch = _describe(label, arrays, header)[0]
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
    arch, path = model.arch, Path(path)
    _check_description(str(path), arch, preprocess, class_names, metadata)
    settings = dataclasses.asdict(preprocess)
    arrays = {_MEAN: settings.pop("mean")}
    for layer in _layers(arch):
        affine = getattr(model, layer.name)
        kernel = np.asarray(affine.kernel[...]).reshape(*layer.window, layer.features)
        weight = np.moveaxis(kernel, (-1, -2), (0, 1)).reshape(layer.shape)
        arrays[f"{layer.names[0]}.weight"] = weight
        arrays[f"{layer.names[0]}.bias"] = np.asarray(affine.bias[...])
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
    content = safetensors.numpy.save(arrays, {_HEADER: text})
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors of a safetensors file by name, and the texts of its header.

    Raises:
        DamagedFileError: The file is truncated, damaged, or not a safetensors file.
        FileNotFoundError: There is no such file.
        ValueError: The path is a folder or device, or NumPy has no type for a tensor.
    """
    _check_file(Path(path))
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {}
            for name in file.keys():
                try:
                    arrays[name] = file.get_tensor(name)
                except (AttributeError, KeyError, TypeError) as error:
                    dtype = file.get_slice(name).get_dtype()
                    raise ValueError(
                        f"{path}: {_quote(name)} has dtype {dtype}, which NumPy lacks"
                    ) from error
            return arrays, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise DamagedFileError(
            f"{path} is truncated, damaged, or not a weight file: {error}"
        ) from error


# Names and shapes.


class _Layer(NamedTuple):
    """Weights of one layer in a PyTorch state dict."""

    name: str  # in `Architecture`
    names: tuple[str, ...]  # in PyTorch: the first is written, and each of them is read
    window: tuple[int, ...]  # inputs of one unit: (rows, columns, channels) or (units,)
    features: int
    shape: tuple[int, ...]  # of the weight in PyTorch


def _layers(arch: Architecture) -> Iterator[_Layer]:
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
        yield _Layer(layer.name, names, window, layer.features, shape)
        before = layer.name


def _modules(source: str, names: Collection[str], arch: Architecture) -> dict[str, str]:
    """Names of the layers in a state dict, with the prefix, by layer name."""
    layers = [re.escape(name) for layer in _layers(arch) for name in layer.names]
    pattern = rf"((?:.*\.)?)({'|'.join(layers)}|{_COUNTED})\.(?:weight|bias)"
    matches = [m for name in names if (m := re.fullmatch(pattern, name, re.DOTALL))]
    prefixes = {m[1] for m in matches}
    prefix = min(prefixes, key=len, default="")
    # Any other prefix of all names would be longer.
    if others := [_quote(n) for n in names if not n.startswith(prefix)]:
        raise ValueError(
            f"{source}: the names of its layers start with {_quote(prefix)!r}, but not "
            f"{_list(others)}; give the layers' tensors alone"
        )
    counted: dict[str, str] = {}
    for kind, block in ((Conv, "features."), (Dense, "classifier.")):
        used = {m[2] for m in matches if m[1] == prefix and m[2].startswith(block)}
        modules = sorted(used, key=lambda module: (int(module.split(".")[-1]), module))
        same = [layer.name for layer in arch.layers if isinstance(layer, kind)]
        counted |= dict(zip(same, modules, strict=False))
    groups = {m.groups() for m in matches}
    result = {}
    for layer in _layers(arch):
        options = (*layer.names, counted.get(layer.name, layer.name))
        given = (x for x in options if (prefix, x) in groups)
        result[layer.name] = prefix + next(given, options[0])
    return result


def _shapes(
    arch: Architecture, modules: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of an architecture, by name in the state dict."""
    shapes = {}
    for layer in _layers(arch):
        shapes[f"{modules[layer.name]}.weight"] = layer.shape
        shapes[f"{modules[layer.name]}.bias"] = (layer.features,)
    return shapes


def _refuse_normalization(source: str, tensors: Mapping[str, np.ndarray]) -> None:
    statistics = [n for n in tensors if n.endswith((".running_mean", ".running_var"))]
    scales = [n for n, x in tensors.items() if n.endswith(".weight") and x.ndim == 1]
    if names := statistics or scales:
        raise ValueError(
            f"{source} has batch normalization or a similar layer, which no "
            f"Architecture has: {_list(names)}"
        )


def _recognize(source: str, tensors: Mapping[str, np.ndarray]) -> Architecture:
    """The architecture whose tensors these are, with any number of classes."""
    matches = []
    for arch in ARCHITECTURES.values():
        modules = _modules(source, tensors, arch)
        bias = tensors.get(f"{modules['logits']}.bias")
        if bias is not None and bias.ndim == 1 and len(bias):
            arch = arch.with_classes(len(bias))
        shapes = _shapes(arch, modules).items()
        if all(n in tensors and tensors[n].shape == shape for n, shape in shapes):
            matches.append(arch)
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " and ".join(arch.name for arch in matches)
        raise ValueError(f"{source} fits {names}, whose tensors are alike: give `arch`")
    shapes = _list([f"{_quote(n)} {x.shape}" for n, x in tensors.items()])
    raise ValueError(
        f"{source} fits none of {', '.join(ARCHITECTURES)}: give `arch` (its tensors: "
        f"{shapes or 'none'})"
    )


def _build(
    source: str, tensors: Mapping[str, np.ndarray], arch: Architecture
) -> ConvNet:
    modules = _modules(source, tensors, arch)
    left, fitting, problems = dict(tensors), {}, []
    for name, shape in _shapes(arch, modules).items():
        problem, fitting[name] = _fit(left.pop(name, None), shape)
        if problem:
            problems.append(f"{_quote(name)} {problem}")
    problems += [f"{_quote(name)} is not expected" for name in left]
    if problems:
        raise ValueError(f"{source} does not fit {arch.name}: {_list(problems, '; ')}")
    model = ConvNet(arch, init=lambda _, *spec: jnp.zeros(*spec), rngs=nnx.Rngs(0))
    for layer in _layers(arch):
        weight = fitting[f"{modules[layer.name]}.weight"]
        window = (layer.features, layer.window[-1], *layer.window[:-1])
        kernel = np.moveaxis(weight.reshape(window), (0, 1), (-1, -2))
        affine = getattr(model, layer.name)
        affine.kernel[...] = jnp.asarray(kernel.reshape(affine.kernel.shape))
        affine.bias[...] = jnp.asarray(fitting[f"{modules[layer.name]}.bias"])
    return model


def _fit(
    array: np.ndarray | None, shape: tuple[int, ...]
) -> tuple[str | None, np.ndarray]:
    """The problem with an array, if it has one, and the array in float32."""
    if array is None:
        return "is missing", np.zeros(())
    if array.shape != shape:
        return f"has shape {array.shape}, expected {shape}", array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return f"has dtype {array.dtype}, expected a float", array
    with np.errstate(over="ignore"):
        # A copy in any case: jax may share its memory, and the owner change the array.
        array = array.astype(np.float32)
    return None if np.isfinite(array).all() else "is not finite in float32", array


def _quote(name: str) -> str:
    # A file can call its tensors anything, line breaks included.
    name = name if len(name) <= 100 else f"{name[:100]}..."
    return name if name.isprintable() else repr(name)


def _list(items: Sequence[str], separator: str = ", ") -> str:
    more = [f"{len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return separator.join([*items[:_LISTED], *more])


# Files.


def _load(path: Path) -> Pretrained:
    arrays, header = _read(path)
    if header is None:
        raise ValueError(
            f"{path} contains weights without a description: use load_weights"
        )
    arch, preprocess, class_names, metadata = _describe(str(path), arrays, header)
    tensors = {name: array for name, array in arrays.items() if name != _MEAN}
    model = _build(str(path), tensors, arch)
    return Pretrained(model, preprocess, class_names, metadata)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"there is no weight file {path}")
    # Reading a pipe or a device could wait, or go on, forever.
    if not path.is_file():
        raise ValueError(f"{path} is a folder, pipe or device, not a weight file")


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Tensors of a file, and its header if `save` wrote it."""
    _check_file(path)
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
    text = texts.get(_HEADER)
    if text is None:
        return arrays, None
    header: Any = None
    try:
        header = json.loads(text)
        intact = header.pop("sha256") == _digest(header, arrays)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        intact = False
    if not intact:
        raise DamagedFileError(f"{path} is damaged: it does not match its sha256")
    return arrays, header


def _digest(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _describe(
    source: str, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]
) -> tuple[Architecture, Preprocessing, tuple[str, ...], dict[str, Any]]:
    """Architecture, preprocessing, class names and metadata in a header."""
    try:
        fields = {**header["architecture"]}
        layers = [dict(layer) for layer in fields.pop("layers")]
        layers = tuple(_KINDS[x.pop("kind")](**_to_tuples(x)) for x in layers)
        arch = Architecture(**_to_tuples(fields), layers=layers)
        mean = np.asarray(arrays[_MEAN], np.float32)
        preprocess = Preprocessing(mean, **_to_tuples(header["preprocessing"]))
        class_names, metadata = tuple(header["class_names"]), dict(header["metadata"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source} has a description that this version cannot read: {error!r}"
        ) from error
    _check_description(source, arch, preprocess, class_names, metadata)
    return arch, preprocess, class_names, metadata


def _to_tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    def convert(value: Any) -> Any:
        return tuple(map(convert, value)) if isinstance(value, list) else value

    return {name: convert(value) for name, value in data.items()}


def _check_description(
    source: str,
    arch: Architecture,
    preprocess: Preprocessing,
    class_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    if not isinstance(preprocess, Preprocessing):
        raise ValueError(f"{source}: preprocess must be a Preprocessing")
    mean, size, scale = preprocess.mean, preprocess.size, preprocess.scale
    shape = (mean.shape[:2] if size is None else size, mean.shape[2:])
    expected = (arch.input_hw, (arch.channels,))
    wrong = [x for x, value in metadata.items() if not _is_text_or_number(value)]
    problem = None
    if shape != expected:
        problem = f"preprocessing gives images of {shape}, expected {expected}"
    elif not np.isfinite(mean).all():
        problem = "the mean image is not finite"
    elif isinstance(scale, str) or not _is_text_or_number(scale):
        problem = f"the scale {scale!r} is not a finite number"
    elif not all(isinstance(x, str) for x in class_names):
        problem = "class names must be text"
    elif len(class_names) != arch.num_classes:
        problem = f"{len(class_names)} class names for {arch.num_classes} classes"
    elif wrong:
        problem = f"metadata {_list(wrong)} must be text or a finite number"
    if problem is not None:
        raise ValueError(f"{source}: {problem}")


def _is_text_or_number(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, int | float) and abs(value) < math.inf
    )

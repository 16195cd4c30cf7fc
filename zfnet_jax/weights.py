"""Weights under the names and in the layout of PyTorch.

`conv1.weight` is (out, in / groups, rows, columns), `fc6.weight` is (out, in), and the
first dense layer takes its map in (channel, row, column) order. The classifier, here
`logits`, is called by its number: `fc8` after `fc7`. Torchvision's names are read too:
`features.N` is the next convolution, `classifier.N` the next dense layer.

Files are safetensors, or read only, what `torch.save` writes. A file written by
`save_weights` also holds the mean image, and in its header the architecture as data,
the class names and the origin of the weights, so that it needs nothing else to be used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.checkpoint import DamagedFileError
from zfnet_jax.data import Preprocessing
from zfnet_jax.model import ConvNet
from zfnet_jax.torch_pickle import read_state_dict

_SUFFIX = ".safetensors"
_MEAN = "preprocessing.mean"
# One entry of the header holds everything: safetensors writes several in random order.
_HEADER = "zfnet_jax"
# DataParallel puts `module.` before every name of the module it wraps.
_PARALLEL = "module."
_COUNTED = re.compile(
    r"(?P<module>(?P<block>features|classifier)\.(module\.)?(?P<number>[0-9]{1,6}))"
    r"\.(weight|bias)"
)
_KINDS = {kind.__name__: kind for kind in (Conv, MaxPool, ContrastNorm, Dense)}


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A trained network with all that is needed to use it.

    Attributes:
        model: The network.
        preprocess: From uint8[b, h, w, 3] to the float32[b, h, w, 3] it was trained on.
        class_names: By label.
        metadata: Where the weights come from: command, seed, accuracy and the like.
    """

    model: ConvNet
    preprocess: Preprocessing
    class_names: tuple[str, ...]
    metadata: dict[str, str | int | float]


def load_weights(
    source: str | os.PathLike[str] | Mapping[str, np.ndarray],
    arch: Architecture,
    num_classes: int | None = None,
) -> ConvNet:
    """Build a network with given weights, every one of which must fit.

    PyTorch is not needed for its files, and nothing that they hold is run. Where the
    first dense layer sees a map, its weights are brought from PyTorch's order
    (channel, row, column) into the order here (row, column, channel).

    Args:
        source: A safetensors file, a state_dict that `torch.save` wrote (in either of
            its formats, alone or as `state_dict`, `model_state_dict` or `model` of a
            checkpoint), or arrays by name. Names are those of the layers, as in
            `conv1.weight` (out, in / groups, rows, columns) and `fc6.bias` (out,), with
            the classifier called `logits` or by its number, as `fc8`; or torchvision's,
            where `features.N` is the next convolution and `classifier.N` the next dense
            layer in the order of N. The prefix `module.` of a DataParallel is dropped.
        arch: What the weights are for.
        num_classes: Width of the classifier; the architecture's own if None.

    Returns:
        The network, its weights in float32.

    Raises:
        DamagedFileError: the file is truncated, changed, of another kind, or would run
            something that no state_dict needs.
        FileNotFoundError: there is no such file.
        ValueError: tensors are missing, unexpected, of another shape, no floats or not
            finite; the message names them all, or the first of an unknown type.
    """
    if num_classes is not None:
        arch = arch.with_classes(num_classes)
    if isinstance(source, Mapping):
        return _build("the mapping", source, arch)
    arrays, _ = _read(Path(source))
    return _build(str(source), arrays, arch)


def save_weights(
    path: str | os.PathLike[str],
    model: ConvNet,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    metadata: Mapping[str, str | int | float],
) -> None:
    """Write a network so that `load_pretrained` gives it back, in float32.

    The same content is the same bytes. The file appears whole or not at all.

    Args:
        path: The file, usually `*.safetensors`; replaced if it is there.
        model: The network.
        preprocessing: What its images go through.
        class_names: One for each class.
        metadata: Where the weights come from: command, seed, accuracy and the like.

    Raises:
        OSError: the file cannot be written.
        ValueError: weights are not finite, or the names are not as many as the classes.
    """
    arch = model.arch
    if len(class_names) != arch.num_classes:
        raise ValueError(
            f"{arch.name} has {arch.num_classes} classes, not {len(class_names)}"
        )
    settings = dataclasses.asdict(preprocessing)
    arrays = {_MEAN: settings.pop("mean")}
    for layer in _layers(arch):
        affine = getattr(model, layer.name)
        kernel = np.asarray(affine.kernel[...]).reshape(*layer.window, layer.features)
        weight = np.moveaxis(kernel, (-1, -2), (0, 1)).reshape(layer.shape)
        arrays[f"{layer.names[0]}.weight"] = weight
        arrays[f"{layer.names[0]}.bias"] = np.asarray(affine.bias[...])
    arrays = {n: np.ascontiguousarray(a, np.float32) for n, a in arrays.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite; {path} is not written")
    header: dict[str, Any] = {
        "architecture": _to_data(arch),
        "class_names": list(class_names),
        "preprocessing": settings,
        "metadata": dict(metadata),
    }
    header["sha256"] = _digest(header, arrays)
    text = json.dumps(header, sort_keys=True)
    _write_whole(Path(path), safetensors.numpy.save(arrays, {_HEADER: text}))


def load_pretrained(name_or_path: str | os.PathLike[str]) -> Pretrained:
    """Load a trained network: one that ships with the package, or one's own.

    Args:
        name_or_path: A shipped name such as "zfnet32-cifar10", or the path of a file
            that `save_weights` wrote.

    Raises:
        DamagedFileError: the file is truncated, changed or no safetensors file.
        FileNotFoundError: there is no such file.
        ValueError: no weights of that name, or the file holds weights and no more, or
            is described for another version.
    """
    name, shipped = os.fspath(name_or_path), _shipped()
    if name in shipped:
        with importlib.resources.as_file(shipped[name]) as path:
            return _load_described(path)
    path = Path(name)
    if not path.exists() and path.name == name and path.suffix != _SUFFIX:
        there = ", ".join(sorted(shipped)) or "none"
        raise ValueError(f"no pretrained weights called {name!r}; there are: {there}")
    return _load_described(path)


def is_described(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether weights say what network they are of, as `save_weights` writes it.

    True also where they say it in a form that this version cannot read.
    """
    if os.fspath(name_or_path) in _shipped():
        return True
    try:
        with safetensors.safe_open(name_or_path, framework="numpy") as file:
            return _HEADER in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


def _shipped() -> dict[str, Traversable]:
    folder = importlib.resources.files("zfnet_jax") / "pretrained"
    files = folder.iterdir() if folder.is_dir() else ()
    return {f.name.removesuffix(_SUFFIX): f for f in files if _SUFFIX in f.name}


def read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors of a safetensors file by name, and the texts beside them.

    Raises:
        DamagedFileError: the file is truncated, damaged or no safetensors file.
        ValueError: a tensor is of a type that NumPy does not know.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {}
            for name in file.keys():
                try:
                    arrays[name] = file.get_tensor(name)
                except (AttributeError, KeyError, TypeError) as error:
                    dtype = file.get_slice(name).get_dtype()
                    raise ValueError(
                        f"{path}: {name} has dtype {dtype}, which NumPy does not know"
                    ) from error
            return arrays, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise DamagedFileError(
            f"{path} is truncated, damaged or no safetensors file: {error}"
        ) from error


class _Layer(NamedTuple):
    """Where a layer's weights are in a PyTorch state.

    Attributes:
        name: In `Architecture`.
        names: In PyTorch; the first is written, each of them is read.
        window: What one unit sees: (rows, columns, channels) or (units,).
        features: Number of units.
        shape: Of the weight in PyTorch.
    """

    name: str
    names: tuple[str, ...]
    window: tuple[int, ...]
    features: int
    shape: tuple[int, ...]


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


def _build(
    source: str, arrays: Mapping[str, np.ndarray], arch: Architecture
) -> ConvNet:
    left = {name: array for name, array in arrays.items() if name != _MEAN}
    if all(name.startswith(_PARALLEL) for name in left):
        left = {name.removeprefix(_PARALLEL): array for name, array in left.items()}
    counted = _counted(left, arch)
    problems: list[str] = []
    fitting: dict[str, np.ndarray] = {}
    for layer in _layers(arch):
        names = (*layer.names, counted.get(layer.name, layer.name))
        there = (n for n in names if f"{n}.weight" in left or f"{n}.bias" in left)
        name = next(there, names[0])
        for kind, shape in (("weight", layer.shape), ("bias", (layer.features,))):
            problem, array = _fit(left.pop(f"{name}.{kind}", None), shape)
            fitting[f"{layer.name}.{kind}"] = array
            if problem:
                problems.append(f"{name}.{kind} {problem}")
    # A file can call its tensors anything, line breaks included.
    shown = (name if name.isprintable() else repr(name) for name in left)
    problems += [f"{name} is not expected" for name in shown]
    if problems:
        raise ValueError(f"{source} does not fit {arch.name}: {'; '.join(problems)}")

    model = ConvNet(arch, init=_no_init, rngs=nnx.Rngs(0))
    for layer in _layers(arch):
        window = (layer.features, layer.window[-1], *layer.window[:-1])
        weight = fitting[f"{layer.name}.weight"].reshape(window)
        kernel = np.moveaxis(weight, (0, 1), (-1, -2))
        affine = getattr(model, layer.name)
        affine.kernel[...] = jnp.asarray(kernel.reshape(affine.kernel.shape))
        affine.bias[...] = jnp.asarray(fitting[f"{layer.name}.bias"])
    return model


def _counted(names: Iterable[str], arch: Architecture) -> dict[str, str]:
    """What layers are called in torchvision's AlexNet and its like, by layer name.

    There `features.N` and `classifier.N` count the modules of two sequences, those
    without weights too, so that only the order of N tells.
    """
    found: dict[str, dict[str, int]] = {"features": {}, "classifier": {}}
    for name in names:
        if match := _COUNTED.fullmatch(name):
            found[match["block"]][match["module"]] = int(match["number"])
    counted: dict[str, str] = {}
    for kind, block in ((Conv, "features"), (Dense, "classifier")):
        layers = [layer.name for layer in arch.layers if isinstance(layer, kind)]
        modules = sorted(found[block], key=found[block].__getitem__)
        counted |= dict(zip(layers, modules, strict=False))
    return counted


def _fit(
    array: np.ndarray | None, shape: tuple[int, ...]
) -> tuple[str | None, np.ndarray]:
    """What is wrong with an array, if anything, and the array in float32."""
    if array is None:
        return "is missing", np.zeros(shape)
    array = np.asarray(array)
    if array.shape != shape:
        return f"has shape {array.shape}, expected {shape}", array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return f"has dtype {array.dtype}, expected a float", array
    with np.errstate(over="ignore"):
        # A copy in any case: jax may share its memory, and the owner change the array.
        array = array.astype(np.float32)
    return None if np.isfinite(array).all() else "is not finite in float32", array


def _no_init(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return jnp.zeros(shape, dtype)


def _load_described(path: Path) -> Pretrained:
    arrays, header = _read(path)
    if header is None:
        raise ValueError(
            f"{path} has no description beside its weights; give load_weights one"
        )
    try:
        arch = _from_data(header["architecture"])
        settings = {name: _tuples(x) for name, x in header["preprocessing"].items()}
        preprocessing = Preprocessing(arrays[_MEAN], **settings)
        class_names, metadata = tuple(header["class_names"]), dict(header["metadata"])
        if preprocessing.mean.ndim != 3 or len(class_names) != arch.num_classes:
            raise ValueError("a mean image and a name for each class are needed")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is described for another version of zfnet_jax: {error!r}"
        ) from error
    model = _build(str(path), arrays, arch)
    return Pretrained(model, preprocessing, class_names, metadata)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Tensors of a file, and its header if `save_weights` wrote it."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    with path.open("rb") as file:
        start = file.read(9)
    # safetensors is the length of a JSON object, in 8 bytes, and the object.
    if start[8:] != b"{":
        try:
            return read_state_dict(path.read_bytes()), None
        except ValueError as error:
            raise DamagedFileError(
                f"{path} is truncated, damaged or no weight file: {error}"
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


def _write_whole(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _to_data(arch: Architecture) -> dict[str, Any]:
    data = dataclasses.asdict(arch)
    data["layers"] = [
        {"kind": type(layer).__name__, **dataclasses.asdict(layer)}
        for layer in arch.layers
    ]
    return data


def _from_data(data: Mapping[str, Any]) -> Architecture:
    layers = []
    for layer in data["layers"]:
        fields = {name: _tuples(value) for name, value in layer.items()}
        layers.append(_KINDS[fields.pop("kind")](**fields))
    fields = {name: _tuples(value) for name, value in data.items()}
    return Architecture(**{**fields, "layers": tuple(layers)})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

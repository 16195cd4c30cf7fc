"""Weight files: the library's own, and those with PyTorch's names and layout.

A file that `save` writes is safetensors. It contains the mean image, and in its header
the architecture as data, the class names and the origin of the weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from zfnet_jax import networks, state_dict
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.data import Normalization, Preprocessing
from zfnet_jax.files import (
    DamagedFileError,
    DataNotFoundError,
    unpack,
    write_atomically,
)
from zfnet_jax.imagenet.classes import CLASS_NAMES
from zfnet_jax.imagenet.registry import PUBLIC, recognize
from zfnet_jax.model import ConvNet
from zfnet_jax.torch_file import read_state_dict

_SUFFIXES = (".pt", ".pth", ".safetensors", ".zip")
_SHIPPED = Path(__file__).parent / "pretrained"
_MEAN = "preprocessing.mean"
# One entry of the header holds everything: safetensors writes several in random order.
_HEADER = "zfnet_jax"
_KINDS = {kind.__name__: kind for kind in (Conv, MaxPool, ContrastNorm, Dense)}


class Pretrained(networks.Network):
    """A trained network: a `Network` that knows where its weights come from.

    Attributes:
        model: The `ConvNet`, or the function of a published network.
        preprocess: From uint8[b, h, w, c] to the float32[b, h, w, c] it was trained on.
        class_names: One name per class, in the order of the labels.
        metadata: Origin of the weights: command, seed, accuracy and the like.
    """

    # Never None, as they can be for other networks.
    preprocess: Preprocessing | Normalization  # pyright: ignore[reportIncompatibleVariableOverride]
    class_names: tuple[str, ...]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, net: networks.Network, metadata: Mapping[str, str | int | float]
    ) -> None:
        """Describe a network with preprocessing and class names."""
        super().__init__(
            net.model, net._engine, net._read_weights, net.preprocess, net.class_names
        )
        self.metadata = dict(metadata)


# Inside a compiled function it is a network, as any other.
jax.tree_util.register_pytree_node(Pretrained, networks._flatten, networks._unflatten)


class BareWeightsError(ValueError):
    """A weight file does not describe its network."""


def load(
    name_or_path: str | os.PathLike[str], *, class_names: Sequence[str] | None = None
) -> Pretrained:
    """Load a trained network, by its name or from a file.

    A name is that of a network that ships with the package, or of one trained on
    ImageNet that others have published, such as "vgg16" (all in
    `zfnet_jax.imagenet.registry.PUBLIC`). Its weights are fetched once into the user's
    cache, and checked. A file of such weights is recognized by its tensors.

    Args:
        name_or_path: A name such as "zfnet32-cifar10", a file of `save`, or a file of
            published weights (.pth, a zip of it, or safetensors with its names).
        class_names: Names of the classes, for a file of a published network that was
            trained on others than ImageNet's.

    Raises:
        DamagedFileError: The file is truncated, altered, or not a weight file.
        DataNotFoundError: There is no such file, or it cannot be fetched.
        ValueError: There is no network of that name, the file contains weights alone
            that belong to no published network, its description is invalid, or
            `class_names` do not fit.

    Example:
        >>> import zfnet_jax as zf
        >>> net = zf.load("zfnet32-cifar10")
        >>> net.model.arch.name, net.class_names[:2], net.metadata["seed"]
        ('zfnet32-wide', ('airplane', 'automobile'), 0)
    """
    path = find_weights(name_or_path)
    with _open(path) as (tensors, header):
        if header is not None:
            if class_names is not None:
                raise ValueError(f"{path} names its classes: omit class_names")
            arch, preprocess, names, metadata = _parse(str(path), header, tensors)
            tensors.pop(_MEAN, None)
            model = state_dict.build(str(path), tensors, arch)
            net = networks.network(model, preprocess=preprocess, class_names=names)
            return Pretrained(net, metadata)
        is_public = str(name_or_path) in PUBLIC
        known = (str(name_or_path), 1000) if is_public else recognize(tensors)
        if known is None:
            raise BareWeightsError(
                f"{path} has weights alone, of no published network: read it with "
                "load_weights"
            )
        name, count = known
        if class_names is None and count != len(CLASS_NAMES):
            raise BareWeightsError(
                f"{path} has weights of {name} for {count} classes: give class_names"
            )
        names = class_names or CLASS_NAMES
        net = PUBLIC[name].build(str(path), tensors, names)
    # A file that is only recognized may have been trained by anyone.
    source = PUBLIC[name].url if is_public else str(path)
    return Pretrained(net, {"name": name, "source": source})


def find_weights(name_or_path: str | os.PathLike[str]) -> Path:
    """Find the file of a network, by its name or path; fetch it if necessary.

    Raises:
        DamagedFileError: A fetched file has another checksum.
        DataNotFoundError: There is no such file, or it cannot be fetched.
        ValueError: There is no network of that name, or the path is not a file.
    """
    path = Path(name_or_path)
    shipped = {file.stem: file for file in sorted(_SHIPPED.glob("*.safetensors"))}
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    if str(name_or_path) in PUBLIC:
        return PUBLIC[str(name_or_path)].fetch()
    is_name = path.name == str(path) and path.suffix not in _SUFFIXES
    if not path.exists() and is_name:
        raise ValueError(
            f"no network is called {path.name!r}; give one of "
            f"{', '.join([*shipped, *PUBLIC])}, or a file"
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

    PyTorch is not needed for its files, and nothing in them is run. Batch normalization
    is folded into the layer whose number directly precedes its own, with PyTorch's
    default epsilon of 1e-5, which no file records. Before a layer without padding it is
    folded into that layer.

    Args:
        source: Arrays by name, or a file: safetensors, or a state dict of `torch.save`,
            alone, in a checkpoint or in a zip. Beside averages such as `state_dict_ema`
            the entry `state_dict` is taken. Names are those of the layers, such as
            `conv1.weight` and `fc6.bias`, torchvision's (`features.N`, `classifier.N`)
            or pytorchcv's (`features.stageN.unitM.conv`, `output.fcN`); numbers give
            the order. A prefix that all names share, such as `module.`, is dropped.
        arch: Architecture of the weights. By default it is the one in the file, or one
            of `ARCHITECTURES`, recognized by names and shapes, with any number of
            classes.
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
        label = "the mapping"
        arrays = {name: np.asarray(x) for name, x in source.items()}
        content = contextlib.nullcontext((arrays, None))
    else:
        label, content = str(source), _open(find_weights(source))
    with content as (tensors, header):
        if arch is None and header is not None:
            arch = _parse(label, header, tensors)[0]
        tensors.pop(_MEAN, None)
        if arch is None:
            arch = state_dict.recognize(label, tensors)
        if num_classes is not None:
            arch = arch.with_classes(num_classes)
        return state_dict.build(label, tensors, arch)


def save(
    path: str | os.PathLike[str],
    model: ConvNet | networks.Network,
    *,
    preprocess: Preprocessing | Normalization,
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
    arrays = {}
    if isinstance(preprocess, Preprocessing):
        arrays[_MEAN] = settings.pop("mean")
    for layer, (name, *_), window, shape in state_dict.list_weights(arch):
        affine = getattr(model, layer.name)
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


# Files.


class _Slices:
    """A tensor that stays in a safetensors file, as a `FileTensor` does."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name
        self.shape = tuple(file.get_slice(name).get_shape())
        self.dtype = self[:1].dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        if 0 in self.shape or not self.shape:
            return self._file.get_tensor(self._name)
        return self._file.get_slice(self._name)[rows]


def _open_safetensors(
    path: Path, label: str
) -> tuple[dict[str, _Slices], dict[str, str]]:
    try:
        file = safetensors.safe_open(path, framework="numpy")
        tensors = {name: _Slices(file, name) for name in file.keys()}
        return tensors, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise DamagedFileError(
            f"{label} is truncated, damaged, or not a weight file: {error}"
        ) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{label} has a type that NumPy lacks: {error}") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Give the tensors of a file, which stay in it, and the header by `save`."""
    with unpack(path) as inner, inner.open("rb") as file:
        # safetensors is the length of a JSON object, in 8 bytes, and the object.
        if file.read(9)[8:] != b"{":
            yield _open_torch(file, str(path)), None
            return
        tensors, texts = _open_safetensors(inner, str(path))
        if _HEADER not in texts:
            yield tensors, None
            return
        arrays = {name: tensor[:] for name, tensor in tensors.items()}
        yield arrays, _read_header(str(path), texts[_HEADER], arrays)


def _open_torch(file: io.BufferedReader, label: str) -> dict[str, Any]:
    try:
        return {**read_state_dict(file)}
    except ValueError as error:
        raise DamagedFileError(
            f"{label} is not read as a weight file: {error}"
        ) from error


def _read_header(
    label: str, text: str, arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    try:
        header = json.loads(text)
        if header.pop("sha256") != _digest(header, arrays):
            raise ValueError("another sha256")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{label} is damaged: it does not match its sha256"
        ) from error
    return header


def _digest(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _parse(
    source: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[
    Architecture, Preprocessing | Normalization, tuple[str, ...], dict[str, Any]
]:
    """Architecture, preprocessing, class names and metadata of a file."""
    try:
        fields = _to_tuples(header["architecture"])
        layers = [_KINDS[layer.pop("kind")](**layer) for layer in fields.pop("layers")]
        settings = _to_tuples(header["preprocessing"])
        if "deviation" in settings:
            preprocess = Normalization(**settings)
        else:
            preprocess = Preprocessing(
                np.asarray(arrays[_MEAN], np.float32), **settings
            )
        result = (
            Architecture(**fields, layers=tuple(layers)),
            preprocess,
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
    preprocess: Preprocessing | Normalization,
    class_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    wrong = [name for name, value in metadata.items() if not _is_plain(value)]
    if isinstance(preprocess, Normalization):
        _check_colors(arch, preprocess)
    else:
        _check_mean(arch, preprocess)
    if not all(isinstance(name, str) for name in class_names):
        raise ValueError("class names must be text")
    if len(class_names) != arch.num_classes:
        raise ValueError(f"{len(class_names)} class names, expected {arch.num_classes}")
    if wrong:
        raise ValueError(
            f"metadata {state_dict.join_first(wrong)} must be text or a finite number"
        )


def _check_mean(arch: Architecture, preprocess: Preprocessing) -> None:
    _check_crop(preprocess.crop)
    mean, center = preprocess.mean, preprocess.center
    shape = (*(preprocess.size or center.shape[:2]), *mean.shape[2:])
    expected = (*arch.input_hw, arch.channels)
    if shape != expected:
        raise ValueError(f"preprocessing gives images {shape}, expected {expected}")
    if not np.isfinite(mean).all():
        raise ValueError("the mean image is not finite")
    if isinstance(preprocess.scale, str) or not _is_plain(preprocess.scale):
        raise ValueError(f"the scale {preprocess.scale!r} is not a finite number")


def _check_colors(arch: Architecture, preprocess: Normalization) -> None:
    mean, deviation = (
        np.array(x, np.float64) for x in (preprocess.mean, preprocess.deviation)
    )
    if arch.channels != 3 or mean.shape != (3,) or deviation.shape != (3,):
        raise ValueError("a mean color and its deviation are of 3 channels")
    if not np.isfinite(mean).all() or not (deviation > 0).all():
        raise ValueError(
            f"{preprocess} is not of finite numbers, the deviation positive"
        )
    _check_crop(preprocess.crop)


def _check_crop(crop: float) -> None:
    if not 0 < crop <= 1:
        raise ValueError(f"the crop {crop} is not between 0 and 1")


def _is_plain(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, int | float) and abs(value) < math.inf
    )

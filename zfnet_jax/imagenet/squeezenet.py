"""SqueezeNet 1.0 and 1.1 (Iandola et al. 2016, arXiv 1602.07360).

The authors' network, trained with Caffe, and torchvision's two. Layers have the same
names in all of them.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from zfnet_jax.files import DamagedFileError, digest, write_atomically
from zfnet_jax.imagenet.plain import (
    Params,
    PlainNetwork,
    convert_layer,
    convolve,
    max_pool,
)
from zfnet_jax.state_dict import read

# Channels that each fire module squeezes to, and that either kernel expands to.
_FIRES = {
    "fire2": (16, 64),
    "fire3": (16, 64),
    "fire4": (32, 128),
    "fire5": (32, 128),
    "fire6": (48, 192),
    "fire7": (48, 192),
    "fire8": (64, 256),
    "fire9": (64, 256),
}
# Digest of the authors' weights, in the order of their names.
_DIGEST = "34539d67ffee16da114b05e79ae2abd83747568c7f7041aa90b436ccb2a7ab61"
_LAYERS_1_0 = (
    *("conv1", "pool1", "fire2", "fire3", "fire4", "pool4", "fire5", "fire6", "fire7"),
    *("fire8", "pool8", "fire9", "conv_final", "logits"),
)
_LAYERS_1_1 = (
    *("conv1", "pool1", "fire2", "fire3", "pool3", "fire4", "fire5", "pool5", "fire6"),
    *("fire7", "fire8", "fire9", "conv_final", "logits"),
)
_PARTS = {"conv1x1_1": "squeeze", "conv1x1_2": "expand1x1", "conv3x3_2": "expand3x3"}


def _apply(
    layers: tuple[str, ...],
    padding: int,
    params: Params,
    images: Float[Array, "b h w c"],
) -> Float[Array, "b classes"]:
    """Compute the logits; `padding` is that of the last convolution."""

    def conv(x: Array, name: str, stride: int = 1, padding: int = 0) -> Array:
        return jax.nn.relu(convolve(x, params[name], stride, padding))

    x = images
    for name in layers:
        if name == "conv1":
            x = conv(x, name, stride=2)
        elif name.startswith("pool"):
            # The size of the result is rounded up.
            x = max_pool(x, [(0, (extent - 3) % 2) for extent in x.shape[1:3]])
        elif name in _FIRES:
            x = conv(x, f"{name}/conv1x1_1")
            narrow = conv(x, f"{name}/conv1x1_2")
            wide = conv(x, f"{name}/conv3x3_2", padding=1)
            x = jnp.concatenate([narrow, wide], -1)
        elif name == "conv_final":
            x = conv(x, name, padding=padding)
        else:
            x = x.mean((1, 2))
        x = checkpoint_name(x, name)
    return x


def _kernels(features: int, size: int) -> dict[str, tuple[int, ...]]:
    """Shape OIHW of every kernel, from the width and kernel size of conv1."""
    kernels: dict[str, tuple[int, ...]] = {"conv1": (features, 3, size, size)}
    channels = features
    for fire, (squeezed, expanded) in _FIRES.items():
        kernels[f"{fire}/conv1x1_1"] = (squeezed, channels, 1, 1)
        kernels[f"{fire}/conv1x1_2"] = (expanded, squeezed, 1, 1)
        kernels[f"{fire}/conv3x3_2"] = (expanded, squeezed, 3, 3)
        channels = 2 * expanded
    return kernels | {"conv_final": (1000, channels, 1, 1)}


def _name_module(layers: tuple[str, ...], name: str) -> str:
    """Name of a convolution in torchvision's files."""
    if name in ("conv1", "conv_final"):
        return {"conv1": "features.0", "conv_final": "classifier.1"}[name]
    fire, _, part = name.partition("/")
    # The ReLU of conv1 is a module, too.
    return f"features.{layers.index(fire) + 1}.{_PARTS[part]}"


def _convert(
    modules: Mapping[str, str], is_caffe: bool, source: str, tensors: Mapping[str, Any]
) -> Params:
    params = {}
    for name, module in modules.items():
        weights = (
            read(source, tensors, f"{module}.{part}") for part in ("weight", "bias")
        )
        params[name] = convert_layer(*weights)
    if is_caffe:  # Caffe's network takes blue first.
        params["conv1"]["kernel"] = params["conv1"]["kernel"][:, :, ::-1]
    return params


def _build(
    layers: tuple[str, ...], conv1: tuple[int, int], is_caffe: bool = False
) -> PlainNetwork:
    kernels, side = _kernels(*conv1), 227 if is_caffe else 224
    modules = {x: x if is_caffe else _name_module(layers, x) for x in kernels}
    shapes = {f"{modules[x]}.weight": shape for x, shape in kernels.items()}
    shapes |= {f"{modules[x]}.bias": shape[:1] for x, shape in kernels.items()}
    return PlainNetwork(
        functools.partial(_apply, layers, int(is_caffe)),
        (side, side, 3),
        shapes,
        functools.partial(_convert, modules, is_caffe),
    )


V1_0_CAFFE = _build(_LAYERS_1_0, (96, 7), is_caffe=True)
V1_0 = _build(_LAYERS_1_0, (96, 7))
V1_1 = _build(_LAYERS_1_1, (64, 3))


def decompress(file: Path, target: Path) -> None:
    """Write the weights of the authors' compressed file as safetensors.

    The format is that of Han, Mao & Dally 2016 (arXiv 1510.00149), without Huffman
    codes. It starts with each layer's number of codes. Each layer then has a table of
    256 values, its bias, a byte per code, and half a byte per code: the number of zeros
    before it. In longer runs some zeros have codes.

    Raises:
        DamagedFileError: These are not the published weights; the file is removed.
        OSError: The target cannot be written.
    """
    kernels, tensors = _kernels(96, 7), {}
    with file.open("rb") as stream, _removing(file):
        load = functools.partial(np.fromfile, stream)
        counts = load("<u4", len(kernels)).tolist()
        for (name, shape), count in zip(kernels.items(), counts, strict=True):
            table, tensors[f"{name}.bias"] = load("<f4", 256), load("<f4", shape[0])
            codes, pairs = load(np.uint8, count), load(np.uint8, (count + 1) // 2)
            gaps = np.stack([pairs % 16, pairs // 16], 1).ravel()[:count]
            indices = np.zeros(math.prod(shape), np.uint8)
            indices[np.cumsum(gaps + 1, dtype=int) - 1] = codes
            tensors[f"{name}.weight"] = table[indices].reshape(shape)
        _check_digest(tensors)
    write_atomically(target, safetensors.numpy.save(tensors))


def check(file: Path) -> None:
    """Remove a file that `decompress` wrote unless it holds the published weights.

    Raises:
        DamagedFileError: It does not.
    """
    with _removing(file):
        _check_digest(safetensors.numpy.load(file.read_bytes()))


def _check_digest(tensors: Mapping[str, np.ndarray]) -> None:
    if digest(*(tensors[name] for name in sorted(tensors))) != _DIGEST:
        raise ValueError("another digest")


@contextlib.contextmanager
def _removing(file: Path) -> Iterator[None]:
    """Remove a file that turns out not to be what was published."""
    try:
        yield
    except (IndexError, ValueError, safetensors.SafetensorError) as error:
        file.unlink()
        raise DamagedFileError(
            f"{file} is damaged and was removed: run again to fetch it anew"
        ) from error

"""ResNet-18, -34 and -50 (He et al. 2016, arXiv 1512.03385) as in torchvision.

A bottleneck has its stride in the 3 x 3 convolution. Layers have PyTorch's names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from zfnet_jax.imagenet.plain import (
    Params,
    PlainNetwork,
    convert_layer,
    convolve,
    max_pool,
)
from zfnet_jax.state_dict import read, read_norm

_WIDTHS = (64, 128, 256, 512)
_NORM = ("weight", "bias", "running_mean", "running_var")


def _apply(
    depths: tuple[int, ...], params: Params, images: Float[Array, "b h w c"]
) -> Float[Array, "b classes"]:
    """Compute the logits; `depths` are the blocks of each stage."""

    def conv(x: Array, name: str, stride: int = 1) -> Array:
        layer = params[name]
        return convolve(x, layer, stride, padding=layer["kernel"].shape[0] // 2)

    def block(x: Array, name: str, stride: int) -> Array:
        shortcut = x
        if f"{name}.downsample.0" in params:
            shortcut = conv(x, f"{name}.downsample.0", stride)
        if f"{name}.conv3" in params:
            x = jax.nn.relu(conv(x, f"{name}.conv1"))
            x = jax.nn.relu(conv(x, f"{name}.conv2", stride))
            x = conv(x, f"{name}.conv3")
        else:
            x = jax.nn.relu(conv(x, f"{name}.conv1", stride))
            x = conv(x, f"{name}.conv2")
        return jax.nn.relu(x + shortcut)

    x = jax.nn.relu(conv(images, "conv1", 2))
    x = checkpoint_name(max_pool(x, [(1, 1)] * 2), "maxpool")
    for stage, depth in enumerate(depths, 1):
        for index in range(depth):
            x = block(x, f"layer{stage}.{index}", 2 if stage > 1 and not index else 1)
    x = checkpoint_name(x.mean((1, 2)), "avgpool")
    return x @ params["fc"]["kernel"] + params["fc"]["bias"]


def _kernels(
    depths: tuple[int, ...], is_bottleneck: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape OIHW of every convolution."""
    yield "conv1", (64, 3, 7, 7)
    channels = 64
    for stage, (depth, width) in enumerate(zip(depths, _WIDTHS, strict=True), 1):
        features = 4 * width if is_bottleneck else width
        for index in range(depth):
            name = f"layer{stage}.{index}"
            if is_bottleneck:
                yield f"{name}.conv1", (width, channels, 1, 1)
                yield f"{name}.conv2", (width, width, 3, 3)
                yield f"{name}.conv3", (features, width, 1, 1)
            else:
                yield f"{name}.conv1", (width, channels, 3, 3)
                yield f"{name}.conv2", (width, width, 3, 3)
            if channels != features:
                yield f"{name}.downsample.0", (features, channels, 1, 1)
            channels = features


def _name_norm(conv: str) -> str:
    """Name of the batch normalization after a convolution."""
    return conv.replace("conv", "bn").replace("downsample.0", "downsample.1")


def _convert(
    kernels: Mapping[str, tuple[int, ...]], source: str, tensors: Mapping[str, Any]
) -> Params:
    weights = (read(source, tensors, f"fc.{part}") for part in ("weight", "bias"))
    params = {"fc": convert_layer(*weights)}
    for name in kernels:
        factor, bias = read_norm(source, tensors, _name_norm(name))
        kernel = read(source, tensors, f"{name}.weight")
        params[name] = convert_layer(kernel * factor[:, None, None, None], bias)
    return params


def _build(depths: tuple[int, ...], is_bottleneck: bool = False) -> PlainNetwork:
    kernels = dict(_kernels(depths, is_bottleneck))
    features = 2048 if is_bottleneck else 512
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (1000, features),
        "fc.bias": (1000,),
    }
    for name, shape in kernels.items():
        shapes[f"{name}.weight"] = shape
        shapes |= {f"{_name_norm(name)}.{part}": shape[:1] for part in _NORM}
    return PlainNetwork(
        functools.partial(_apply, depths),
        (224, 224, 3),
        shapes,
        functools.partial(_convert, kernels),
    )


RESNET18 = _build((2, 2, 2, 2))
RESNET34 = _build((3, 4, 6, 3))
RESNET50 = _build((3, 4, 6, 3), is_bottleneck=True)

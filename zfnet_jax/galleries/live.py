"""The page on which a network runs in the browser, on one's own picture.

Python describes a chain of layers and writes its weights as scripts. The arithmetic is
in `templates/engine.js`, which computes what `ops` and `deconvnet` do.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from zfnet_jax.arch import has_relu, receptive_field
from zfnet_jax.data.images import crop_share, stored_shape
from zfnet_jax.data.preprocessing import square_side
from zfnet_jax.files import slug, to_json, write_atomically
from zfnet_jax.galleries import pages
from zfnet_jax.galleries.pictures import CONTRASTS, count_across, shrink
from zfnet_jax.galleries.sources import Search
from zfnet_jax.networks import Network

# Weights at most: those of the paper's network at 224, but not of VGG.
_LARGEST = 1 << 26
# Weights in a script, and images to begin with.
_PART, _EXAMPLES = 1 << 22, 8
# What the page is made of, besides its template.
SCRIPTS = ("engine.js", "live.css", "live.js")


def describe_network(net: Network) -> dict[str, Any] | None:
    """Describe a chain of layers for the browser; None if it cannot run there.

    Returns:
        The layers with their attributes, and the preprocessing: the size of what is
        preprocessed, a slope per channel, and an offset per pixel or channel.
    """
    has_colors = net.image_shape[2] in (1, 3)
    if not net.is_convnet or not has_colors or net.parameters > _LARGEST:
        return None
    preprocessing = _measure_preprocessing(net)
    if preprocessing is None:
        return None
    layers, kernels = [], net.model.arch.kernel_shapes()
    for layer, _, shape in net.model.arch.walk():
        field = receptive_field(net, layer.name)
        kernel = kernels.get(layer.name)
        layers.append(
            {
                **dataclasses.asdict(layer),
                "kind": type(layer).__name__,
                "slug": slug(layer.name),
                "shape": shape,
                "rectified": has_relu(layer),
                "numbers": math.prod(kernel) if kernel else 0,
                "field": dataclasses.asdict(field),
                "cell": shrink(field.size),
            }
        )
    names = net.class_names or [f"class {label}" for label in range(net.num_classes)]
    return {
        "input": net.image_shape,
        "classes": [pages.printable(name) for name in names],
        "layers": layers,
        **preprocessing,
    }


def _measure_preprocessing(net: Network) -> dict[str, Any] | None:
    """Measure the line from a pixel to the network's input; None if there is none."""
    if net.preprocess is None:
        return None
    height, width, channels = stored_shape(net.image_shape, net.preprocess)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, channels))
    probes = np.stack([0 * noise, 0 * noise + 255, noise]).astype(np.uint8)
    offset, white, result = np.asarray(net.preprocess(probes), np.float32)
    slope = (white - offset)[0, 0] / 255
    resized = jax.image.resize(noise.astype(np.float32), net.image_shape, "bilinear")
    error = np.abs(resized * slope + offset - result).max()
    if not error < 1e-4 * np.abs(result).max():
        return None
    if (offset == offset[0, 0]).all():
        offset = offset[0, 0]
    return {
        "stored": (height, width),
        "square": square_side((height, width), crop_share(net.preprocess)),
        "slope": slope.tolist(),
        "offset": _encode(offset.astype("<f4")),
    }


def write_live(part: Path, search: Search, network: dict[str, Any]) -> None:
    """Write the page, its program and weights, and its record."""
    program = {
        **network,
        **_write_weights(part, search.net),
        "rules": search.rules,
        "contrasts": CONTRASTS,
        "across": count_across(search.k),
        "examples": _draw_examples(search),
        "colors": {name: _list_colors(name) for name in ("inferno", "PuOr_r")},
    }
    write_atomically(part / "network.js", f"const NETWORK = {json.dumps(program)};\n")
    pages.write_live(part, search, network["layers"])
    write_atomically(part / "record.json", to_json({"weights": search.net.parameters}))


def _write_weights(part: Path, net: Network) -> dict[str, Any]:
    """Write kernels as calls in scripts; list these, the scales and the biases.

    Weights are whole numbers of 16 bits, times a scale for each unit: closer to the
    real ones than float16, in the same space.
    """
    files, affine = [], {}
    for name in net.model.arch.kernel_shapes():
        layer = getattr(net.model, name)
        kernel, bias = (np.asarray(x[...], "<f4") for x in (layer.kernel, layer.bias))
        peaks = np.abs(kernel).max(tuple(range(kernel.ndim - 1)))
        scales = np.where(peaks > 0, peaks / 32767, 1).astype("<f4")
        whole = np.rint(kernel / scales).astype("<i2").ravel()
        affine[name] = {"scales": _encode(scales), "bias": _encode(bias)}
        for start in range(0, len(whole), _PART):
            file = f"weights-{len(files)}.js"
            text = _encode(whole[start : start + _PART])
            write_atomically(part / file, f'receiveWeights("{text}");\n')
            files.append({"file": file, "layer": name})
    return {"files": files, "affine": affine}


def _draw_examples(search: Search) -> list[dict[str, str]]:
    """Images to begin with, of different classes where these are known."""
    source = search.source
    chosen: Sequence[int] = range(len(source))
    if source.labels is not None:
        chosen = np.unique(source.labels, return_index=True)[1].tolist()
    return [
        {
            "name": pages.printable(
                source.name_class(index) or source.name_image(index)
            ),
            "picture": _encode_picture(source.read_pictures([index])[0]),
        }
        for index in chosen[:_EXAMPLES]
    ]


def _encode_picture(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Encode a picture without loss, as the address of an image."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, "WEBP", lossless=True)
    return f"data:image/webp;base64,{_encode(content.getvalue())}"


def _list_colors(name: str) -> list[list[int]]:
    """The 256 colors of a map of Matplotlib."""
    colors = matplotlib.colormaps[name](np.arange(256), bytes=True)
    return colors[:, :3].tolist()


def _encode(content: bytes | np.ndarray) -> str:
    return base64.b64encode(bytes(content)).decode()

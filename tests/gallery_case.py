"""A small gallery of a network with every special case."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from zfnet_jax.data import Photographs
from zfnet_jax.galleries import Gallery, pages
from zfnet_jax.networks import Network

K, COUNT, SIDE, AT_ONCE = 4, 30, 12, 20
RULES = ("deconvnet", "guided", "gradient")
CLASSES = ("cat", "dog", 'ship "<b>\u202e')
# conv1 has more units than its page shows at once, one that is dead, and one that two
# images activate.
UNITS, DEAD, RARE = AT_ONCE + 4, 7, 3
ODD = "../$x$ <b>\u202e\x1b[1m"
LAYERS = ("conv1", ODD, "logits")

_rng = np.random.default_rng(0)
PICTURES = _rng.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
LABELS = np.arange(COUNT) % 3
# Of photographs; files may have any name.
NAMES = ("cat/a.png", f"cat/{'b' * 200}.png", 'dog/"<i>\u202e.png')


IMAGES = (PICTURES - np.float32(128)) / np.float32(64)
TRAINING = IMAGES[::-1].copy()


def convolve(x, layer):
    kernel, bias = layer["kernel"], layer["bias"]
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )
    return jax.nn.relu(y + bias)


def model(params, x):
    x = convolve(x, params["conv1"])
    x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    return convolve(x, params[ODD]).mean((1, 2)) @ params["logits"]["kernel"]


def make_network(seed: int, class_names: Sequence[str] = CLASSES) -> Network:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32) / 4

    params = {
        "conv1": {"kernel": draw(3, 3, 3, UNITS), "bias": np.zeros(UNITS, np.float32)},
        ODD: {"kernel": draw(3, 3, UNITS, 6), "bias": draw(6)},
        "logits": {"kernel": draw(6, 3)},
    }
    peaks = np.sort(convolve(IMAGES, params["conv1"]).max((1, 2)), 0)
    params["conv1"]["bias"][DEAD] = -1e6
    params["conv1"]["bias"][RARE] = -(peaks[-3, RARE] + peaks[-2, RARE]) / 2
    return zf.network(model, (SIDE, SIDE, 3), params=params, class_names=class_names)


NET, YOUNG = make_network(1), make_network(2)


def build(folder: Path, **changes: Any) -> Gallery:
    """Build the gallery, some arguments changed."""
    arguments: dict[str, Any] = {
        "layers": LAYERS,
        "labels": LABELS,
        "pictures": PICTURES,
        "k": K,
        "epochs": ({1: YOUNG, 10: NET}, TRAINING),
        "sanity_images": 5,
        "title": "A <i>small</i> network",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "UNITS_AT_ONCE", AT_ONCE)
        return zf.gallery(NET, IMAGES, folder, **arguments | changes)


def build_named(folder: Path) -> Gallery:
    """Build a gallery of photographs; every unit's page shows all of them."""
    for name, picture in zip(NAMES, PICTURES, strict=False):
        file = folder / "photographs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    shape = SIDE, SIDE, 3
    images = Photographs(folder / "photographs", shape, lambda x: x / 128 - 1.0)
    epochs, out = ({1: YOUNG, 10: NET}, images), folder / "gallery"
    return zf.gallery(NET, images, out, layers="conv1", epochs=epochs)


@functools.cache
def search() -> Any:
    """Search again, for the numbers that the pages must show."""
    return zf.top_activations(NET, IMAGES, LAYERS, k=K, labels=LABELS)

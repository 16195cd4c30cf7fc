"""Networks and images of the stored projections, the same bytes on every machine."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from PIL import Image

import zfnet_jax as zf
from zfnet_jax.arch import Architecture, Conv, Dense
from zfnet_jax.data import center_crop, make_shapes, resize_shortest_side

STORE = Path(__file__).with_name("deconvnet.npz")
PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "imagenet_sample"

# The convolutions are the paper's; what lies above them is narrow, to be drawn quickly.
NARROW_HEAD = {"fc6": 64, "fc7": 48}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A network, as weights under PyTorch's names, and an image it has seen."""

    arch: Architecture
    state: dict[str, np.ndarray]
    image: np.ndarray


class Key(NamedTuple):
    """The subject of a stored projection; its name in the store."""

    case: str
    layer: str
    unit: int
    row: int
    column: int
    rule: str
    overlap: str

    def __str__(self) -> str:
        return " ".join(map(str, self))

    @classmethod
    def parse(cls, name: str) -> Key:
        case, layer, unit, row, column, rule, overlap = name.split()
        return cls(case, layer, int(unit), int(row), int(column), rule, overlap)

    def sample(self, pixels: np.ndarray, arch: Architecture) -> np.ndarray:
        """Stored part of [h, w, c]: the receptive field, or part of a large one.

        Every third pixel meets both phases of a stride of 2.
        """
        field = zf.receptive_field(arch, self.layer)
        top, left, bottom, right = field.box(self.row, self.column)
        step = 3 if max(bottom - top, right - left) > 28 else 1
        return pixels[top:bottom:step, left:right:step].astype(np.float32)


@functools.cache
def case(name: str) -> Case:
    """One of the networks that projections are stored of."""
    shapes = make_shapes(12).images
    match name:
        case "shipped":
            return _shipped(shapes[7:8])
        case "zfnet32":
            return Case(zf.ZFNET32, draw_state(zf.ZFNET32), _scaled(shapes[4]))
        case "zfnet-plain":
            arch = zf.ablate(zf.ZFNET_PLAIN, widths=NARROW_HEAD).with_classes(10)
            image = make_shapes(3, (224, 224)).images[2]
            return Case(arch, draw_state(arch), _scaled(image))
    raise ValueError(f"no case is called {name!r}")


def draw_state(arch: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    """He's initialization, uniform, under PyTorch's names.

    Biases are negative, so that, as in trained networks, many pooling windows hold only
    zeros. Made from the raw output of PCG64, which NumPy keeps stable.
    """
    state = {}
    for index, (layer, inputs, _) in enumerate(arch.walk()):
        if isinstance(layer, Conv):
            shape = (layer.features, inputs[-1] // layer.groups, *layer.kernel)
        elif isinstance(layer, Dense):
            shape = (layer.features, math.prod(inputs))
        else:
            continue
        bound = np.float32(math.sqrt(6 / math.prod(shape[1:])))
        count = math.prod(shape)
        drawn = draw_uniform(count + layer.features, seed, index)
        weight = 2 * bound * drawn[:count] - bound
        state[f"{layer.name}.weight"] = weight.reshape(shape)
        state[f"{layer.name}.bias"] = -drawn[count:] * np.float32(0.5)
    return state


def draw_uniform(count: int, *seed: int) -> np.ndarray:
    """float32 in [0, 1)."""
    raw = np.random.PCG64(seed).random_raw((count + 1) // 2)
    halves = raw.astype("<u8").view("<u4")[:count]
    return (halves >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def photographs(count: int) -> np.ndarray:
    """float32[count, 224, 224, 3]: real ones where they are, else drawn shapes."""
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))[:count]
    if len(files) < count:
        return np.stack([_scaled(x) for x in make_shapes(count, (224, 224)).images])
    images = []
    for file in files:
        with Image.open(file) as image:
            pixels = resize_shortest_side(np.asarray(image.convert("RGB")))
        images.append(_scaled(center_crop(pixels, (224, 224))))
    return np.stack(images)


def _scaled(image: np.ndarray) -> np.ndarray:
    return (image.astype(np.float32) - 128) / 64


def _shipped(images: np.ndarray) -> Case:
    net = zf.load("zfnet32-cifar10")
    file = importlib.resources.files("zfnet_jax") / "pretrained"
    state = safetensors.numpy.load((file / "zfnet32-cifar10.safetensors").read_bytes())
    del state["preprocessing.mean"]
    state = {name.replace("fc8", "logits"): value for name, value in state.items()}
    return Case(net.model.arch, state, net.preprocess(images)[0])

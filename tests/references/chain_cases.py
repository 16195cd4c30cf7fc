"""The public chains, narrow, with weights and an image alike on every machine."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np

from tests.references.deconvnet_cases import NARROW_HEAD, Case, draw_state, draw_uniform
from zfnet_jax.arch import ARCHITECTURES, Conv, ablate

STORE = Path(__file__).with_name("chains.npz")
VGG = ("vgg11", "vgg13", "vgg16", "vgg19")
ALEXNETS = ("alexnet-imagenet", "alexnet-torchvision")
CHAINS = ("zfnet-imagenet", "zfnetb-imagenet", *ALEXNETS, *VGG)
CLASSES = 10
# Weights of the logits in the sum whose gradient is compared.
DIRECTION = np.linspace(-1, 1, CLASSES)


@functools.cache
def case(name: str) -> Case:
    """A chain at an eighth of its widths; VGG's poolings divide 32 as they do 224."""
    arch = ARCHITECTURES[name]
    convs = [layer for layer in arch.layers if isinstance(layer, Conv)]
    widths = {conv.name: conv.features // 8 for conv in convs} | NARROW_HEAD
    arch = ablate(arch, widths=widths).with_classes(CLASSES)
    if name in VGG:
        arch = arch.with_input(32)
    shape = (*arch.input_hw, arch.channels)
    # Pixels as bright as the paper's, so that normalization counts.
    image = 256 * draw_uniform(math.prod(shape), 1).reshape(shape) - 128
    return Case(arch, draw_state(arch), image)

"""Time projections against Captum, side by side.

    pip install -e ".[parity]" && python -m benchmarks.projection

Both sides project single activations of one image of noise to pictures of the whole
image, in float32 on as many threads as there are processors, and with the same random
weights where the network is not a `ConvNet`. Four networks:

- zfnet: ZFNET without contrast normalization, which Captum has no rule for, at
  224 x 224. All units of a layer, and one, by the deconvnet's rule.
- vgg16: VGG16 at 224 x 224. 32 units of conv5_3 (block5_conv3 in Keras), two rules.
- squeezenet: SqueezeNet v1.0 at 227 x 227, a plain function. 32 units, three rules.
- residual: a small residual network at 224 x 224, an NNX module. 32 units, three rules.

Ours projects the strongest activation of each unit and Captum the one in the middle of
the map. Times are per unit: ours includes the forward pass that all units share, Captum
runs one for each and is timed on a few units. The sides take turns, after a warm-up.
The ratio Captum / ours is taken turn by turn: above 1, ours is faster.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import tyro
from flax import nnx

import zfnet_jax as zf
from benchmarks.captum_sides import captum_projections
from benchmarks.torch_network import torch_images, torch_network
from benchmarks.turns import take_turns
from tests import networks
from tests.references import make_residual, make_squeezenet
from tests.references.make_deconvnet import METHODS
from zfnet_jax.arch import ARCHITECTURES
from zfnet_jax.imagenet import squeezenet
from zfnet_jax.relu_rules import Rule

_UNITS = range(32)


@dataclasses.dataclass(frozen=True)
class Options:
    """Time projections against Captum."""

    networks: tuple[str, ...] = ("zfnet", "vgg16", "squeezenet", "residual")
    """Networks: zfnet, vgg16, squeezenet, residual."""
    layers: tuple[str, ...] = ("conv5", "conv4", "conv3", "conv2", "conv1")
    """Layers of zfnet."""
    turns: int = 7
    """Turns of each side."""
    neurons: int = 4
    """Units that Captum projects in one turn, one after the other."""


def compare(
    title: str,
    net: zf.ConvNet | Any,
    image: np.ndarray,
    layer: str,
    model: Any,
    module: Any,
    rules: Sequence[Rule],
    units: Sequence[int],
    options: Options,
) -> None:
    """Print a row; `module` is the layer of `model`, the same network in PyTorch."""
    methods = [METHODS[rule](model, module) for rule in rules]
    shape, count = zf.network(net).layer(layer).shape, min(options.neurons, len(units))
    theirs = captum_projections(methods, torch_images(image), shape, count)

    def ours() -> None:
        for rule in rules:
            zf.project(net, image, layer, [*units], rule=rule)

    result = take_turns(theirs, ours, options.turns)
    # A turn of ours does more units than one of Captum's.
    print(
        f"{title:>28} {len(units):>5} {1e3 * result.theirs / count:>9.1f} ms "
        f"{1e3 * result.ours / len(units):>9.3f} ms  "
        f"{result.scale(len(units) / count)}",
        flush=True,
    )


def noise(side: int) -> np.ndarray:
    """float32 [1, side, side, 3]."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((1, side, side, 3), np.float32)


def compare_zfnet(options: Options) -> None:
    """All units of each layer, and one, by the deconvnet's rule."""
    arch, image = zf.ZFNET_PLAIN, noise(224)
    model, other = zf.ConvNet(arch, rngs=nnx.Rngs(0)), torch_network(arch)
    for layer in options.layers:
        title, module = f"ZFNET_PLAIN {layer}", other.get_submodule(f"{layer}_relu")
        for count in (arch.shapes()[layer][-1], 1):
            sides = model, image, layer, other, module
            compare(title, *sides, ["deconvnet"], range(count), options)


def compare_vgg16(options: Options) -> None:
    """32 units of the last convolution by two rules, one after the other."""
    arch, image, layer = ARCHITECTURES["vgg16"], noise(224), "conv5_3"
    model, other = zf.ConvNet(arch, rngs=nnx.Rngs(0)), torch_network(arch)
    rules: tuple[Rule, ...] = "deconvnet", "guided"
    for rule in rules:
        title, sides = f"VGG16 {layer} {rule}", (model, image, layer, other)
        compare(title, *sides, other.conv5_3_relu, [rule], _UNITS, options)


def compare_squeezenet(options: Options) -> None:
    """32 units of inner layers by three rules."""
    image, plain = noise(227), squeezenet.V1_0_CAFFE
    weights = networks.random_tensors(plain.shapes)
    net = networks.build(plain, weights)
    # This one takes blue first, as Caffe's does.
    weights["conv1.weight"] = weights["conv1.weight"][:, ::-1].copy()
    other = make_squeezenet.network(weights)
    for layer in ("fire5", "fire9"):
        title, sides = f"SqueezeNet {layer}, 3 rules", (net, image, layer, other)
        compare(title, *sides, getattr(other, layer), [*METHODS], _UNITS, options)


def compare_residual(options: Options) -> None:
    """32 units of the last block by three rules."""
    image = noise(224)
    net = zf.network(networks.residual_nnx(16), image.shape[1:])
    other = make_residual.network(16).float()
    title, sides = "residual block2, 3 rules", (net, image, "block2", other)
    compare(title, *sides, other.block2.relu2, [*METHODS], _UNITS, options)


def main(options: Options) -> None:
    """Print one row per network, layer and number of units."""
    torch.set_num_threads(os.cpu_count() or 1)
    print(f"{'layer':>28} {'units':>5} {'Captum':>12} {'ours':>12}  ratio (min..max)")
    for name in options.networks:
        match name:
            case "zfnet":
                compare_zfnet(options)
            case "vgg16":
                compare_vgg16(options)
            case "squeezenet":
                compare_squeezenet(options)
            case "residual":
                compare_residual(options)
            case _:
                sys.exit(f"no network {name!r}: zfnet, vgg16, squeezenet or residual")


if __name__ == "__main__":
    main(tyro.cli(Options))

"""Time projections against Captum's NeuronDeconvolution, side by side.

    pip install -e ".[parity]" && python -m benchmarks.projection

Both sides project one activation per unit of one 224 x 224 image of noise to whole
pictures, in float32 on all processors. The network is ZFNET without contrast
normalization, for which Captum has no rule, with random weights. Ours projects the
strongest activation and Captum the one in the middle, which takes the same time. Our
time per unit includes a share of the one forward pass; Captum runs a forward pass per
unit and is timed on a few units. The sides take turns after a warm-up, and the ratio
Captum / ours is taken turn by turn, so a drifting machine still gives a fair figure.
Above 1 ours is faster.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sized
from typing import Any

import numpy as np
import torch
import tyro
from captum.attr import NeuronDeconvolution
from flax import nnx

import zfnet_jax as zf
from benchmarks.torch_network import torch_network
from zfnet_jax.deconvnet import project

_LAYERS = ("conv5", "conv4", "conv3", "conv2", "conv1")


@dataclasses.dataclass(frozen=True)
class Options:
    """Time projections against Captum."""

    layers: tuple[str, ...] = _LAYERS
    """Layers to project."""
    turns: int = 7
    """Turns of the two sides."""
    neurons: int = 4
    """Units that Captum projects per turn, one after the other."""


def captum_side(
    arch: zf.Architecture, image: np.ndarray, layer: str
) -> Callable[[list[tuple[int, int, int]]], None]:
    """A function that projects neurons, each (unit, row, column)."""
    network = torch_network(arch)
    method = NeuronDeconvolution(network, network.get_submodule(f"{layer}_relu"))
    x = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous().requires_grad_()

    def attribute_each(neurons: list[tuple[int, int, int]]) -> None:
        for neuron in neurons:
            with warnings.catch_warnings():
                # Captum announces its hooks on ReLUs at every call.
                warnings.simplefilter("ignore")
                method.attribute(x, neuron)

    return attribute_each


def timed(work: Callable[[Any], object], units: Sized) -> float:
    """Seconds per unit."""
    began = time.perf_counter()
    work(units)
    return (time.perf_counter() - began) / len(units)


def main(options: Options) -> None:
    """Print one row per layer and number of units."""
    print(f"{'layer':>6} {'units':>5} {'Captum':>9} {'ours':>10}  ratio (min..max)")
    arch = zf.ZFNET_PLAIN
    model = zf.ConvNet(arch, rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).standard_normal((1, 224, 224, 3), np.float32)
    for layer in options.layers:
        theirs = captum_side(arch, image, layer)
        ours = functools.partial(project, model, image, layer)
        shape = arch.shapes()[layer]
        assert len(shape) == 3
        rows, columns, width = shape
        neurons = [(unit, rows // 2, columns // 2) for unit in range(options.neurons)]
        for units in (np.arange(width), np.arange(1)):
            sample = neurons[: len(units)]
            theirs(sample[:1])
            ours(units)
            pairs = [
                (timed(theirs, sample), timed(ours, units))
                for _ in range(options.turns)
            ]
            ratios = [a / b for a, b in pairs]
            their_ms = 1e3 * statistics.median(a for a, _ in pairs)
            our_ms = 1e3 * statistics.median(b for _, b in pairs)
            print(
                f"{layer:>6} {len(units):>5} {their_ms:>6.1f} ms {our_ms:>7.3f} ms  "
                f"{statistics.median(ratios):.1f} "
                f"({min(ratios):.1f}..{max(ratios):.1f})",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))

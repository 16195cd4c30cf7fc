"""Projections by PyTorch and Captum: live for the parity tests, and stored for all.

    python -m tests.references.make_deconvnet

writes deconvnet.npz beside this file and needs the extra `parity`.
`tests/test_deconvnet.py` makes the same networks and images again, without PyTorch.

Captum's methods start from 1 where the package starts from the activation itself, so
what they give is multiplied by it. Unpooling that overwrites is `torch.nn.MaxUnpool2d`
followed by ReLU and `conv_transpose2d`. All is computed in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.attr import NeuronDeconvolution, NeuronGradient, NeuronGuidedBackprop
from torch import nn
from torch.nn import functional as F

from benchmarks.torch_network import torch_network
from tests.references.deconvnet_cases import STORE, Key, case
from zfnet_jax.arch import Architecture

METHODS: dict[Any, Any] = {
    "deconvnet": NeuronDeconvolution,
    "guided": NeuronGuidedBackprop,
    "gradient": NeuronGradient,
}
SETTINGS = (*((rule, "sum") for rule in METHODS), ("deconvnet", "last"))
# Which layers of which network are stored.
STORED = {
    "shipped": ("conv2", "conv5", "logits"),
    "zfnet32": ("conv3", "pool5"),
    "zfnet-plain": ("conv2", "conv5"),
}


def torch_net(arch: Architecture, state: Mapping[str, np.ndarray]) -> nn.Sequential:
    """The architecture in PyTorch, with weights under PyTorch's names, in float64."""
    net = torch_network(arch)
    net.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return net.double().eval()


def project(
    net: nn.Sequential,
    image: np.ndarray,
    layer: str,
    unit: int,
    position: tuple[int, int],
    rule: str,
    overlap: str,
) -> np.ndarray:
    """One activation, its value kept, back to pixels: float64[h, w, c]."""
    if overlap == "sum":
        return _by_captum(net, image, layer, unit, position, rule)
    return _by_unpooling(net, image, layer, unit, position)


def features(
    net: nn.Sequential, image: np.ndarray, until: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every layer after its ReLU, [h, w, c] or [c], and the switches of every pooling.

    Switches are flat places in the map below.
    """
    steps = _forward(net, image, until)
    # What stands last under a name is what is after the ReLU.
    outs = {name.removesuffix("_relu"): _to_numpy(out) for name, _, out, _ in steps}
    return outs, {name: _to_numpy(at) for name, _, _, at in steps if at is not None}


def _by_captum(net, image, layer, unit, position, rule) -> np.ndarray:
    out = features(net, image, layer)[0][layer]
    module = getattr(net, f"{layer}_relu", None) or getattr(net, layer)
    neuron = (unit, *position)[: out.ndim]
    x = _to_torch(image).requires_grad_()
    with warnings.catch_warnings():
        # Captum announces its hooks at every call.
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
        pixels = METHODS[rule](net, module).attribute(x, neuron)
    return out[(*neuron[1:], unit)] * _to_numpy(pixels)


def _by_unpooling(net, image, layer, unit, position) -> np.ndarray:
    steps = _forward(net, image, layer)
    out = steps[-1].out
    place = (0, unit, *position)[: out.ndim]
    signal = torch.zeros_like(out)
    signal[place] = out[place]
    belows = [_to_torch(image), *(step.out for step in steps)]
    for (_, module, _, at), below in zip(steps[::-1], belows[-2::-1], strict=True):
        match module:
            case nn.ReLU():
                signal = F.relu(signal)
            case nn.Flatten():
                signal = signal.reshape(below.shape)
            case nn.Linear():
                signal = signal @ module.weight
            case nn.MaxPool2d():
                assert at is not None
                undo = nn.MaxUnpool2d(*_window(module))
                signal = undo(signal, at, output_size=list(below.shape[2:]))
            case nn.Conv2d():
                signal = _conv_transpose(signal, module, below.shape)
    return _to_numpy(signal)


class _Step(NamedTuple):
    name: str
    module: nn.Module
    out: torch.Tensor
    switches: torch.Tensor | None


@torch.no_grad()
def _forward(net: nn.Sequential, image: np.ndarray, layer: str) -> list[_Step]:
    x, steps, last = _to_torch(image), [], f"{layer}_relu"
    if not hasattr(net, last):
        last = layer
    for name, module in net.named_children():
        at = None
        if isinstance(module, nn.MaxPool2d):
            x, at = F.max_pool2d(x, *_window(module), return_indices=True)
        else:
            x = module(x)
        steps.append(_Step(name, module, x, at))
        if name == last:
            break
    return steps


def _window(module: nn.Conv2d | nn.MaxPool2d) -> tuple[Any, Any, Any]:
    """Size, stride and padding, each of two numbers; PyTorch's own types are wider."""
    return module.kernel_size, module.stride, module.padding


def _conv_transpose(signal: torch.Tensor, module: nn.Conv2d, shape) -> torch.Tensor:
    size, stride, padding = _window(module)
    # What the last windows do not reach.
    rest = [
        shape[axis + 2]
        - ((signal.shape[axis + 2] - 1) * stride[axis] - 2 * padding[axis] + size[axis])
        for axis in (0, 1)
    ]
    return F.conv_transpose2d(
        signal, module.weight, None, stride, padding, rest, module.groups
    )


def _to_torch(image: np.ndarray) -> torch.Tensor:
    return torch.tensor(image, dtype=torch.float64).permute(2, 0, 1)[None]


def _to_numpy(maps: torch.Tensor) -> np.ndarray:
    return np.moveaxis(maps.detach()[0].numpy(), 0, -1)


def _chosen(out: np.ndarray) -> list[tuple[int, tuple[int, int]]]:
    """The strongest unit, and the one most active at the bottom right."""
    if out.ndim == 1:
        return [(int(out.argmax()), (0, 0))]
    row, column, unit = map(int, np.unravel_index(out.argmax(), out.shape))
    corner = (out.shape[0] - 1, out.shape[1] - 1)
    return [(unit, (row, column)), (int(out[corner].argmax()), corner)]


def main() -> None:
    """Write the stored references."""
    arrays = {}
    for name, layers in STORED.items():
        drawn = case(name)
        net = torch_net(drawn.arch, drawn.state)
        for layer in layers:
            for unit, position in _chosen(features(net, drawn.image, layer)[0][layer]):
                for rule, overlap in SETTINGS:
                    key = Key(name, layer, unit, *position, rule, overlap)
                    pixels = project(
                        net, drawn.image, layer, unit, position, rule, overlap
                    )
                    arrays[str(key)] = key.sample(pixels, drawn.arch)
    np.savez_compressed(STORE, allow_pickle=False, **arrays)
    print(f"{STORE.name}: {len(arrays)} projections, {STORE.stat().st_size} bytes")


if __name__ == "__main__":
    main()

"""The same network in PyTorch eager: the other side of the timings."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import nn

import zfnet_jax as zf


def torch_network(arch: zf.Architecture, *, inplace: bool = False) -> nn.Sequential:
    """An architecture as PyTorch modules; a ReLU is called `NAME_relu`.

    PyTorch pads alike on both sides and uses as many threads as there are processors.
    `inplace` is for the ReLUs: it is faster, and Captum cannot have it.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    network = nn.Sequential()
    for layer, shape, _ in arch.walk():
        match layer:
            case zf.Conv():
                (top, _), (left, _) = layer.padding
                network.add_module(
                    layer.name,
                    nn.Conv2d(
                        shape[-1],
                        layer.features,
                        layer.kernel,
                        layer.stride,
                        (top, left),
                        groups=layer.groups,
                    ),
                )
                network.add_module(f"{layer.name}_relu", nn.ReLU(inplace))
            case zf.MaxPool():
                (top, _), (left, _) = layer.padding
                window = layer.kernel, layer.stride, (top, left)
                pool = nn.MaxPool2d(*window, ceil_mode=layer.round_up)
                network.add_module(layer.name, pool)
            case zf.ContrastNorm():
                # PyTorch divides alpha by the number of channels in the window.
                alpha = layer.alpha * layer.size
                norm = nn.LocalResponseNorm(layer.size, alpha, layer.beta, layer.k)
                network.add_module(layer.name, norm)
            case zf.Dense():
                if len(shape) == 3:
                    network.add_module("flatten", nn.Flatten())
                linear = nn.Linear(int(np.prod(shape)), layer.features)
                network.add_module(layer.name, linear)
                if layer.relu:
                    network.add_module(f"{layer.name}_relu", nn.ReLU(inplace))
    return network


def torch_images(images: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """The same images in PyTorch's order of dimensions."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)

"""Write plain.npz: published networks with random weights, by PyTorch.

    python -m tests.references.make_plain

It needs torchvision, of the extra `parity`. For each network and a small image the file
holds every STRIDE-th logit, and of the gradient of half the squared logits for the
kernel of one convolution every STRIDE-th value of the first output channels.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.networks import random_tensors
from tests.references import make_squeezenet
from zfnet_jax.imagenet import resnet, squeezenet
from zfnet_jax.imagenet.plain import PlainNetwork

STORE = Path(__file__).with_name("plain.npz")
STRIDE, CHANNELS = 8, 2


class Case(NamedTuple):
    """A published network, and a convolution: its name here and in PyTorch's file."""

    plain: PlainNetwork
    layer: str
    module: str


CASES = {
    "squeezenet_caffe": Case(
        squeezenet.V1_0_CAFFE, "fire5/conv3x3_2", "fire5/conv3x3_2"
    ),
    "squeezenet1_0": Case(squeezenet.V1_0, "fire5/conv3x3_2", "features.7.expand3x3"),
    "squeezenet1_1": Case(squeezenet.V1_1, "fire5/conv3x3_2", "features.7.expand3x3"),
    "resnet18": Case(resnet.RESNET18, "layer3.0.conv2", "layer3.0.conv2"),
    "resnet34": Case(resnet.RESNET34, "layer3.0.conv2", "layer3.0.conv2"),
    "resnet50": Case(resnet.RESNET50, "layer3.0.conv2", "layer3.0.conv2"),
}


def make_image() -> np.ndarray:
    """float32[1, 64, 64, 3]: noise."""
    noise = np.random.RandomState(1).standard_normal((1, 64, 64, 3))
    return noise.astype(np.float32)


def compute(name: str, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of float32[1, h, w, 3], and the gradient OIHW, in float64."""
    import torch

    case = CASES[name]
    tensors = random_tensors(case.plain.shapes)
    pixels = torch.tensor(image, dtype=torch.float64).permute(0, 3, 1, 2)
    if name == "squeezenet_caffe":
        model, pixels = make_squeezenet.network(tensors), pixels.flip(1)
        kernel: Any = model.fire5.wide[0].weight
    else:
        model = getattr(importlib.import_module("torchvision.models"), name)()
        state = {key: torch.tensor(value) for key, value in tensors.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(key.endswith("num_batches_tracked") for key in missing)
        kernel = model.get_parameter(f"{case.module}.weight")
    logits = model.double().eval()(pixels)
    (logits.square().sum() / 2).backward()
    return logits.detach().numpy(), kernel.grad.numpy()


def select(logits: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that are stored."""
    return logits[0, ::STRIDE], gradient[:CHANNELS].ravel()[::STRIDE]


def main() -> None:
    arrays = {}
    for name in CASES:
        logits, gradient = select(*compute(name, make_image()))
        arrays[f"{name}/logits"] = logits.astype(np.float32)
        arrays[f"{name}/gradient"] = gradient.astype(np.float32)
    np.savez_compressed(STORE, allow_pickle=False, **arrays)
    print(f"{STORE.name}: {len(arrays)} arrays, {STORE.stat().st_size} bytes")


if __name__ == "__main__":
    main()

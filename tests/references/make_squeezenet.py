"""Write squeezenet.npz: projections of SqueezeNet v1.0 by PyTorch and Captum.

    python -m tests.references.make_squeezenet

It needs the extra `parity`, the weights and the photograph. For the strongest unit of
some layers, at its strongest position, the file holds unit, position, activation, and
under each rule every STRIDE-th row and column of the projection, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from zfnet_jax.data import CAFFE, center_crop, load_photograph, resize_shortest_side

STORE = Path(__file__).with_name("squeezenet.npz")
SHARED = Path(__file__).parents[3] / "shared"
WEIGHTS = SHARED / "squeezenet_v1_0" / "squeezenet_v1_0.safetensors"
PHOTOGRAPH = SHARED / "imagenet_sample" / "n02099601_golden_retriever.jpg"
LAYERS = ("fire5", "logits")
STRIDE = 6


def prepare(path: Path) -> np.ndarray:
    """The middle of a photograph, preprocessed: float32[227, 227, 3]."""
    photograph = resize_shortest_side(load_photograph(path), 256)
    return CAFFE(center_crop(photograph, (227, 227))[None])[0]


def network(weights: Mapping[str, np.ndarray] | None = None) -> Any:
    """SqueezeNet v1.0 as modules, one per ReLU, as Captum's hooks need it."""
    import torch
    from torch import nn

    if weights is None:
        weights = safetensors.numpy.load_file(WEIGHTS)

    def conv(name: str, stride: int = 1, padding: int = 0) -> nn.Sequential:
        weight, bias = (
            torch.tensor(weights[f"{name}.{x}"]) for x in ("weight", "bias")
        )
        out, channels, size, _ = weight.shape
        layer = nn.Conv2d(channels, out, size, stride, padding)
        layer.load_state_dict({"weight": weight, "bias": bias})
        return nn.Sequential(layer, nn.ReLU())

    class Fire(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.squeeze = conv(f"{name}/conv1x1_1")
            self.narrow = conv(f"{name}/conv1x1_2")
            self.wide = conv(f"{name}/conv3x3_2", padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.squeeze(x)
            return torch.cat([self.narrow(x), self.wide(x)], 1)

    layers: dict[str, nn.Module] = {"conv1": conv("conv1", stride=2)}
    for number in range(2, 10):
        if number in (2, 5, 9):
            layers[f"pool{number - 1}"] = nn.MaxPool2d(3, 2, ceil_mode=True)
        layers[f"fire{number}"] = Fire(f"fire{number}")
    layers["conv_final"] = conv("conv_final", padding=1)
    layers["logits"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model.eval()


def references(image: np.ndarray) -> dict[str, np.ndarray]:
    """Contents of the file, but with whole projections, of float32[h, w, 3]."""
    import torch

    from tests.references.make_deconvnet import METHODS

    model = network()
    # The modules have Caffe's weights, which take blue first.
    pixels = torch.tensor(image[..., ::-1].copy())
    pixels = pixels.permute(2, 0, 1)[None].requires_grad_()
    arrays = {}
    for name in LAYERS:
        layer = getattr(model, name)
        values = model[: list(model._modules).index(name) + 1](pixels)[0]
        place = tuple(map(int, np.unravel_index(int(values.argmax()), values.shape)))
        value = values[place].item()
        arrays[f"{name}/unit"] = np.array(place[0])
        arrays[f"{name}/position"] = np.array(place[1:] or (0, 0))
        arrays[f"{name}/value"] = np.float32(value)
        for rule, method in METHODS.items():
            down = method(model, layer).attribute(pixels, place)[0].detach().numpy()
            # Captum sends 1 down, not the activation.
            arrays[f"{name}/{rule}"] = value * down.transpose(1, 2, 0)[..., ::-1]
    return arrays


def main() -> None:
    arrays = references(prepare(PHOTOGRAPH))
    kept: dict[str, Any] = {
        name: array[::STRIDE, ::STRIDE] if array.ndim == 3 else array
        for name, array in arrays.items()
    }
    np.savez_compressed(STORE, **kept)


if __name__ == "__main__":
    main()

"""Write residual.npz: the residual network of tests/networks.py by PyTorch and Captum.

    python -m tests.references.make_residual

It needs the extra `parity`. The file holds, for two images, logits, the activations of
every layer that ends in a ReLU, and the maps of two activations of each such layer
under three rules, in float64. Captum starts from 1, where the package starts from the
activation, so its maps are multiplied by the activation.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from tests.networks import (
    CLASSES,
    NORMS,
    RECTIFIED,
    convolutions,
    residual_images,
    residual_weights,
)

STORE = Path(__file__).with_name("residual.npz")


def network(width: int = 8):
    """The residual network as modules, one per ReLU, as Captum's hooks need it."""
    import torch
    from torch import nn

    convs = convolutions(width)

    def conv(name: str, stride: int = 1) -> nn.Conv2d:
        size, inputs, outputs = convs[name]
        return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, name: str, stride: int) -> None:
            super().__init__()
            _, _, outputs = convs[f"{name}.conv1"]
            self.conv1 = conv(f"{name}.conv1", stride)
            self.norm1 = nn.BatchNorm2d(outputs)
            self.relu1 = nn.ReLU()
            self.conv2 = conv(f"{name}.conv2")
            self.norm2 = nn.BatchNorm2d(outputs)
            self.relu2 = nn.ReLU()
            if stride > 1:
                self.shortcut = conv(f"{name}.shortcut", stride)
                self.shortcut_norm = nn.BatchNorm2d(outputs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.relu1(self.norm1(self.conv1(x)))
            y = self.norm2(self.conv2(y))
            if hasattr(self, "shortcut"):
                x = self.shortcut_norm(self.shortcut(x))
            return self.relu2(x + y)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv("stem", 2)
            self.stem_norm = nn.BatchNorm2d(width)
            self.relu = nn.ReLU()
            self.pool = nn.MaxPool2d(3, 2, 1)
            self.block1 = Block("block1", 1)
            self.block2 = Block("block2", 2)
            self.fc = nn.Linear(2 * width, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.pool(self.relu(self.stem_norm(self.stem(x))))
            return self.fc(self.block2(self.block1(x)).mean((2, 3)))

    weights = {n: torch.tensor(x) for n, x in residual_weights(width).items()}
    state = {"fc.weight": weights["fc.kernel"].T, "fc.bias": weights["fc.bias"]}
    for name, norm in NORMS.items():
        state[f"{name}.weight"] = weights[f"{name}.kernel"].permute(3, 2, 0, 1)
        state[f"{norm}.weight"] = weights[f"{norm}.scale"]
        state[f"{norm}.bias"] = weights[f"{norm}.bias"]
        state[f"{norm}.running_mean"] = weights[f"{norm}.mean"]
        state[f"{norm}.running_var"] = weights[f"{norm}.var"]
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    model = Residual()
    model.load_state_dict(state)
    return model.double().eval()


def references(images: np.ndarray) -> dict[str, np.ndarray]:
    """Contents of the file, for any images, in float64.

    Returns:
        "logits"; "LAYER" for the activations [b, h, w, c]; "LAYER/chosen" for one
        activation of each image, int[b, 3]: unit, row, column; "LAYER/RULE" for their
        maps, [b, 34, 26, 3].
    """
    import torch

    from tests.references.make_deconvnet import METHODS

    model = network()
    relus = (
        model.relu,
        model.block1.relu1,
        model.block1.relu2,
        model.block2.relu1,
        model.block2.relu2,
    )
    outputs: dict[str, torch.Tensor] = {}
    for name, relu in zip(RECTIFIED, relus, strict=True):
        relu.register_forward_hook(
            lambda _, __, output, name=name: outputs.update({name: output})
        )
    pixels = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)
    arrays = {"logits": model(pixels).detach().numpy()}
    activations = {
        name: output.detach().numpy().transpose(0, 2, 3, 1)
        for name, output in outputs.items()
    }
    for name, relu in zip(RECTIFIED, relus, strict=True):
        maps = activations[name]
        chosen = [_choose(image, index) for index, image in enumerate(maps)]
        arrays[name] = maps
        arrays[f"{name}/chosen"] = np.array(chosen)
        for rule, method in METHODS.items():
            projections = []
            for index, (unit, row, column) in enumerate(chosen):
                with warnings.catch_warnings():
                    # Captum announces its hooks at every call.
                    warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
                    image = pixels[index : index + 1].clone().requires_grad_()
                    gradient = method(model, relu).attribute(image, (unit, row, column))
                projections.append(
                    maps[index, row, column, unit]
                    * gradient[0].detach().numpy().transpose(1, 2, 0)
                )
            arrays[f"{name}/{rule}"] = np.stack(projections)
    return arrays


def _choose(maps: np.ndarray, index: int) -> tuple[int, int, int]:
    """Unit, row and column: the strongest, or the strongest in the last corner."""
    if index % 2:
        row, column = maps.shape[0] - 1, maps.shape[1] - 1
        unit = maps[row, column].argmax()
    else:
        row, column, unit = np.unravel_index(maps.argmax(), maps.shape)
    return int(unit), int(row), int(column)


def main() -> None:
    arrays = {
        name: array if array.dtype == int else array.astype(np.float32)
        for name, array in references(residual_images()).items()
    }
    np.savez_compressed(STORE, allow_pickle=False, **arrays)
    print(f"{STORE.name}: {len(arrays)} arrays, {STORE.stat().st_size} bytes")


if __name__ == "__main__":
    main()

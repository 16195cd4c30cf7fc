"""The public chains in PyTorch: live for the parity tests, and stored for all.

    python -m tests.references.make_chains

writes chains.npz beside this file and needs torchvision. pytorchcv's networks are
written out, with the names of its files. All is computed in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tests.references.chain_cases import CHAINS, DIRECTION, STORE, case
from tests.references.deconvnet_cases import Case

# pytorchcv: kernel, stride and padding of the first two stages, widths of the third.
STAGES = {
    "zfnet-imagenet": ((7, 2, 1), (5, 2, 0), (384, 384, 256)),
    "zfnetb-imagenet": ((7, 2, 1), (5, 2, 0), (512, 1024, 512)),
    "alexnet-imagenet": ((11, 4, 0), (5, 1, 2), (384, 384, 256)),
}


class Unit(nn.Module):
    """A convolution of pytorchcv; the first two stages normalize what it gives."""

    def __init__(self, *conv: Any, norm: bool):
        super().__init__()
        self.conv = nn.Conv2d(*conv)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return F.local_response_norm(x, size=5, k=2.0) if self.norm else x


class Hidden(nn.Module):
    """A hidden dense layer of pytorchcv."""

    def __init__(self, inputs: int):
        super().__init__()
        self.fc = nn.Linear(inputs, 4096)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(self.fc(x)), 0.5, self.training)


class PyTorchCV(nn.Module):
    """ZFNet or AlexNet of pytorchcv."""

    def __init__(self, name: str):
        super().__init__()
        first, second, widths = STAGES[name]
        third = [(width, (3, 1, 1)) for width in widths]
        self.features, inputs = nn.Sequential(), 3
        for number, units in enumerate(([(96, first)], [(256, second)], third), 1):
            stage = nn.Sequential()
            for index, (outputs, window) in enumerate(units, 1):
                unit = Unit(inputs, outputs, *window, norm=number < 3)
                stage.add_module(f"unit{index}", unit)
                inputs = outputs
            stage.add_module(f"pool{number}", nn.MaxPool2d(3, 2, ceil_mode=True))
            self.features.add_module(f"stage{number}", stage)
        self.output = nn.Sequential()
        self.output.add_module("fc1", Hidden(inputs * 6 * 6))
        self.output.add_module("fc2", Hidden(4096))
        self.output.add_module("fc3", nn.Linear(4096, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x).flatten(1))


def build(name: str) -> nn.Module:
    """The public module, without memory for its weights."""
    with torch.device("meta"):
        if name in STAGES:
            net = PyTorchCV(name)
        else:
            net = torchvision.models.get_model(name.removesuffix("-torchvision"))
    return net.eval()


def references(name: str, case: Case) -> dict[str, np.ndarray]:
    """Names of the tensors, logits, and gradients of the logits' weighted sum.

    Of the gradients the norm of each, and all of the first filter's.
    """
    net = build(name)
    if case.arch.shapes()["pool5"][0] < 6:
        # It would repeat a smaller map.
        net.avgpool = nn.Identity()
    names = list(net.state_dict())
    tensors = [torch.tensor(x).double().requires_grad_() for x in case.state.values()]
    x = torch.tensor(case.image).double().permute(2, 0, 1)[None]
    # The weights take the place of the module's, narrower ones too.
    state = dict(zip(names, tensors, strict=True))
    logits = torch.func.functional_call(net, state, (x,))
    grads = torch.autograd.grad(logits @ torch.from_numpy(DIRECTION), tensors)
    return {
        "names": np.array(names),
        "logits": logits[0].detach().numpy(),
        "norms": np.array([grad.norm() for grad in grads]),
        "gradient": grads[0][0].numpy(),
    }


def main() -> None:
    """Write the stored references."""
    arrays = {
        f"{name}/{key}": value if key == "names" else value.astype(np.float32)
        for name in CHAINS
        for key, value in references(name, case(name)).items()
    }
    np.savez_compressed(STORE, allow_pickle=False, **arrays)
    print(f"{STORE.name}: {len(CHAINS)} networks, {STORE.stat().st_size} bytes")


if __name__ == "__main__":
    main()

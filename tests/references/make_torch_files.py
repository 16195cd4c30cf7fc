"""The network SMALL of tests/test_weights.py in PyTorch, live and in stored files.

    python -m tests.references.make_torch_files

needs the extra `parity`. It writes torch_zip.pt and torch_legacy.pth, the same weights
in the two formats of `torch.save`, and torch_logits.npz, what PyTorch computes with
them: the test reads all three without PyTorch.
"""

from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def small() -> torch.nn.Module:
    """SMALL of tests/test_weights.py, its modules called as in torchvision."""
    features = torch.nn.Sequential(
        torch.nn.ZeroPad2d((0, 1, 1, 0)),
        torch.nn.Conv2d(3, 4, (3, 2), stride=(1, 2)),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2, stride=(2, 1)),
        torch.nn.Conv2d(4, 6, 3, padding=1, groups=2),
        torch.nn.ReLU(),
    )
    classifier = torch.nn.Sequential(
        torch.nn.Dropout(),
        torch.nn.Linear(6 * 4 * 5, 7),
        torch.nn.ReLU(),
        torch.nn.Linear(7, 5),
    )
    net = torch.nn.Sequential()
    net.add_module("features", features)
    net.add_module("flatten", torch.nn.Flatten())
    net.add_module("classifier", classifier)
    return net.eval()


def main() -> None:
    torch.manual_seed(0)
    net = small()
    images = torch.randn(3, 3, 9, 11)
    state = net.state_dict()
    # A checkpoint of a training on several GPUs.
    parallel = torch.nn.DataParallel(net, device_ids=[])
    torch.save(
        {"epoch": 3, "state_dict": parallel.state_dict(), "best": 0.5},
        HERE / "torch_zip.pt",
    )
    names: dict[str, str] = {
        "features.1": "conv1",
        "features.4": "conv2",
        "classifier.1": "fc3",
        "classifier.3": "fc4",
    }
    renamed = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        renamed[f"{names[module]}.{kind}"] = tensor
    torch.save(renamed, HERE / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    with torch.no_grad():
        logits = net(images)
    np.savez(
        HERE / "torch_logits.npz",
        images=images.permute(0, 2, 3, 1).numpy(),
        logits=logits.numpy(),
    )


if __name__ == "__main__":
    main()

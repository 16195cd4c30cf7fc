"""A small network and its training run, for experiments on a dataset."""

from pathlib import Path

import pytest

from experiments.common import main
from tests.networks import SMALL, save
from zfnet_jax.arch import Architecture


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a training run that kept epochs 1, 2 and 5."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    for seed, epoch in enumerate((1, 2, 5)):
        save(folder / "epochs" / f"epoch_{epoch:04d}.safetensors", seed)
    save(folder / "weights.safetensors", 2)
    return folder


@pytest.fixture
def untrained(trained, tmp_path) -> Path:
    """A run that kept the weights of one epoch only."""
    folder = tmp_path / "untrained"
    save(folder / "epochs" / "epoch_0001.safetensors", 0)
    save(folder / "weights.safetensors", 0)
    return folder


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A run whose epochs are of different architectures."""
    folder = tmp_path / "mixed"
    for epoch, layers in ((1, SMALL.layers), (2, SMALL.layers[1:])):
        arch = Architecture("another", (16, 16), layers)
        save(folder / "epochs" / f"epoch_{epoch:04d}.safetensors", 0, arch)
    save(folder / "weights.safetensors", 0)
    return folder


@pytest.fixture
def refusal(capsys):
    """Runs an impossible command and returns its one line of error."""

    def refused(run, options: type, code: int, *argv: str) -> str:
        capsys.readouterr()
        assert main(run, options, argv) == code
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1
        return line

    return refused

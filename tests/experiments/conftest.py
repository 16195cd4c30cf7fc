"""A small network, its training run, and commands run in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.harness import main
from tests.networks import save
from zfnet_jax.data import make_shapes


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a training run that kept epochs 1, 2 and 5."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    for seed, epoch in enumerate((1, 2, 5)):
        save(folder / "epochs" / f"epoch_{epoch:04d}.safetensors", seed)
    save(folder / "weights.safetensors", 2)
    return folder


@pytest.fixture(scope="session")
def weights(trained) -> str:
    """The weight file of that run."""
    return str(trained / "weights.safetensors")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """A folder of three photographs without classes."""
    folder = tmp_path_factory.mktemp("photographs")
    for index, pixels in enumerate(make_shapes(3, (40, 50)).images):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def measure(tmp_path_factory) -> Callable[..., tuple[dict[str, Any], Path]]:
    """Runs a command and returns its metrics and its result folder."""

    def run(command: Any, *argv: object) -> tuple[dict[str, Any], Path]:
        out = tmp_path_factory.mktemp("results")
        words = [*map(str, argv), "--out", str(out), "--dpi", "32"]
        assert main(command, words) == 0
        return json.loads((out / "metrics.json").read_text()), out

    return run


@pytest.fixture
def refuse(capsys, tmp_path) -> Callable[..., str]:
    """Runs an impossible command and returns its one line of error."""

    def run(command: Any, code: int, *argv: object) -> str:
        out = tmp_path / "refused"
        assert main(command, [*map(str, argv), "--out", str(out)]) == code
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1
        assert not list(out.glob("*.json")), "results of a refused command"
        return line

    return run

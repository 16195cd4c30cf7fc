"""One of two processes that search, classify and build a gallery together.

python -m tests.two_processes INDEX PORT FOLDER; `run_both` starts them.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import zfnet_jax as zf
from experiments import harness
from experiments.predict import predict
from tests.loopback import find_port
from tests.networks import TINY
from tests.references.deconvnet_cases import draw_state

# Two processes of two devices take 128 at once: the second has none of the last ones.
COUNT, STEP = 290, 128
LABELS = np.arange(COUNT) * 7 % 3


class Images:
    """Images with ties, which remember the indices at which they were read."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._images = rng.normal(size=(COUNT, 9, 12, 3)).astype(np.float32)
        # Ties within a map, of images of one process, and of both.
        self._images[[3, 70, 71, 200, 288]] = 1
        self._images[[40, 100, 289]] = self._images[8]
        self.reads: list[int] = []

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, indices: Any) -> np.ndarray:
        self.reads += indices.tolist()
        return self._images[indices]

    def digest(self) -> str:
        return "images of tests.two_processes"


def search(**options: Any) -> tuple[dict[str, np.ndarray], list[int]]:
    """Search the images; all results by layer and name, and the indices read."""
    model = zf.load_weights(draw_state(TINY), TINY)
    images = Images()
    tops = zf.top_activations(model, images, labels=LABELS, **options)
    arrays = {
        f"{layer} {name}": value
        for layer, top in tops.items()
        for name, value in vars(top).items()
        if name != "layer"
    }
    return arrays, images.reads


def run_both(folder: Path) -> None:
    """Run both processes, each of two virtual devices, to their end."""
    port = find_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(index), str(port), str(folder)],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)


def build_logits(folder: Path) -> None:
    """Build the gallery of a classifier."""
    from tests.gallery_case import IMAGES, YOUNG, build  # it computes at once

    options = {"layers": "logits", "rules": ["gradient"], "epochs": None}
    build(folder, **options, sanity_images=0, compare=("young", YOUNG, IMAGES))


def run_predict(folder: Path, out: Path, *options: object) -> None:
    """Average two networks over photographs."""
    words = ["--image", folder / "photographs", "--out", out, "--dpi", 32, *options]
    for name in "ab":
        words += ["--weights", folder / f"{name}.safetensors"]
    assert harness.main(predict, [*map(str, words)]) == 0


def main(index: int, port: int, folder: Path) -> None:
    options = ["--coordinator", f"127.0.0.1:{port}"]
    options += ["--process-count", "2", "--process-index", str(index)]
    run_predict(folder, folder / "predict", *options)
    assert (jax.process_count(), jax.device_count()) == (2, 4)
    for name, options in (("whole", {}), ("resumed", {"partial": folder / "partial"})):
        arrays, reads = search(**options)
        np.savez(
            folder / f"{name}-{index}.npz", allow_pickle=False, reads=reads, **arrays
        )
    build_logits(folder / "gallery")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

"""A network so small that it compiles in seconds, and its weight files."""

from pathlib import Path

import numpy as np
from flax import nnx

import zfnet_jax as zf
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool
from zfnet_jax.data import SHAPES, Preprocessing

CLASSES = tuple(SHAPES)

# It halves the shapes of 32 x 32, so that pictures need resizing too.
SMALL = Architecture(
    "small",
    (16, 16),
    (
        Conv("conv1", 4, kernel=3, padding=1),
        MaxPool("pool1", kernel=2, stride=2),
        Conv("conv2", 6, kernel=3, padding=1),
        Dense("fc3", 8),
        Dense("logits", len(CLASSES), relu=False),
    ),
)


LEARNED: dict[str, str | int | float] = {"dataset": "shapes", "test_accuracy": 0.125}


def save(path: Path, seed: int, arch: Architecture = SMALL, metadata=LEARNED) -> None:
    """Save an untrained network; conv2's unit 1 is dead."""
    model = zf.ConvNet(arch, len(CLASSES), rngs=nnx.Rngs(seed))
    if arch is SMALL:
        model.conv2.bias[...] = model.conv2.bias[...].at[1].set(-1e6)
    size = None if arch.input_hw == (32, 32) else arch.input_hw
    mean = np.full((32, 32, 3), 128, np.float32)
    preprocess = Preprocessing(mean, 1 / 64, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    zf.save(path, model, preprocess=preprocess, class_names=CLASSES, metadata=metadata)

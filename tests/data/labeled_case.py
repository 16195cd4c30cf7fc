"""Small labeled photographs on the disk, in each of the three forms that are read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.prepared_case import prepare

# The first of imagenet2012.
CLASSES = ("n01440764", "n01443537", "n01484850")
# Rows and columns: larger than 256 x 256, smaller, and of exactly that shortest side.
SIZES = ((300, 400), (200, 150), (256, 280), (310, 257))


def make_photograph(seed: int, size: tuple[int, int], quality: int = 75) -> bytes:
    """A smooth photograph of random colors as a JPEG file."""
    colors = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(colors).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_folders(folder: Path, train: int = 4, val: int = 1) -> Path:
    """Write train/CLASS/*.JPEG and val/CLASS/*.JPEG, so many of each class."""
    for label, kind in enumerate(CLASSES):
        for split, count in (("train", train), ("val", val)):
            (folder / split / kind).mkdir(parents=True)
            for number in range(count):
                seed = 100 * label + number + (50 if split == "val" else 0)
                content = make_photograph(seed, SIZES[number % len(SIZES)])
                name = f"{kind}_{number:02d}.JPEG"
                (folder / split / kind / name).write_bytes(content)
    return folder


def prepare_tfds(folders: Path, root: Path) -> Path:
    """Write the same photographs as tensorflow-datasets prepares imagenet2012."""

    def examples(split: str):
        for path in sorted((folders / split).glob("*/*")):
            label = CLASSES.index(path.parent.name)
            yield path.name, {"image": path, "label": label, "file_name": path.name}

    def split_generators(self, dl_manager):
        del self, dl_manager
        return {"train": examples("train"), "validation": examples("val")}

    return prepare("imagenet2012", root, split_generators)


class Numbers:
    """Images whose label is their index, and whose gray level is it too."""

    def __init__(self, count: int, damaged: int = -1) -> None:
        self.count, self.damaged = count, damaged

    def __len__(self) -> int:
        return self.count

    def fetch(self, index: int) -> tuple[bytes, int]:
        buffer = io.BytesIO()
        Image.new("L", (8, 8), index).save(buffer, "PNG")
        return buffer.getvalue()[: 30 if index == self.damaged else None], index

    def labels(self, indices: np.ndarray) -> np.ndarray:
        return indices.astype(np.int32)

    def name(self, index: int) -> str:
        return f"number {index}"

    def digest(self) -> str:
        return str(self.count)

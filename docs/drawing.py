"""Networks, photographs and layouts that the pictures of the documentation share."""

from __future__ import annotations

import dataclasses
import functools
import io
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import zfnet_jax as zf
from docs.photographs import Crops, Nine, cut_crops, find_nine, find_photographs
from zfnet_jax.analysis.sanity import Comparison, controls
from zfnet_jax.viz.contrast import to_display
from zfnet_jax.viz.layout import Box, figure_bytes, page, picture

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "results/figures"
SHIPPED = ROOT / "zfnet_jax/pretrained/zfnet32-cifar10.safetensors"

# Units with something to see, by layer of SqueezeNet; the first picture has the first.
UNITS = {
    "conv1": (75,),
    "fire3": (8, 33),
    "fire5": (173, 90),
    "fire7": (302,),
    "fire8": (326, 428),
}
# Photographs of the analyses, by the class of ImageNet that they show.
CLASSES = {
    "Egyptian cat": "chelsea",
    "espresso": "coffee",
    "missile": "rocket",
    "moped": "motorcycle_left",
    "tripod": "camera",
}
# Pixels of a tile of nine, and between two of them.
TILE, SEAM = 77, 2
THUMBNAIL = (640, 356)


class Table(NamedTuple):
    """A table of a page, by the first words of its first column's heading."""

    page: str
    heading: str

    def read(self) -> list[list[str]]:
        """Read the cells of its rows below the heading."""
        lines = (ROOT / "docs/paper" / self.page).read_text(encoding="utf-8")
        start = lines.index(f"| {self.heading}")
        rows = lines[start:].split("\n\n")[0].splitlines()[2:]
        return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


@dataclasses.dataclass(eq=False)
class Session:
    """The networks, and what several pictures need."""

    squeezenet_file: str = "squeezenet-v1.0"

    @functools.cached_property
    def squeezenet(self) -> Any:
        """SqueezeNet v1.0."""
        return zf.load(self.squeezenet_file)

    @functools.cached_property
    def shipped(self) -> Any:
        """The network that the package ships."""
        return zf.load(SHIPPED)

    @functools.cached_property
    def crops(self) -> Crops:
        """Crops of the photographs, of SqueezeNet's size."""
        return cut_crops(self.squeezenet.image_shape[0])

    @functools.cached_property
    def nines(self) -> dict[tuple[str, int], Nine]:
        """The nine strongest patches of each unit, by layer and unit."""
        net, crops = self.squeezenet, self.crops
        images = net.preprocess(crops.pixels)
        tops = zf.top_activations(net, images, [*UNITS], k=150)
        return {
            (layer, unit): find_nine(net, crops, tops[layer], unit)
            for layer, units in UNITS.items()
            for unit in units
        }

    @functools.cached_property
    def photographs(self) -> Path:
        """A folder with photographs in folders named after their classes."""
        folder = CACHE / "photographs"
        for name, photograph in CLASSES.items():
            path = find_photographs()[photograph]
            (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name / path.name)
        return folder

    @functools.cached_property
    def controls(self) -> tuple[Any, Comparison]:
        """Photographs, and pictures of their strongest unit and of other signals."""
        images = self.squeezenet.load_images(self.photographs)
        return images, controls(self.squeezenet, images, "fire8", shown=1)

    @functools.cached_property
    def shapes(self) -> Path:
        """The run of a network that learns generated shapes."""
        options = "--dataset shapes --epochs 4 --keep-epochs 1 2 4 --batch-size 128"
        if not (CACHE / "train_cifar10/weights.safetensors").exists():
            run_experiment("train_cifar10", *options.split())
        return CACHE / "train_cifar10"


def run_experiment(name: str, *options: str | Path) -> Path:
    """Run a command of the experiments, and return its result folder."""
    folder = CACHE / name
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, options)]
    subprocess.run([*command, "--out", folder], cwd=ROOT, check=True)
    return folder


def read_picture(path: Path, width: int) -> Image.Image:
    """Read a figure of an experiment, reduced to a width."""
    return reduce(Image.open(path), width)


def render(figure: Figure, width: int | None = None) -> Image.Image:
    """Render a figure, reduced to a width if one is given."""
    whole = Image.open(io.BytesIO(figure_bytes(figure, "png")))
    return reduce(whole, width or whole.width)


def reduce(whole: Image.Image, width: int) -> Image.Image:
    """Reduce a picture to a width."""
    size = width, round(whole.height * width / whole.width)
    return whole.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def frame(body: Box) -> Image.Image:
    """Render a body in the middle of a thumbnail."""
    whole = render(page(body))
    whole.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", THUMBNAIL, "white")
    left, top = ((a - b) // 2 for a, b in zip(THUMBNAIL, whole.size, strict=True))
    canvas.paste(whole, (left, top))
    return canvas


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures of one width one below the other."""
    return Image.fromarray(np.concatenate([np.asarray(x) for x in pictures]))


def enlarge(pixels: np.ndarray, side: int) -> Box:
    """Show pixels, or a signed picture, at a size."""
    return picture(resize(pixels, side), side)


def resize(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resize pixels, or a signed picture; few pixels stay squares."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(255 * to_display(pixels)).astype(np.uint8)
    small = len(pixels) < 12
    kind = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((side, side), kind))


def tile(pictures: Iterable[np.ndarray], side: int = TILE) -> Box:
    """Put nine pictures in a square."""
    mosaic = np.full((3 * side + 2 * SEAM,) * 2 + (3,), 255, np.uint8)
    for index, pixels in enumerate(pictures):
        top, left = ((side + SEAM) * place for place in divmod(index, 3))
        mosaic[top : top + side, left : left + side] = resize(pixels, side)
    return picture(mosaic, len(mosaic))

"""Draw every picture of the README and the documentation into docs/figures/.

    python -m docs.figures [NAME ...] [--check] [--squeezenet FILE]

Without names it draws all, in about five minutes on two CPU cores. `--check` draws them
in memory and names those that differ from the files. The networks are the shipped one,
SqueezeNet v1.0 (fetched unless FILE is given), and one that learns generated shapes.
results/figures keeps that one, and what the experiments write.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import io
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from PIL import Image

import zfnet_jax as zf
from docs.drawing import (
    CACHE,
    ROOT,
    SHIPPED,
    UNITS,
    Session,
    Table,
    enlarge,
    frame,
    read_picture,
    render,
    run_experiment,
    stack,
    tile,
)
from docs.photographs import find_photographs
from experiments.reconstruct import send_down
from zfnet_jax.analysis.invariance import transform_images
from zfnet_jax.data import load_dataset
from zfnet_jax.viz.ablation import ablation_chart
from zfnet_jax.viz.contrast import measure_scale
from zfnet_jax.viz.first_layer import filter_banks
from zfnet_jax.viz.layout import (
    FAINT,
    PALETTE,
    column,
    grid,
    page,
    picture,
    plot,
    points,
    row,
    text,
)
from zfnet_jax.viz.occlusion import spread_cells
from zfnet_jax.viz.patches import GRAY, cut_patches
from zfnet_jax.viz.probe import accuracy_by_layer
from zfnet_jax.viz.sanity import compared_pictures
from zfnet_jax.viz.transfer import accuracy_by_count

FOLDER = ROOT / "docs/figures"
RECORD = FOLDER / "figures.json"

# Mean difference of two drawings of a picture, in gray levels, that is no change.
TOLERANCE = 3.0
# What the units of the first picture respond to.
WORDS = "stripes", "corners", "curves", "round rims", "mostly faces"


class Picture(NamedTuple):
    """A function that draws a picture, and the files and tables that it shows."""

    draw: Callable[[Session], Image.Image]
    inputs: tuple[Path | Table, ...]


PICTURES: dict[str, Picture] = {}
ABLATION = Table("accuracy.md", "change")
TRANSFER = Table("transfer.md", "from, to")
PROBE = Table("probe.md", "accuracy")


def register(name: str, *inputs: Path | Table) -> Callable[[Any], Any]:
    """Register a function that draws the file of this name."""

    def add(draw: Callable[[Session], Image.Image]) -> Any:
        PICTURES[name] = Picture(draw, inputs)
        return draw

    return add


@register("hero.jpg")
def draw_hero(session: Session) -> Image.Image:
    """A photograph, and a unit of each of five layers: nine patches and projections."""
    net = session.squeezenet
    photograph = net.load_images(find_photographs()["chelsea"])
    chances = np.asarray(jax.nn.softmax(net(photograph[:])[0]))
    best = np.argsort(-chances)[:3]
    labels = [f"{chances[i]:.0%}  {net.class_names[i]}" for i in best]
    explanation = (
        "Above: patches that excite a unit most. Below: what the deconvnet "
        "projects from them back to pixels."
    )
    lines = [text(line, 20, FAINT) for line in textwrap.wrap(explanation, 27)]
    left = column(
        text("A photograph", 26, bold=True),
        text("and SqueezeNet's guess", 20, FAINT),
        enlarge(photograph.pictures[0], 296),
        column(*(text(label, 20) for label in labels), gap=2),
        column(*lines, gap=0),
        gap=6,
    )
    columns = []
    for (layer, units), words in zip(UNITS.items(), WORDS, strict=True):
        nine = session.nines[layer, units[0]]
        size = "sees {} x {} pixels".format(*net.layer(layer).receptive_field.size)
        columns.append(
            column(
                text(f"{layer}: {words}", 24, bold=True),
                text(size, 20, FAINT),
                column(tile(nine.patches), tile(nine.projections), gap=10),
                gap=6,
            )
        )
    return render(page(row(left, *columns, gap=24)))


@register("features.jpg")
def draw_features(session: Session) -> Image.Image:
    """Fig. 2: two units of each of three layers."""
    rows = []
    for layer in ("fire3", "fire5", "fire8"):
        blocks = []
        for unit in UNITS[layer]:
            nine = session.nines[layer, unit]
            first, last = nine.activations[[0, -1]]
            heading = row(
                text(f"{layer}, unit {unit}", 16, bold=True),
                text(f"activation {first:,.0f} to {last:,.0f}", 16, FAINT),
            )
            pair = row(tile(nine.patches), tile(nine.projections))
            blocks.append(column(heading, pair, gap=6))
        rows.append(row(*blocks, gap=24))
    return render(page(column(*rows, gap=16)))


@register("evolution.jpg")
def draw_evolution(session: Session) -> Image.Image:
    """Fig. 4: units of the network that learns shapes."""
    options = "--dataset shapes --layers conv4 --count 6".split()
    folder = run_experiment("evolution", "--run", session.shapes, *options)
    return read_picture(folder / "evolution_conv4.png", 950)


@register("invariance.jpg")
def draw_invariance(session: Session) -> Image.Image:
    """Fig. 5: five photographs rotated."""
    folder = run_experiment(
        "invariance",
        *("--weights", session.squeezenet_file, "--image", session.photographs),
        *("--transform", "rotate"),
    )
    return read_picture(folder / "invariance_rotate.png", 1000)


@register("first_layer.png", SHIPPED)
def draw_first_layer(session: Session) -> Image.Image:
    """Fig. 6: the first layer's filters of two networks."""
    banks = {}
    for name, net in {
        "zfnet32-cifar10": session.shipped,
        "SqueezeNet v1.0": session.squeezenet,
    }.items():
        kernels: list[Any] = []
        net.map_weights("conv1", lambda x, to=kernels: to.append(x) or x)
        (kernel,) = (np.asarray(x) for x in kernels if x.ndim == 4)
        banks[name] = kernel
    return render(filter_banks("First-layer filters", banks))


@register("occlusion.jpg")
def draw_occlusion(session: Session) -> Image.Image:
    """Fig. 7: a square slides over a cup of espresso."""
    folder = run_experiment(
        "occlusion",
        *("--weights", session.squeezenet_file, "--image", session.photographs),
        *"--indices 1 --shown 1 --others 3 --layers fire9".split(),
    )
    return read_picture(folder / "occlusion_0.png", 1000)


@register("correspondence.jpg")
def draw_correspondence(session: Session) -> Image.Image:
    """Fig. 8 and Table 1: corners of arrows masked."""
    folder = run_experiment(
        "correspondence",
        *("--weights", session.shapes / "weights.safetensors", "--limit", "40"),
    )
    names = "masked_images.png", "correspondence.png"
    return stack([read_picture(folder / name, 850) for name in names])


@register("ablation.png", ABLATION)
def draw_ablation(session: Session) -> Image.Image:
    """Table 3: errors of the variants, beside the paper's."""
    rows = ABLATION.read()
    numbers = np.array([[*map(read_mean, cells[1:])] for cells in rows])
    kinds = {"train error (%)": 0, "validation error (%)": 2}
    figure = ablation_chart(
        "Networks with layers removed or resized",
        [cells[0] for cells in rows],
        {kind: repeat(numbers[:, at + 1], 2).T for kind, at in kinds.items()},
        {kind: numbers[:, at, 0] for kind, at in kinds.items()},
    )
    return render(figure)


def read_mean(cell: str) -> tuple[float, float]:
    """Read "mean ± standard deviation", or a mean alone."""
    mean, _, spread = cell.partition("±")
    return float(mean), float(spread or 0)


def repeat(pairs: np.ndarray, count: int) -> np.ndarray:
    """Make `count` values of each mean and standard deviation [n, 2], as [count, n]."""
    steps = np.linspace(-1, 1, count)
    steps /= steps.std(ddof=1)
    return pairs[:, 0] + steps[:, None] * pairs[:, 1]


@register("transfer.png", TRANSFER)
def draw_transfer(session: Session) -> Image.Image:
    """Fig. 9: accuracy against training images per class."""
    rows = TRANSFER.read()
    titles = "From CIFAR-10 to shapes", "From shapes to CIFAR-10"
    panels = {
        title: (
            (1, 5, 20, 100),
            {
                cells[1]: repeat(np.array([*map(read_mean, cells[2:])]) / 100, 3)
                for cells in rows[start : start + 3]
            },
        )
        for title, start in zip(titles, (0, 3), strict=True)
    }
    note = "Bars: one standard deviation over three draws of images. Dotted: chance."
    return render(accuracy_by_count("Accuracy on new classes", note, panels, 0.1))


@register("probe.png", PROBE)
def draw_probe(session: Session) -> Image.Image:
    """Table 7: accuracy by layer."""
    layers = ["pixels", "conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
    curves = {
        name: np.array([[float(cell or np.nan) / 100 for cell in cells]])
        for name, *cells in PROBE.read()
    }
    panels = {"test accuracy": (layers, curves)}
    title = "Classifiers on the features of each layer"
    return render(accuracy_by_layer(title, "", panels, {"chance": 0.1}))


@register("sanity.jpg")
def draw_sanity(session: Session) -> Image.Image:
    """The picture of a unit by three rules, beside those of other signals."""
    images, result = session.controls
    figure = compared_pictures(
        "Strongest unit of fire8 of SqueezeNet v1.0, and other signals in its place",
        images.pictures[:1],
        ["cat"],
        result.columns,
        {**result.pictures},
        {rule: x.signed for rule, x in result.similarity.items()},
    )
    return render(figure, 1000)


@register("reconstruction.jpg")
def draw_reconstruction(session: Session) -> Image.Image:
    """A cat sent back to its pixels."""
    folder = run_experiment(
        "reconstruct",
        *("--weights", session.squeezenet_file),
        *("--image", find_photographs()["chelsea"]),
    )
    return read_picture(folder / "reconstruction_chelsea-png.png", 1000)


@register("library.jpg")
def draw_library(session: Session) -> Image.Image:
    """The picture that the README's lines of Python make."""
    net = session.squeezenet
    folder = CACHE / "all_photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for path in find_photographs().values():
        shutil.copyfile(path, folder / path.name)
    images = net.load_images(folder)
    top = zf.top_activations(net, images, "fire5", k=9)["fire5"]
    return render(top.project(net, images, units=173).show(images))


@register("thumb_features.jpg")
def draw_thumb_features(session: Session) -> Image.Image:
    """Nine patches beside nine projections."""
    nine = session.nines["fire5", UNITS["fire5"][0]]
    return frame(row(tile(nine.patches, 114), tile(nine.projections, 114), gap=16))


@register("thumb_invariance.jpg")
def draw_thumb_invariance(session: Session) -> Image.Image:
    """A photograph being enlarged, and how far its features move."""
    net, amounts = session.squeezenet, np.linspace(1, 1.8, 25)
    images = net.load_images(find_photographs()["coffee"])
    label = net.class_names.index("espresso")
    result = zf.invariance(net, images, [label], "scale", amounts)
    pictures = images.pictures[:].astype(np.float32)
    middle = pictures.mean((0, 1, 2))
    enlarged = [
        np.clip(transform_images(pictures - middle, "scale", step)[0] + middle, 0, 255)
        for step in amounts[::8]
    ]
    curves = {
        "first layer moves": result.relative["conv1"][0],
        "last layer moves": result.relative[net.output][0],
    }

    def draw(ax: Axes) -> None:
        for index, (name, values) in enumerate(curves.items()):
            style = {"color": PALETTE[index], "linewidth": 3}
            ax.plot(amounts, values, **style)
            place = amounts[15], values[15] + (0.06 if index == 0 else -0.05)
            words = {"color": PALETTE[index], "fontsize": points(24), "ha": "center"}
            ax.annotate(name, place, **words, va="bottom" if index == 0 else "top")
        ax.set_xticks([1, 1.4, 1.8], ["actual size", "1.4 times", "1.8 times"])
        ax.set_yticks([0, 1])
        ax.set_ylim(0, 1.4)
        ax.tick_params(labelsize=points(20))

    rows = row(*(enlarge(x.astype(np.uint8), 165) for x in enlarged))
    return frame(column(rows, plot(rows.width, 250, draw, left=30, below=40)))


@register("thumb_occlusion.jpg")
def draw_thumb_occlusion(session: Session) -> Image.Image:
    """A square where it lowers the probability most, and the probability elsewhere."""
    net, path = session.squeezenet, find_photographs()["coffee"]
    images = net.load_images(path)
    options = {"size": 57, "stride": 14, "layer": "fire9"}
    result = zf.occlusion(net, images, "espresso", **options)
    covered = images.pictures[0].copy()
    lowest = result.probability[0].argmin()
    top, left, bottom, right = result.boxes.reshape(-1, 4)[lowest]
    covered[top:bottom, left:right] = GRAY
    cells = spread_cells(result.probability[0], result.boxes, covered.shape[:2])
    style = {"cmap": "viridis", "norm": Normalize(0, 1)}
    return frame(row(enlarge(covered, 352), picture(cells, 352, fill=True, **style)))


@register("thumb_reconstruction.jpg")
def draw_thumb_reconstruction(session: Session) -> Image.Image:
    """A photograph, and the signal that goes down from its last pooled map."""
    net = session.squeezenet
    images = net.load_images(find_photographs()["chelsea"])
    maps = net.activations(images, "pool8")["pool8"]
    stages = [*send_down(net, images[:], "pool8", maps, "deconvnet")]
    cells = []
    for stage in stages[:-1:2]:
        scale = measure_scale(stage.values)
        limits = Normalize(-scale, scale)
        cells.append(picture(stage.values, 110, fill=True, cmap="PuOr_r", norm=limits))
    ends = enlarge(images.pictures[0], 290), enlarge(stages[-1].values, 290)
    return frame(column(row(*ends, gap=130), row(*cells, gap=10), gap=12))


@register("thumb_sanity.jpg")
def draw_thumb_sanity(session: Session) -> Image.Image:
    """A photograph, and what two rules make of random numbers in a layer."""
    images, result = session.controls
    place = result.columns.index("random everywhere")
    pictures = [result.pictures[rule][0, place] for rule in ("guided", "gradient")]
    shown = images.pictures[0], *pictures
    return frame(row(*(enlarge(x, 300) for x in shown)))


@register("thumb_evolution.jpg")
def draw_thumb_evolution(session: Session) -> Image.Image:
    """Three units at each kept epoch: patch and projection."""
    files = sorted((session.shapes / "epochs").glob("epoch_*.safetensors"))
    networks = {int(re.findall(r"\d+", x.stem)[0]): zf.load(x) for x in files}
    images = networks[1].load_images(load_dataset("shapes", "train", limit=2000))
    course = zf.evolution(networks, images, "conv4")["conv4"]
    alive = np.flatnonzero(~course.dead.any(0))[:3]
    projections = course.project(networks, images, alive)
    pictures = images.pictures[projections.images]
    patches = cut_patches(pictures, projections.boxes)
    count = len(networks)
    boxes = [
        row(enlarge(patch, 110), enlarge(pixels, 110), gap=2)
        for patch, pixels in zip(patches, projections.pixels, strict=True)
    ]
    return frame(grid(boxes, count, gap=16))


def collect_source(function: Callable[..., Any]) -> Iterator[str]:
    """Yield the source of a function, and of what it uses of these modules."""
    pending, known = [function], set()
    while pending:
        item = pending.pop()
        source = inspect.getsource(item)
        if source in known:
            continue
        known.add(source)
        yield source
        names = vars(sys.modules[item.__module__]) | vars(Session)
        for word in sorted({*re.findall(r"\w+", source)} & names.keys()):
            used = names[word]
            used = getattr(used, "func", used)
            is_code = inspect.isfunction(used) or inspect.isclass(used)
            if is_code and used.__module__.startswith(("docs.", "__main__")):
                pending += [used] * (used is not Session)
            elif word.isupper() and word != "PICTURES":
                yield f"{word} = {used!r}".replace(str(ROOT), "")


def digest(name: str) -> str:
    """Compute what a picture depends on, except the library and the photographs."""
    drawing = PICTURES[name]
    parts = [*collect_source(drawing.draw)]
    for shown in drawing.inputs:
        is_file = isinstance(shown, Path)
        parts.append(shown.read_bytes().hex() if is_file else json.dumps(shown.read()))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def encode(image: Image.Image, name: str) -> bytes:
    """Encode a picture as the kind of file that its name says."""
    buffer = io.BytesIO()
    if name.endswith(".jpg"):
        image.save(buffer, "JPEG", quality=72, progressive=True, optimize=True)
    else:
        if image.getcolors(1 << 12):  # a chart, not pixels
            image = image.quantize(64, dither=Image.Dither.NONE)
        image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def compare(data: bytes, path: Path) -> float:
    """Compute the mean difference of a picture to a file, in gray levels."""
    if not path.exists():
        return np.inf
    new, old = (Image.open(x).convert("RGB") for x in (io.BytesIO(data), path))
    if new.size != old.size:
        return np.inf
    pair = (np.asarray(x, np.float32) for x in (new, old))
    return float(np.abs(np.subtract(*pair)).mean())


def main() -> int:
    """Draw pictures, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument(
        "--squeezenet", default="squeezenet-v1.0", help="file of its weights"
    )
    options = parser.parse_args()
    names = options.names or [*PICTURES]
    if unknown := {*names} - PICTURES.keys():
        parser.error(f"no picture {min(unknown)}; there are {', '.join(PICTURES)}")
    session, stale = Session(options.squeezenet), []
    for name in names:
        data = encode(PICTURES[name].draw(session), name)
        difference = compare(data, FOLDER / name)
        if options.check:
            state = "stale" if difference > TOLERANCE else "up to date"
            stale += [name] * (state == "stale")
            print(f"{name}: {state}, difference {difference:.2f} gray levels")
            continue
        (FOLDER / name).write_bytes(data)
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record = {x: y for x, y in record.items() if x in PICTURES}
        record[name] = digest(name)
        RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        print(f"{name}: {len(data):,} bytes")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

"""The table of attribution maps on shapes, end to end."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import zfnet_jax as zf
from experiments.attribution import METHODS, Options, mosaic, run, table
from experiments.common import main
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool
from zfnet_jax.data import Preprocessing, make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")

TINY = Architecture(
    "tiny",
    (16, 16),
    (
        Conv("conv1", 4, kernel=3, padding=1),
        MaxPool("pool1", kernel=2, stride=2),
        Conv("conv2", 6, kernel=3, padding=1),
        Dense("fc3", 8),
        Dense("logits", 10, relu=False),
    ),
)
DRAWN = 120


def save(path: Path, preprocess: Preprocessing, class_names) -> Path:
    model = zf.ConvNet(TINY, len(class_names), rngs=nnx.Rngs(0))
    zf.save(path, model, preprocess=preprocess, class_names=class_names, metadata={})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Of a network that has learned nothing, and so is right about one in ten."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    mean = np.full((16, 16, 3), 128, np.float32)
    return save(path, Preprocessing(mean, 1 / 64), make_shapes(1).class_names)


def arguments(weights: Path, out: Path, *more: str) -> list[str]:
    argv = ["--weights", str(weights), "--out", str(out), "--images", str(DRAWN)]
    return [*argv, *more]


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results") / "new"
    assert main(run, Options, arguments(weights, out, "--tolerance", "1.5")) == 0
    return out


def metrics_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def classified_right(weights: Path):
    net = zf.load(weights)
    drawn = make_shapes(DRAWN, (16, 16), seed=1)
    logits = np.asarray(net.model(net.preprocess(drawn.images)))
    return net, drawn.take(np.flatnonzero(logits.argmax(-1) == drawn.labels))


def test_the_numbers_are_those_of_the_maps(finished, weights):
    """Counted again: pixel by pixel for the gradient, from the masks for the centre."""
    net, shapes = classified_right(weights)
    metrics = metrics_of(finished)
    assert (metrics["images"], metrics["images_drawn"]) == (len(shapes), DRAWN)
    assert set(metrics["methods"]) == {*METHODS, "random", "center"}
    assert 2 <= len(shapes) < DRAWN
    assert shapes.masks is not None
    assert metrics["object_share"] == pytest.approx(shapes.masks.mean())

    x = net.preprocess(shapes.images)
    forward = jax.jit(net.model)
    down = jax.jit(jax.grad(lambda i, y: net.model(i[None])[0, y]))
    hits, areas = [], []
    for image, label, mask in zip(x, shapes.labels, shapes.masks, strict=True):
        ranks = np.abs(down(image, label)).max(-1)
        hits.append(mask.reshape(-1)[ranks.argmax()])
        order = np.argsort(-ranks.reshape(-1), kind="stable")
        steps = np.tile(image.reshape(1, 256, 3), (17, 1, 1))
        for step in range(17):
            steps[step, order[16 * step :]] = 0
        out = jax.nn.softmax(forward(steps.reshape(17, 16, 16, 3)))
        values = np.asarray(out)[:, label]
        areas.append((values.sum() - (values[0] + values[-1]) / 2) / 16)
    saliency = metrics["methods"]["saliency"]
    assert saliency["on_object"]["hits"] == np.sum(hits)
    assert saliency["on_object"]["mean"] == pytest.approx(np.mean(hits))
    assert saliency["insertion"]["mean"] == pytest.approx(np.mean(areas), rel=1e-3)
    error = np.std(areas, ddof=1) / np.sqrt(len(areas))
    assert saliency["insertion"]["standard_error"] == pytest.approx(error, rel=1e-2)

    middle = shapes.masks[:, 7:9, 7:9].mean((1, 2))
    assert metrics["methods"]["center"]["on_object"]["hits"] == pytest.approx(
        middle.sum()
    )
    for measures in metrics["methods"].values():
        assert measures["near_object"]["mean"] >= measures["on_object"]["mean"]
        first, last = (measures["insertion"]["curve"][i] for i in (0, -1))
        assert measures["deletion"]["curve"][0] == pytest.approx(last, rel=1e-4)
        assert measures["deletion"]["curve"][-1] == pytest.approx(first, rel=1e-4)
        assert len(measures["insertion"]["fractions"]) == 17


def test_the_figures_and_the_origins_are_there(finished, weights):
    names = ["maps", *(f"overlay_{name}" for name in METHODS)]
    for name in names:
        with Image.open(finished / f"{name}.png") as image:
            assert np.asarray(image.convert("RGB")).std() > 1
    manifest = json.loads((finished / "manifest.json").read_text())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest["digests"]["weights"] == digest
    assert json.loads((finished / "config.json").read_text())["tolerance"] == 1.5


def test_the_table_is_printed_and_the_seed_decides(weights, tmp_path, capsys, finished):
    one, other = tmp_path / "one", tmp_path / "other"
    assert main(run, Options, arguments(weights, one, "--tolerance", "1.5")) == 0
    printed = capsys.readouterr().out
    for file in sorted(finished.iterdir()):
        if file.name not in ("manifest.json", "config.json"):
            assert (one / file.name).read_bytes() == file.read_bytes()
    metrics = metrics_of(one)
    for name, measures in metrics["methods"].items():
        (line,) = re.findall(f"^{name.replace('_', ' ')} .*$", printed, re.MULTILINE)
        assert f"{measures['on_object']['hits']:.0f}/{metrics['images']} = " in line
        assert f"{measures['deletion']['mean']:.3f} ± " in line
    assert "within 1.5 pixels" in printed
    argv = arguments(weights, other, "--seed", "1", "--steps", "3")
    assert main(run, Options, argv) == 0
    methods, changed = metrics["methods"], metrics_of(other)["methods"]
    assert methods["random"]["on_object"] != changed["random"]["on_object"]
    assert methods["deconvnet"]["on_object"] == changed["deconvnet"]["on_object"]
    assert len(changed["center"]["deletion"]["curve"]) == 4


def test_a_table_by_hand():
    hit, area = {"hits": 3.0, "mean": 0.75, "standard_error": 0.25}, 0.5
    curve = {"mean": area, "standard_error": 0.0125}
    measures = {"a": hit, "b": hit, "c": curve, "d": curve}
    assert table({"guided_backprop": measures}, 4, 2.0).splitlines() == [
        "                 on the object       within 2 pixels     "
        "insertion      deletion",
        "guided backprop  3/4 = 75.0 ± 25.0%  3/4 = 75.0 ± 25.0%  0.500 ± 0.013  "
        "0.500 ± 0.013",
    ]


def test_a_mosaic_is_in_rows_of_three():
    pictures = np.arange(1, 5).reshape(4, 1, 1)
    np.testing.assert_array_equal(mosaic(pictures), [[1, 2, 3], [4, 0, 0]])
    assert mosaic(np.ones((6, 4, 5, 3))).shape == (8, 15, 3)


@pytest.mark.parametrize(
    ("change", "code", "parts"),
    [
        (["--images", "0"], 2, ["--images must be 1 or more, not 0"]),
        (["--steps", "0"], 2, ["--steps must be 1 or more, not 0"]),
        (["--steps", "257"], 2, ["steps must be from 1 to the 256 pixels", "257"]),
        (["--tolerance", "-1"], 2, ["--tolerance must be 0 or more, not -1"]),
        (["--tolerance", "nan"], 2, ["--tolerance must be 0 or more, not nan"]),
        (["--seed", "-1"], 2, ["--seed must be 0 or more, not -1"]),
        (["--images", "1"], 2, [" of 1 shapes correctly", "at least 2"]),
        (["--weights", "no/w"], 3, ["no weight file no/w", "experiments.quickstart"]),
        (["--weights", "{folder}"], 3, ["there is no weight file"]),
        (["--weights", "{cut}"], 4, ["cut.safetensors is truncated"]),
        (["--weights", "{pets}"], 2, ["pets.safetensors knows cat, dog", "quickstart"]),
        (["--weights", "{resized}"], 2, ["resized.safetensors", "resizes its images"]),
    ],
)
def test_what_cannot_be_is_one_line(change, code, parts, weights, tmp_path, capsys):
    files = {n: tmp_path / f"{n}.safetensors" for n in ("cut", "pets", "resized")}
    files["cut"].write_bytes(weights.read_bytes()[:-1])
    mean = np.zeros((16, 16, 3), np.float32)
    save(files["pets"], Preprocessing(mean), ("cat", "dog"))
    smaller = Preprocessing(mean[:8, :8], size=(16, 16))
    save(files["resized"], smaller, make_shapes(1).class_names)
    options = dict(zip(*[iter(arguments(weights, tmp_path / "out"))] * 2, strict=True))
    options[change[0]] = change[1].format(**files, folder=tmp_path)
    argv = [word for pair in options.items() for word in pair]
    assert main(run, Options, argv) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    for part in parts:
        assert part in captured.err

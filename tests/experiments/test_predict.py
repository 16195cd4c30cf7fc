"""Classes of photographs and accuracies over test images, end to end."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import zfnet_jax as zf
from experiments import predict
from experiments.common import main
from experiments.predict import Options, run
from zfnet_jax import training
from zfnet_jax.arch import Architecture, Conv, Dense
from zfnet_jax.data import (
    Preprocessing,
    fit_photograph,
    load_photograph,
    make_shapes,
    ten_crop,
)

pytestmark = pytest.mark.usefixtures("compiled_once")

WIDE = Architecture(
    "wide",
    (16, 24),
    (Conv("conv1", 4, kernel=3, padding=1), Dense("logits", 1000, relu=False)),
)
CLASSES = tuple(f"class {index}" for index in range(1000))


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A network of many classes whose images are not square."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    model = zf.ConvNet(WIDE, rngs=nnx.Rngs(0))
    mean = np.random.default_rng(1).uniform(90, 150, (16, 24, 3)).astype(np.float32)
    zf.save(
        path,
        model,
        preprocess=Preprocessing(mean, 1 / 16),
        class_names=CLASSES,
        metadata={},
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five photographs, one cut short, one that is none, and what is no photograph."""
    path = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for index, size in enumerate([(60, 40), (30, 50), (25, 25), (200, 9), (18, 27)]):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(path / f"{index}.png")
    whole = (path / "0.png").read_bytes()
    (path / "2b.png").write_bytes(whole[: len(whole) // 2])
    (path / "4b.jpg").write_text("dear reader")
    (path / "notes.txt").write_text("of no interest")
    return path


def written(out: Path, name: str):
    return json.loads((out / f"{name}.json").read_text())


def by_hand(weights: Path, files: list[Path], ten: bool) -> np.ndarray:
    """Probabilities through the plain path, one photograph after the other."""
    net = zf.load(weights)

    def softmax(crops: np.ndarray) -> np.ndarray:
        powers = np.exp(training.evaluate(net.model, net.preprocess, crops))
        return (powers / powers.sum(1, keepdims=True)).mean(0)

    found = []
    for file in files:
        view = fit_photograph(load_photograph(file), (18, 27) if ten else (16, 24))[
            None
        ]
        found.append(softmax(ten_crop(view, (16, 24))[0] if ten else view))
    return np.array(found)


@pytest.mark.parametrize("ten", [False, True])
def test_a_folder_is_classified_and_the_damaged_are_named(
    wide, folder, ten, tmp_path, capfd
):
    argv = ["--image", str(folder), "--weights", str(wide), "--out", str(tmp_path)]
    argv += ["--batch-size", "2"] + ["--ten-crop"] * ten
    assert main(run, Options, argv) == 0
    files = [folder / f"{index}.png" for index in range(5)]
    expected = by_hand(wide, files, ten)
    found = written(tmp_path, "predictions")
    assert [row["image"] for row in found["images"]] == [str(file) for file in files]
    best = np.argsort(-expected, 1)[:, :5]
    for row, classes, chances in zip(found["images"], best, expected, strict=True):
        assert row["classes"] == [CLASSES[index] for index in classes]
        np.testing.assert_allclose(row["probabilities"], chances[classes], rtol=1e-4)
    damaged = [folder / "2b.png", folder / "4b.jpg"]
    assert [row["image"] for row in found["skipped"]] == [str(x) for x in damaged]
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 2
    for line, file, row in zip(lines, damaged, found["skipped"], strict=True):
        assert line == f"skipped: {row['reason']}" and str(file) in line
    assert f"{files[4]}\n  {expected[4].max():7.2%}  {CLASSES[best[4, 0]]}\n" in (
        captured.out
    )
    assert "5 photographs, 2 skipped" in captured.out
    assert written(tmp_path, "metrics") == {
        "architecture": "wide",
        "view": "ten_crop" if ten else "one_view",
        "images": 5,
        "skipped": 2,
    }
    read = b"".join(file.read_bytes() for file in files)
    digest = hashlib.sha256(read).hexdigest()
    assert written(tmp_path, "manifest")["digests"]["data"] == digest
    with Image.open(tmp_path / "predictions.png") as image:
        assert np.asarray(image.convert("RGB")).std() > 1


def test_one_photograph_and_the_picture_that_was_seen(
    trained, folder, tmp_path, monkeypatch
):
    """The small network halves its images, and so does the picture."""
    drawn = {}
    monkeypatch.setattr(
        predict.Results, "figure", lambda self, name, figure: drawn.update(x=figure)
    )
    weights = trained / "weights.safetensors"
    argv = ["--image", str(folder / "1.png"), "--weights", str(weights)]
    assert main(run, Options, [*argv, "--top", "10", "--out", str(tmp_path)]) == 0
    (row,) = written(tmp_path, "predictions")["images"]
    assert len({*row["classes"]}) == 10
    assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert row["probabilities"] == sorted(row["probabilities"])[::-1]
    net = zf.load(weights)
    view = fit_photograph(load_photograph(folder / "1.png"), (32, 32))[None]
    (picture,) = drawn["x"].axes[0].images
    seen = net.preprocess.pictures(view)[0]
    np.testing.assert_array_equal(picture.get_array(), seen)
    assert seen.shape == (16, 16, 3)


def test_files_may_be_named_at_will(wide, folder, tmp_path):
    """Of more images than are drawn, and more classes than have bars."""
    (many := tmp_path / "many").mkdir()
    names = [b"\xff.png", "写真.png".encode(), b"a\nb.png"]
    names += [b"%d.png" % index for index in range(20)]
    for name in names:
        (
            Path(bytes(many).decode()) / name.decode(errors="surrogateescape")
        ).write_bytes((folder / "2.png").read_bytes())
    out = tmp_path / "out"
    argv = ["--image", str(many), "--weights", str(wide), "--out", str(out)]
    assert main(run, Options, [*argv, "--top", "1000"]) == 0
    rows = written(out, "predictions")["images"]
    assert len(rows) == 23
    assert {Path(row["image"]).name for row in rows} >= {
        "写真.png",
        "a\nb.png",
        "�.png",
    }
    assert [len(row["classes"]) for row in rows] == [1000] * 23
    assert main(run, Options, [*argv, "--limit", "2"]) == 0
    assert len(written(out, "predictions")["images"]) == 2


@pytest.fixture(scope="module")
def evaluated(compiled_once, trained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results") / "new"
    argv = ["--weights", str(trained / "weights.safetensors"), "--out", str(out)]
    argv += ["--limit", "30", "--batch-size", "20", "--ten-crop", "--top", "2"]
    assert main(run, Options, argv) == 0
    return out


def test_accuracies_are_those_of_the_probabilities(evaluated, trained):
    net = zf.load(trained / "weights.safetensors")
    shapes = make_shapes(30, seed=1)
    # 32 pixels of 37 leave two on each side.
    larger = np.pad(shapes.images, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
    crops = ten_crop(larger, (32, 32)).reshape(-1, 32, 32, 3)
    logits = training.evaluate(net.model, net.preprocess, shapes.images)
    powers = np.exp(training.evaluate(net.model, net.preprocess, crops))
    ten = (powers / powers.sum(1, keepdims=True)).reshape(30, 10, -1).mean(1)
    metrics = written(evaluated, "metrics")
    assert metrics["images"] == 30
    for name, scores in (("one_view", logits), ("ten_crop", ten)):
        rank = (scores > scores[np.arange(30), shapes.labels][:, None]).sum(1)
        assert metrics[name] == {
            "top1_accuracy": pytest.approx((rank < 1).mean()),
            "top5_accuracy": pytest.approx((rank < 5).mean()),
        }
    rows = written(evaluated, "predictions")["images"]
    best = np.argsort(-ten, 1)
    for index, row in enumerate(rows):
        assert row["image"] == index
        assert row["true_class"] == shapes.class_names[shapes.labels[index]]
        assert row["classes"] == [shapes.class_names[x] for x in best[index, :2]]
    assert len(rows) == 30


def test_accuracy_by_hand():
    classes, chances = np.array([[1, 0], [2, 0]]), np.array([[0.7, 0.1], [0.5, 0.4]])
    ranked = predict.Ranked(classes, chances)
    assert ranked.accuracy(np.array([1, 2]), 1) == 1
    assert ranked.accuracy(np.array([0, 0]), 1) == 0
    assert ranked.accuracy(np.array([0, 1]), 2) == 0.5


def test_the_same_run_gives_the_same_bytes(evaluated, trained, tmp_path):
    argv = ["--weights", str(trained / "weights.safetensors"), "--out", str(tmp_path)]
    argv += ["--limit", "30", "--batch-size", "20", "--ten-crop", "--top", "2"]
    assert main(run, Options, argv) == 0
    for name in ("predictions.json", "metrics.json", "predictions.png"):
        assert (tmp_path / name).read_bytes() == (evaluated / name).read_bytes(), name


@pytest.mark.parametrize(
    ("argv", "code", "parts"),
    [
        (["--image", "missing.jpg"], 3, ["no photograph missing.jpg"]),
        (["--image", "{folder}/4b.jpg"], 3, ["4b.jpg is not an image"]),
        (["--image", "{folder}/2b.png"], 3, ["2b.png is truncated or damaged"]),
        (["--image", "{empty}"], 3, ["empty holds no images"]),
        (["--image", "{folder}", "--top", "11"], 2, ["--top 11", "10 classes"]),
        (["--image", "{folder}", "--limit", "8"], 2, ["--limit 8", "only 7 images"]),
        (["--image", "{folder}", "--dataset", "shapes"], 2, ["--dataset", "--image"]),
        (["--top", "0"], 2, ["--top must be 1 or more, not 0"]),
        (["--batch-size", "0"], 2, ["--batch-size must be 1 or more, not 0"]),
        (["--limit", "0"], 2, ["--limit must be 1 or more"]),
        (["--limit", "2001"], 2, ["--limit 2001", "only 2,000 images"]),
        (["--weights", "no.safetensors"], 3, ["no.safetensors"]),
        (["--weights", "zfnet32-cifar10", "--dataset", "shapes"], 2, ["other classes"]),
    ],
)
def test_what_cannot_be_is_one_line(
    argv, code, parts, trained, folder, tmp_path, refusal
):
    (tmp_path / "empty").mkdir()
    given = ["--weights", str(trained / "weights.safetensors")]
    argv = [x.format(folder=folder, empty=tmp_path / "empty") for x in argv]
    out = tmp_path / "out"
    line = refusal(run, Options, code, *given, "--out", str(out), *argv)
    for part in parts:
        assert part in line
    assert not [*out.glob("*")]


def test_a_folder_of_damaged_files_alone_is_3(trained, folder, tmp_path, capsys):
    (bad := tmp_path / "bad").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (bad / name).write_text("dear reader")
    argv = ["--image", str(bad), "--weights", str(trained / "weights.safetensors")]
    assert main(run, Options, [*argv, "--out", str(tmp_path / "out")]) == 3
    *skipped, line = capsys.readouterr().err.splitlines()
    assert len(skipped) == 2
    assert line == f"error: none of the 2 files in {bad} can be read"

"""Features over the checkpoints of a run, end to end."""

import json

import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments.common import main
from experiments.evolution import Options, run
from zfnet_jax.analysis.evolution import evolution, motion
from zfnet_jax.data import Preprocessed, make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")

SHAPES = ["--dataset", "shapes", "--limit", "40", "--sample", "20"]


@pytest.fixture(scope="module")
def finished(compiled_once, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "new"
    argv = [*SHAPES, "--run", str(trained), "--out", str(out), "--count", "6"]
    assert main(run, Options, argv) == 0
    return out


def test_the_numbers_are_those_of_the_checkpoints(finished, trained):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["epochs"] == [1, 2, 5]
    assert list(metrics["layers"]) == ["conv1", "conv2"]
    nets = {
        epoch: zf.load(trained / f"epochs/epoch_{epoch:04d}.safetensors")
        for epoch in (1, 2, 5)
    }
    # The paper searches the training images.
    dataset = make_shapes(40, seed=0)
    layers = ["conv1", "conv2"]
    preprocess = nets[1].preprocess
    courses = evolution(nets, Preprocessed(dataset.images, preprocess), layers)
    images = np.asarray(preprocess(dataset.images[:20]))
    moved = motion(nets, images, layers)
    for layer, course in courses.items():
        known = metrics["layers"][layer]
        assert known["jumps"] == pytest.approx(course.jumps[1:].mean(1))
        assert known["motion"] == pytest.approx(np.nanmean(moved[layer], 1))
        for drawn in known["drawn"]:
            assert drawn["images"] == course.images[:, drawn["unit"]].tolist()
            assert not course.dead[:, drawn["unit"]].any()
        with Image.open(finished / f"evolution_{layer}.png") as image:
            assert np.asarray(image.convert("RGB")).std() > 1
    assert (finished / "motion.pdf").is_file() and (finished / "motion.png").is_file()
    manifest = json.loads((finished / "manifest.json").read_text())
    assert {"data", "epoch 1", "epoch 2", "epoch 5"} == set(manifest["digests"])


def test_the_same_seed_writes_the_same(finished, trained, tmp_path):
    argv = [*SHAPES, "--run", str(trained), "--out", str(tmp_path), "--count", "6"]
    assert main(run, Options, argv) == 0
    for name in ("metrics.json", "evolution_conv2.png", "motion.png"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_units_may_be_named(trained, tmp_path):
    argv = [*SHAPES, "--run", str(trained), "--out", str(tmp_path)]
    assert main(run, Options, [*argv, "--layers", "conv2", "--units", "4,0"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [x["unit"] for x in metrics["layers"]["conv2"]["drawn"]] == [4, 0]


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--layers", "conv9"], ["conv9", "conv1 pool1 conv2 fc3 logits"]),
        (
            ["--layers", "conv2", "--units", "6"],
            ["conv2 of small", "(0 to 5)"],
        ),
        (["--units", "1"], ["--units", "--layers"]),
        (["--limit", "0"], ["--limit must be 1 or more, not 0"]),
        (["--sample", "0"], ["--sample"]),
        (["--count", "0"], ["--count"]),
        (["--seed", "-1"], ["--seed"]),
    ],
)
def test_what_cannot_be_is_2_and_one_line(argv, parts, trained, tmp_path, refusal):
    out = ["--run", str(trained), "--out", str(tmp_path / "out")]
    line = refusal(run, Options, 2, *SHAPES, *out, *argv)
    for part in parts:
        assert part in line


def test_one_checkpoint_is_too_few(untrained, tmp_path, refusal):
    argv = ["--run", str(untrained), "--out", str(tmp_path / "out")]
    line = refusal(run, Options, 3, *SHAPES, *argv)
    assert "of 1 epoch," in line and "--keep-epochs" in line


def test_a_run_that_is_not_there_is_3(tmp_path, refusal):
    argv = ["--run", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert "--keep-epochs" in refusal(run, Options, 3, *SHAPES, *argv)


def test_checkpoints_of_different_architectures_are_named(mixed, tmp_path, refusal):
    argv = ["--run", str(mixed), "--out", str(tmp_path / "out"), "--layers", "conv2"]
    line = refusal(run, Options, 2, *SHAPES, *argv)
    assert "different architectures" in line

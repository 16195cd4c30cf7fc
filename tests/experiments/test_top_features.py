"""The strongest activations of units over shapes, end to end."""

import json

import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments.common import main
from experiments.top_features import Options, run
from tests.networks import save
from zfnet_jax.data import Preprocessed, make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")

SHAPES = ["--dataset", "shapes", "--limit", "60"]


@pytest.fixture(scope="module")
def finished(compiled_once, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "new"
    weights = str(trained / "weights.safetensors")
    argv = [*SHAPES, "--weights", weights, "--out", str(out), "--count", "3"]
    assert main(run, Options, argv) == 0
    return out


def test_the_numbers_are_those_of_the_search(finished, trained):
    metrics = json.loads((finished / "metrics.json").read_text())
    net = zf.load(trained / "weights.safetensors")
    dataset = make_shapes(60, seed=1)
    images = Preprocessed(dataset.images, net.preprocess)
    tops = zf.top_activations(net, images, ["conv1", "conv2"], labels=dataset.labels)
    assert list(metrics["layers"]) == ["conv1", "conv2"] and metrics["images"] == 60
    assert metrics["layers"]["conv2"]["dead"] == [1]
    for layer, top in tops.items():
        known = metrics["layers"][layer]
        assert known["median_selectivity"] == pytest.approx(
            np.nanmedian(top.selectivity)
        )
        shares = []
        for images in top.images[~top.dead]:
            shares.append(np.bincount(dataset.labels[images]).max() / 9)
        assert known["mean_share_of_one_class"] == pytest.approx(np.mean(shares))
        most = np.mean([share >= 0.75 for share in shares])
        assert known["three_quarters_of_one_class"] == pytest.approx(most)
        assert known["median_active"] == pytest.approx(np.median(top.active))
        assert len(known["drawn"]) == 3
        for drawn in known["drawn"]:
            unit = drawn["unit"]
            assert not top.dead[unit], "a dead unit is drawn"
            assert drawn["images"] == top.images[unit].tolist()
            assert drawn["positions"] == top.positions[unit].tolist()
            names = [dataset.class_names[dataset.labels[x]] for x in drawn["images"]]
            assert drawn["classes"] == names
        with Image.open(finished / f"top_{layer}.png") as image:
            assert np.asarray(image.convert("RGB")).std() > 1


def test_the_seed_chooses_and_the_same_seed_writes_the_same(
    finished, trained, tmp_path
):
    argv = [*SHAPES, "--weights", str(trained / "weights.safetensors")]
    argv += ["--count", "3", "--layers", "conv1,conv2"]
    names = ("metrics.json", "top_conv1.png", "top_conv2.png")
    drawn = set()
    for seed in ("0", "1", "2"):
        out = tmp_path / seed
        assert main(run, Options, [*argv, "--seed", seed, "--out", str(out)]) == 0
        same = [(out / x).read_bytes() == (finished / x).read_bytes() for x in names]
        assert all(same) or seed != "0"
        metrics = json.loads((out / "metrics.json").read_text())
        drawn.add(tuple(x["unit"] for x in metrics["layers"]["conv2"]["drawn"]))
    assert len(drawn) > 1


def test_units_may_be_named_dead_ones_too(trained, tmp_path):
    weights = str(trained / "weights.safetensors")
    argv = [*SHAPES, "--weights", weights, "--layers", "conv2", "--units", "1,4"]
    assert main(run, Options, [*argv, "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [x["unit"] for x in metrics["layers"]["conv2"]["drawn"]] == [1, 4]


@pytest.mark.parametrize(
    ("argv", "code", "parts"),
    [
        (["--layers", "conv9"], 2, ["conv9", "conv1 pool1 conv2 fc3 logits"]),
        (
            ["--layers", "conv2", "--units", "6"],
            2,
            ["conv2 of small", "(0 to 5)"],
        ),
        (["--units", "1"], 2, ["--units", "--layers"]),
        (["--layers", "conv1", "--units", "x"], 2, ["--units x", "whole numbers"]),
        (["--limit", "0"], 2, ["--limit must be 1 or more, not 0"]),
        (["--limit", "2001"], 2, ["--limit 2001", "only 2,000 images"]),
        (["--top", "0"], 2, ["--top"]),
        (["--count", "-1"], 2, ["--count"]),
        (["--seed", "-1"], 2, ["--seed"]),
        (["--weights", "no.safetensors"], 3, ["no.safetensors"]),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], 3, ["nowhere"]),
    ],
)
def test_what_cannot_be_is_one_line(argv, code, parts, trained, tmp_path, refusal):
    weights = ["--weights", str(trained / "weights.safetensors")]
    out = ["--out", str(tmp_path / "out")]
    line = refusal(run, Options, code, *SHAPES, *weights, *out, *argv)
    for part in parts:
        assert part in line


def test_a_folder_that_cannot_be_written_is_2(tmp_path, refusal):
    (tmp_path / "file").write_text("mine")
    line = refusal(run, Options, 2, *SHAPES, "--out", str(tmp_path / "file"))
    assert "cannot be written" in line and (tmp_path / "file").read_text() == "mine"


def test_a_layer_of_dead_units_cannot_be_drawn(tmp_path, refusal):
    file = tmp_path / "weights.safetensors"
    save(file, 0)
    net = zf.load(file)
    net.model.conv2.bias[...] = net.model.conv2.bias[...] - 1e6
    zf.save(
        file,
        net,
        preprocess=net.preprocess,
        class_names=net.class_names,
        metadata={},
    )
    argv = [*SHAPES, "--weights", str(file), "--layers", "conv2"]
    line = refusal(run, Options, 2, *argv, "--out", str(tmp_path / "out"))
    assert "all units of conv2 are dead" in line

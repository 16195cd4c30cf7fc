"""Layers probed on shapes, end to end."""

import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import zfnet_jax as zf
from experiments.common import main
from experiments.probe import Options, run
from zfnet_jax.analysis.probe import TOLERANCE, balance_order, probe_features
from zfnet_jax.data import make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def argv(trained):
    few = ["--limit", "40", "--repeats", "2", "--penalties", "0.1,0.001", "--seed", "3"]
    return ["--weights", str(trained / "weights.safetensors"), *few]


@pytest.fixture(scope="module")
def finished(compiled_once, argv, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "new"
    assert main(run, Options, [*argv, "--out", str(out)]) == 0
    return out


def test_the_numbers_are_those_of_the_probes(finished, trained):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["images"] == {"train": 40, "validation": 40, "test": 40}
    assert metrics["chance"] == 1 / 10
    assert set(metrics["probes"]) == {"trained", "random"}
    net = zf.load(trained / "weights.safetensors")
    random = zf.ConvNet(net.model.arch, rngs=nnx.Rngs(3))
    shapes = make_shapes(2_000, seed=1)
    for which, model, repeats in (("trained", net.model, 2), ("random", random, 1)):
        by_layer = metrics["probes"][which]
        assert set(by_layer) == {"pixels", "conv1", "conv2", "fc3"}
        order = balance_order(shapes.labels, 3 + repeats - 1)[:120]
        labels = shapes.labels[order]
        images = net.preprocess(shapes.images[order])
        features = np.asarray(model.features(images).features["conv2"])
        probes = probe_features(
            features.reshape(120, -1), labels, 40, 40, penalties=[0.1, 0.001]
        )
        for classifier, probe in probes.items():
            layer = by_layer["conv2"][classifier]
            each = layer["accuracy_of_each"]
            assert len(each) == repeats
            assert each[-1] == pytest.approx(probe.accuracy)
            assert layer["penalty_of_each"][-1] == probe.penalty
            assert layer["accuracy"] == pytest.approx(np.mean(each))
            assert layer["objective_gap"] <= TOLERANCE
        if which == "trained":
            logits = np.asarray(model(images[80:]))
            right = (logits.argmax(1) == labels[80:]).mean()
            assert metrics["network_accuracy_of_each"][1] == pytest.approx(right)
    pixels = [network["pixels"]["svm"] for network in metrics["probes"].values()]
    assert pixels[0]["accuracy_of_each"][0] == pixels[1]["accuracy_of_each"][0]
    with Image.open(finished / "probe.png") as image:
        assert np.asarray(image.convert("RGB")).std() > 1


def test_the_same_seed_gives_the_same_bytes(finished, argv, tmp_path):
    assert main(run, Options, [*argv, "--out", str(tmp_path)]) == 0
    for name in ("metrics.json", "probe.png", "probe.pdf"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_layers_may_be_chosen(argv, tmp_path):
    more = ["--layers", "logits,pool1", "--repeats", "1"]
    assert main(run, Options, [*argv, *more, "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["probes"]["trained"]) == {"pixels", "pool1", "logits"}


@pytest.mark.parametrize(
    ("more", "code", "parts"),
    [
        (["--images", "5000"], 2, ["--images 5000", "2000"]),
        (["--train-images", "9"], 2, ["9 images to train", "10 classes"]),
        (["--limit", "5"], 2, ["5 images to train", "10 classes", "--limit"]),
        (["--validation-images", "0"], 2, ["--validation-images must be 1"]),
        (["--repeats", "0"], 2, ["--repeats"]),
        (["--seed", "-1"], 2, ["--seed"]),
        (["--penalties", ""], 2, ["--penalties", "0.1,0.01"]),
        (["--penalties", "1,0"], 2, ["--penalties 1,0", "1e-9 to 1e9"]),
        (["--layers", "conv9"], 2, ["conv9", "conv1 pool1 conv2 fc3 logits"]),
        (["--weights", "no.safetensors"], 3, ["no.safetensors"]),
    ],
)
def test_bad_arguments_fail_in_one_line(more, code, parts, trained, tmp_path, refusal):
    given = ["--weights", str(trained / "weights.safetensors")]
    line = refusal(run, Options, code, *given, "--out", str(tmp_path / "out"), *more)
    for part in parts:
        assert part in line
    assert not list(tmp_path.glob("out/*"))

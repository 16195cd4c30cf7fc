"""Layers probed on shapes, end to end."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import zfnet_jax as zf
from experiments.probe import probe
from zfnet_jax.analysis.probe import TOLERANCE, balance_order, probe_features
from zfnet_jax.data import make_shapes

FEW = ["--limit", 40, "--penalties", 0.1, 0.001]


def test_metrics_are_those_of_the_library(measure, weights):
    metrics, out = measure(probe, "--weights", weights, *FEW, "--seed", 3)
    assert metrics["images"] == {"train": 40, "validation": 40, "test": 40}
    assert metrics["chance"] == 1 / 10
    net, shapes = zf.load(weights), make_shapes(2_000, seed=1)
    random = zf.ConvNet(net.model.arch, rngs=nnx.Rngs(3))
    for which, model, repeats in (("trained", net.model, 2), ("random", random, 1)):
        by_layer = metrics["probes"][which]
        assert set(by_layer) == {"pixels", "conv1", "conv2", "fc3"}
        order = balance_order(shapes.labels, 3 + repeats - 1)[:120]
        labels, images = shapes.labels[order], net.preprocess(shapes.images[order])
        features = np.asarray(model.features(images).features["conv2"])
        probes = probe_features(
            features.reshape(120, -1), labels, 40, 40, penalties=[0.1, 0.001]
        )
        for classifier, result in probes.items():
            layer = by_layer["conv2"][classifier]
            each = layer["accuracy_of_each"]
            assert len(each) == repeats
            assert each[-1] == pytest.approx(result.accuracy)
            assert layer["penalty_of_each"][-1] == result.penalty
            assert layer["accuracy"] == pytest.approx(np.mean(each))
            assert layer["objective_gap"] <= TOLERANCE
        if which == "trained":
            correct = np.asarray(model(images[80:])).argmax(1) == labels[80:]
            assert metrics["network_accuracy_of_each"][1] == pytest.approx(
                correct.mean()
            )
    pixels = [network["pixels"]["svm"] for network in metrics["probes"].values()]
    assert pixels[0]["accuracy_of_each"][0] == pixels[1]["accuracy_of_each"][0]
    assert (out / "probe.png").exists()


def test_classes_may_differ_from_those_of_any_model(measure):
    argv = ["--model", "tests.networks:small_network", "--dataset", "shapes", *FEW]
    metrics, _ = measure(probe, *argv, "--repeats", 1, "--layers", "conv1", "fc")
    assert metrics["network_accuracy_of_each"] is None
    assert set(metrics["probes"]["random"]) == {"pixels", "conv1", "fc"}


def test_a_folder_may_have_some_of_the_classes(measure, weights, tmp_path):
    shapes, chosen = make_shapes(100, seed=1), [0, 9]
    for index in np.flatnonzero(np.isin(shapes.labels, chosen)):
        folder = tmp_path / shapes.class_names[shapes.labels[index]]
        folder.mkdir(exist_ok=True)
        Image.fromarray(shapes.images[index]).save(folder / f"{index}.png")
    argv = ["--weights", weights, "--image", tmp_path, "--layers", "fc3"]
    parts = ["--train", 8, "--validation", 4, "--test", 6, "--repeats", 1]
    metrics, _ = measure(probe, *argv, *parts)
    assert metrics["chance"] == 1 / 2
    net = zf.load(weights)
    images = net.load_images(tmp_path)
    kinds = np.array([shapes.class_names.index(x) for x in images.class_names])
    tested = balance_order(images.labels, 0)[12:18]
    correct = np.asarray(net(images[tested])).argmax(1) == kinds[images.labels[tested]]
    assert correct.any()
    assert metrics["network_accuracy_of_each"] == [pytest.approx(correct.mean())]


def test_impossible_requests_are_refused(refuse, weights, photographs):
    given = ["--weights", weights]
    for argv, message in (
        (["--test", 5000], "of 2,000 images"),
        (["--train", 9], "9 images to train cannot cover all 10 classes"),
        (
            ["--penalties", 1, 0],
            "--penalties 1.0 0.0: give at least one, each from 1e-9 to 1e9",
        ),
        (["--image", photographs], "give a subfolder for each"),
    ):
        assert message in refuse(probe, 2, *given, *argv)

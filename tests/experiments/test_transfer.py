"""Transfer to shapes and to folders, end to end."""

import shutil

import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments.transfer import NAMES, SCRATCH, transfer
from zfnet_jax.analysis.transfer import train_from_scratch
from zfnet_jax.analysis.transfer import transfer as transfer_features
from zfnet_jax.data import make_shapes

FEW = ["--per-class", 3, "--penalties", 0.1, 0.001, "--draws", 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of two classes of shapes, named as the archive of Caltech-256."""
    root, shapes = tmp_path_factory.mktemp("data"), make_shapes(80, (24, 30), seed=1)
    for index in np.flatnonzero(np.isin(shapes.labels, [0, 9])):
        name = shapes.class_names[shapes.labels[index]]
        path = root / "256_ObjectCategories" / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shapes.images[index]).save(path)
    return root / "256_ObjectCategories"


def test_metrics_are_those_of_the_library(measure, weights, folder, capsys):
    argv = ["--weights", weights, "--images", folder, *FEW, "--seed", 3]
    metrics, out = measure(transfer, *argv, "--scratch-steps", 4)
    net = zf.load(weights)
    images = net.load_images(folder)
    how = {"per_class": [3], "draws": 1, "seed": 3}
    labels = images.labels
    expected = transfer_features(net, images, labels, penalties=[0.1, 0.001], **how)
    for classifier, name in NAMES.items():
        accuracy = metrics["accuracy"][name]["3"]["accuracy_of_each"]
        assert accuracy == expected.accuracies[classifier].ravel().tolist()
        assert metrics["penalties"][name] == expected.penalties[classifier].tolist()
    scratch = train_from_scratch(
        net.model.arch, images.pictures, labels, recipe=SCRATCH, steps=4, **how
    )
    accuracy = metrics["accuracy"]["from scratch"]["3"]["accuracy_of_each"]
    assert accuracy == scratch.ravel().tolist()
    assert metrics["layer"] == "fc3" and metrics["classes"] == 2
    assert metrics["test_images"] == len(images) - 6
    # The folder has the name of the paper's, whose numbers stand beside.
    assert metrics["paper_percent"]["softmax"]["15"] == 65.7
    assert "paper, softmax" in capsys.readouterr().out
    assert (out / "transfer.png").exists()


def test_any_network_has_features(measure, capsys):
    argv = ["--model", "tests.networks:small_network", "--layer", "conv1"]
    few = ["--per-class", 1, "--penalties", 0.1, "--draws", 1, "--test-per-class", 5]
    metrics, _ = measure(transfer, *argv, *few)
    assert set(metrics["accuracy"]) == {"SVM", "softmax"}
    assert metrics["scratch_steps"] is None and metrics["test_images"] == 50
    assert "paper_percent" not in metrics
    assert "small_network is not a ConvNet: none is" in capsys.readouterr().out


def test_impossible_requests_are_refused(
    refuse, weights, folder, photographs, tmp_path
):
    given = ["--weights", weights]
    shutil.copytree(folder, tmp_path / "kinds")
    (tmp_path / "kinds" / "lamp").mkdir()
    for code, argv, message in (
        (2, ["--images", photographs], "give a subfolder for each"),
        (2, ["--images", folder, "--dataset", "shapes"], "give one"),
        (2, ["--images", folder], "--per-class 30: disk has 8 images"),
        (2, ["--layer", "conv9"], "no layer 'conv9'"),
        (2, ["--per-class"], "--per-class: give at least one value"),
        (2, ["--per-class", 2, 2], "--per-class 2 2: give different whole numbers"),
        (2, ["--per-class", 2, "--penalties"], "--penalties: give at least one value"),
        (2, ["--per-class", 2, "--penalties", -1], "--penalties -1.0: give"),
        (3, ["--dataset", "caltech101", "--data-dir", folder], "tfds build caltech101"),
        (3, ["--images", tmp_path / "kinds"], "lamp holds no images: add some"),
        (3, ["--images", folder / "nowhere"], "there is no photograph or folder"),
    ):
        assert message in refuse(transfer, code, *given, *argv)

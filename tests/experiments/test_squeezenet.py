"""SqueezeNet as a model of every command; its projections: tests/test_relu_rules.py."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from jax import lax

from experiments.project import project
from experiments.squeezenet import IMAGE_SHAPE, LAYERS, squeezenet, v1_0
from tests.networks import random_squeezenet_weights
from tests.references.make_squeezenet import PHOTOGRAPH, WEIGHTS
from zfnet_jax.networks import network


@pytest.mark.skipif(
    not (WEIGHTS.exists() and PHOTOGRAPH.exists()),
    reason="needs the weights and photographs of the folder shared",
)
def test_photographs_are_recognized():
    with (PHOTOGRAPH.parent / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[::12]
    net = v1_0(str(WEIGHTS))
    files = [PHOTOGRAPH.with_name(row["file"]) for row in rows]
    images = np.concatenate([net.load_images(file)[:] for file in files])
    guesses = np.asarray(net(images)).argmax(-1)
    labels = np.array([int(row["class_index"]) for row in rows])
    # 67% of a larger sample.
    assert (guesses == labels).mean() >= 0.5


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    safetensors.numpy.save_file(random_squeezenet_weights(), path)
    return path


def test_project_measures_what_the_model_says(measure, file, photographs):
    argv = ["--model", "experiments.squeezenet:v1_0", "--weights", file]
    metrics, out = measure(
        project, *argv, "--image", photographs, "--layers", "pool1", "--count", 2
    )
    picture = v1_0(str(file)).load_images(photographs).pictures[0]
    # By hand, from the weights as Caffe has them: blue first.
    image = picture[..., ::-1].astype(np.float32) - np.array([104, 117, 123], "f4")
    kernel = random_squeezenet_weights()["conv1.weight"].transpose(2, 3, 1, 0)
    conv1 = lax.conv_general_dilated(
        jnp.asarray(image[None]),
        jnp.asarray(kernel),
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    maps = np.asarray(nnx.max_pool(nnx.relu(conv1), (3, 3), (2, 2)))[0]
    strongest = np.sort(maps.max((0, 1)))[::-1]
    for row, value in zip(metrics["layers"]["pool1"], strongest, strict=False):
        y, x = row["position"]
        assert row["activation"] == pytest.approx(value, rel=1e-5)
        assert maps[y, x, row["unit"]] == pytest.approx(value, rel=1e-5)
        # 3 x 3 filters of 7 x 7 pixels, 2 apart.
        assert row["box"] == [4 * y, 4 * x, 4 * y + 11, 4 * x + 11]
    assert (out / "projections_pool1.png").stat().st_size > 5_000


def test_layers_have_the_shapes_of_the_paper():
    def read(height):
        net = network(squeezenet, (height, *IMAGE_SHAPE[1:]), params=weights)
        return {layer: net.layer(layer).shape for layer in LAYERS}

    weights = random_squeezenet_weights()
    assert sum(x.size for x in weights.values()) == 1_248_424
    sizes = read(227)
    assert sizes["conv1"] == (111, 111, 96) and sizes["pool1"] == (55, 55, 96)
    assert sizes["fire4"] == (55, 55, 256) and sizes["fire8"] == (27, 27, 512)
    assert sizes["fire9"] == (13, 13, 512) and sizes["logits"] == (1000,)
    # Rounded up, as in Caffe: 229 gives 112 and 55.5.
    assert read(229)["pool1"] == (56, 55, 96)


def test_other_weights_are_refused(refuse, tmp_path):
    weights = random_squeezenet_weights()
    del weights["conv1.bias"]
    safetensors.numpy.save_file(weights, tmp_path / "other.safetensors")
    argv = ["--model", "experiments.squeezenet:v1_0", "--weights"]
    line = refuse(project, 2, *argv, tmp_path / "other.safetensors")
    assert "conv1.bias differs" in line

"""Projections of an image's units, end to end."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from jax import lax

import zfnet_jax as zf
from experiments.project import RULES, project
from tests.networks import load_squeezenet, random_tensors, small_network
from zfnet_jax.arch import ZFNET32_WIDE
from zfnet_jax.data import TORCHVISION, Photographs
from zfnet_jax.imagenet.squeezenet import V1_0_CAFFE
from zfnet_jax.viz.contrast import measure_scale


@pytest.fixture(scope="module")
def photo(photographs):
    return photographs / "1.png"


@pytest.fixture(scope="module")
def finished(measure, weights, photo):
    argv = ["--weights", weights, "--image", photo, "--count", 3]
    return measure(project, *argv, "--layers", "logits", "conv2")


def test_the_strongest_units_are_projected(finished, weights, photo):
    metrics, out = finished
    net = zf.load(weights)
    images = net.images(net.load_images(photo))
    activations = net.activations(images)
    assert list(metrics["layers"]) == ["conv2", "logits"]
    assert metrics["photograph_hw"] == [40, 50] and metrics["input_hw"] == [16, 16]
    for layer, rows in metrics["layers"].items():
        maps = activations[layer][0]
        maxima = maps.reshape(-1, maps.shape[-1]).max(0)
        units = [row["unit"] for row in rows]
        assert units == np.argsort(-maxima)[:3].tolist()
        for row in rows:
            assert row["activation"] == pytest.approx(maxima[row["unit"]], rel=1e-5)
            if layer == "conv2":
                field = zf.receptive_field(net.model.arch, layer)
                assert maps[*row["position"], row["unit"]] == maxima[row["unit"]]
                assert row["box"] == list(field.box(*row["position"], clip=False))
            for rule in RULES:
                pixels = zf.project(net, images, layer, row["unit"], rule=rule).pixels
                scale = measure_scale(pixels)
                assert row["scales"][rule] == pytest.approx(scale, rel=1e-4)
        assert (out / f"projections_{layer}.png").stat().st_size > 5_000


def test_units_of_a_layer_may_share_a_scale(measure, weights, photo):
    argv = ["--weights", weights, "--image", photo, "--layers", "conv1"]
    (alone, _), (together, _) = (
        measure(project, *argv, "--contrast", "max", "--scale", scale)
        for scale in ("patch", "layer")
    )
    for rule in RULES:
        # conv1 has 4 units, fewer than --count.
        scales = [row["scales"][rule] for row in alone["layers"]["conv1"]]
        shared = [row["scales"][rule] for row in together["layers"]["conv1"]]
        assert shared == [max(scales)] * 4


def test_any_model_is_projected_on_a_padded_photograph(measure, photo):
    argv = ["--model", "tests.networks:small_network", "--image", photo]
    metrics, _ = measure(project, *argv, "--fit", "pad", "--units", 3)
    (row,) = metrics["layers"]["conv2"]
    net = small_network()
    (picture,) = net.load_images(photo, "pad").pictures[:]
    # 40 x 50 pixels leave two gray rows of 24 on either side.
    assert (picture[[0, 1, 22, 23]] == 128).all() and (picture[2:22] != 128).any()
    images = net.images(net.load_images(photo, "pad"))
    maps = net.activations(images, "conv2")["conv2"]
    assert row["unit"] == 3
    assert row["activation"] == pytest.approx(maps[..., 3].max(), rel=1e-5)


def test_bare_weights_are_normalized_as_torchvision(measure, refuse, photo, tmp_path):
    """0 to 1, less the mean, over the deviation, channel by channel."""
    shipped = zf.load("zfnet32-cifar10")
    described, bare = tmp_path / "described.safetensors", tmp_path / "bare.safetensors"
    zf.save(
        described,
        shipped,
        preprocess=shipped.preprocess,
        class_names=shipped.class_names,
        metadata={},
    )
    tensors = safetensors.numpy.load_file(described)
    del tensors["preprocessing.mean"]
    tensors["fc8.weight"], tensors["fc8.bias"] = np.eye(5, 256), np.zeros(5)
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    safetensors.numpy.save_file(tensors, bare)

    argv = ["--image", photo, "--layers", "logits", "--weights"]
    known = ["--arch", "zfnet32-wide", "--num-classes", 5]
    rows = measure(project, *argv, bare, *known)[0]["layers"]["logits"]
    model = zf.load_weights(bare, ZFNET32_WIDE, num_classes=5)
    pixels = Photographs(photo, (32, 32, 3), TORCHVISION).pictures[:] / 255
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    logits = model(((pixels - mean) / deviation).astype(np.float32))[0]
    assert [row["unit"] for row in rows] == np.argsort(-logits, stable=True).tolist()
    values = [row["activation"] for row in rows]
    np.testing.assert_allclose(values, -np.sort(-logits), rtol=1e-3, atol=1e-5)

    assert "give --arch" in refuse(project, 2, *argv, bare)
    assert "expected (10, 256)" in refuse(project, 2, *argv, bare, *known[:2])
    assert "omit --arch" in refuse(project, 2, *argv, described, *known[:2])


def test_squeezenet_is_projected_as_computed_by_hand(measure, photographs, tmp_path):
    file, tensors = tmp_path / "random.safetensors", random_tensors(V1_0_CAFFE.shapes)
    safetensors.numpy.save_file(tensors, file)
    argv = ["--model", "tests.networks:load_squeezenet", "--weights", file]
    argv += ["--image", photographs, "--layers", "pool1", "--count", 2]
    metrics, out = measure(project, *argv)
    picture = load_squeezenet(str(file)).load_images(photographs).pictures[0]
    # From the weights as Caffe has them: blue first.
    image = picture[..., ::-1].astype(np.float32) - np.array([104, 117, 123], "f4")
    kernel = jnp.asarray(tensors["conv1.weight"].transpose(2, 3, 1, 0))
    order = ("NHWC", "HWIO", "NHWC")
    conv1 = lax.conv_general_dilated(
        jnp.asarray(image[None]), kernel, (2, 2), "VALID", dimension_numbers=order
    )
    conv1 = nnx.relu(conv1 + tensors["conv1.bias"])
    maps = np.asarray(nnx.max_pool(conv1, (3, 3), (2, 2)))[0]
    strongest = np.sort(maps.max((0, 1)))[::-1]
    for row, value in zip(metrics["layers"]["pool1"], strongest, strict=False):
        y, x = row["position"]
        assert row["activation"] == pytest.approx(value, rel=1e-5)
        assert maps[y, x, row["unit"]] == pytest.approx(value, rel=1e-5)
        # 3 x 3 filters of 7 x 7 pixels, 2 apart.
        assert row["box"] == [4 * y, 4 * x, 4 * y + 11, 4 * x + 11]
    assert (out / "projections_pool1.png").stat().st_size > 5_000


def test_without_a_photograph_it_takes_the_first_test_image(measure, weights):
    metrics, _ = measure(project, "--weights", weights, "--units", 0)
    assert metrics["image"] == "test image 0"
    assert [row["unit"] for row in metrics["layers"]["conv2"]] == [0]

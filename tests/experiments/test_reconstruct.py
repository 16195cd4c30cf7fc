"""Photographs sent back from the deepest map, end to end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from PIL import Image

import zfnet_jax as zf
from experiments.inputs import NetworksRun, name_networks
from experiments.reconstruct import find_layer, reconstruct, send_down
from tests import networks
from tests.networks import save
from zfnet_jax.analysis.sanity import find_edges
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.data import SHAPES, Preprocessing
from zfnet_jax.deconvnet import follow_signal
from zfnet_jax.metrics import importance, sharpness, spearman
from zfnet_jax.viz.contrast import measure_scale

NORMED = Architecture(
    "normed",
    (32, 32),
    (
        Conv("conv1", 4, kernel=3, padding=1),
        MaxPool("pool1", kernel=2, stride=2),
        ContrastNorm("norm1", alpha=0.3),
        Conv("conv2", 5, kernel=3, padding=1),
        MaxPool("pool2", kernel=2, stride=2),
        Dense("logits", len(SHAPES), relu=False),
    ),
)
STAGES = ["start", "unpool 2", "conv2", "unpool 1", "conv1 = pixels"]


@pytest.fixture(scope="module")
def normed(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("normed") / "weights.safetensors"
    save(path, 3, NORMED)
    return str(path)


def best_classes(net: zf.networks.Network, image: np.ndarray) -> tuple[Any, Any]:
    chances = np.asarray(jax.nn.softmax(net(image)[0]))
    order = np.argsort(-chances)[:5]
    assert net.class_names is not None
    return [net.class_names[label] for label in order], chances[order]


def check(entry: dict[str, Any], net, picture: np.ndarray, image: np.ndarray) -> None:
    """Compare what was measured with the library's own functions."""
    names, chances = best_classes(net, image)
    assert entry["classes"] == names
    np.testing.assert_allclose(entry["probabilities"], chances, rtol=1e-4)
    layer = entry["layer"]
    maps = net.activations(image, layer)[layer]
    strongest = entry["strongest"]
    place = 0, *strongest["position"], strongest["unit"]
    assert strongest["activation"] == pytest.approx(maps.max(), rel=1e-5)
    assert maps[place] == maps.max()
    alone = np.zeros_like(maps)
    alone[place] = maps.max()
    for signal, part in ((maps, entry["all"]), (alone, strongest)):
        signals, pixels = follow_signal(net, image, layer, signal)
        pixels = np.asarray(pixels)
        sums = [signal.sum(-1)]
        sums += [np.asarray(x).sum(-1) for n, x in signals.items() if n != "norm1"]
        scales = [stage["scale"] for stage in part["stages"]]
        expected = [measure_scale(x) for x in (*sums, pixels)]
        np.testing.assert_allclose(scales, expected, rtol=1e-4)
        both = pixels, picture[None].astype(np.float32)
        check_measures(part, *both)
        if "reduced" in part:
            check_measures(part["reduced"], *map(halve, both))


def check_measures(measures: dict[str, Any], *both: np.ndarray) -> None:
    one, other = (sharpness(x)[0] for x in both)
    assert measures["sharpness"] == pytest.approx(one, rel=1e-4)
    assert measures["photograph_sharpness"] == pytest.approx(other, rel=1e-4)
    assert measures["sharpness_ratio"] == pytest.approx(one / other, rel=1e-4)
    edges = (np.asarray(importance(find_edges(x))).ravel() for x in both)
    assert measures["edge_correlation"] == pytest.approx(spearman(*edges), abs=1e-3)


def halve(images: np.ndarray) -> np.ndarray:
    """Reduce 32 x 32 pixels to 16 x 16 by triangles four pixels wide."""
    weights = np.maximum(
        0, 1 - np.abs(2 * np.arange(16)[:, None] + 0.5 - np.arange(32)) / 2
    )
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("iy,jx,nyxc->nijc", weights, weights, images)


def test_every_network_gets_every_photograph(
    measure, normed, weights, photographs, capsys
):
    """The larger network also gets the pixels of the smaller one."""
    argv = ["--image", photographs, "--limit", 2, "--weights", normed]
    metrics, out = measure(reconstruct, *argv, "--weights", weights)
    assert list(metrics["photographs"]) == ["0.png", "1.png"]
    for name, entries in metrics["photographs"].items():
        assert [x["network"] for x in entries] == ["normed", "normed", "small"]
        assert [x["reduced_to"] for x in entries] == [None, [16, 16], None]
        for file, entry in zip((normed, normed, weights), entries, strict=True):
            net = zf.load(file)
            (picture,) = net.load_images(photographs / name).pictures.convert(
                [0], np.asarray
            )
            if entry["reduced_to"]:
                small = Image.fromarray(picture).resize((16, 16), 2)
                picture = np.asarray(small.resize((32, 32), 2))
            assert isinstance(net.preprocess, Preprocessing)
            shown = net.preprocess.pictures(picture[None])[0]
            check(entry, net, shown, net.preprocess(picture[None]))
        assert ["reduced" in x["all"] for x in entries] == [True, True, False]
        names = [stage["name"] for stage in entries[0]["all"]["stages"]]
        assert names == STAGES
        assert (out / f"reconstruction_{name[0]}-png.png").stat().st_size > 10_000
    lines = capsys.readouterr().out.splitlines()
    small, reduced = (
        np.array([values(x) for x in metrics["photographs"].values()])
        for values in (
            lambda x: x[2]["all"]["sharpness"],
            lambda x: x[0]["all"]["reduced"]["sharpness"],
        )
    )
    (row,) = (x for x in lines if x.startswith("small"))
    error = np.abs(np.diff(small)).item() / 2
    assert f"  {small.mean():.2f} ± {error:.2f}  " in row
    # The last rows are the result folder, and the differences of both.
    *_, row, _, _ = lines
    difference = reduced - small
    error = np.abs(np.diff(difference)).item() / 2
    assert row.startswith("normed, 32 x 32 pixels, reduced to 16 x 16")
    assert f"  {difference.mean():.2f} ± {error:.2f}  " in row


def test_normalization_can_be_left_out(measure, normed, weights, photographs, refuse):
    argv = ["--image", photographs / "2.png", "--norm", "off", "--weights"]
    metrics, _ = measure(reconstruct, *argv, weights, "--weights", normed)
    # The first network has none, and the second also gets the photograph reduced.
    other, *entries = metrics["photographs"]["2.png"]
    assert other["network"] == "small"
    assert [entry["norm"] for entry in (other, *entries)] == "on on on off off".split()
    entries = entries[::2]
    net = zf.load(normed)
    arch = zf.ablate(NORMED, remove=["norm1"])
    parts = {name: getattr(net.model, name) for name in arch.kernel_shapes()}
    plain = networks.random_model(arch)
    for name, part in parts.items():
        getattr(plain, name).kernel[...] = part.kernel[...]
        getattr(plain, name).bias[...] = part.bias[...]
    plain = zf.network(plain, class_names=net.class_names)
    images = net.load_images(photographs / "2.png")
    for entry, one in zip(entries, (net, plain), strict=True):
        check(entry, one, images.pictures[0], images[[0]])
    assert entries[0]["probabilities"] != entries[1]["probabilities"]
    assert "can be left out of small" in refuse(reconstruct, 2, *argv, weights)


def test_a_layer_without_maps_is_refused(weights, photographs, refuse):
    argv = ["--image", photographs, "--weights", weights, "--layer", "fc3"]
    assert "give one of conv1 pool1 conv2" in refuse(reconstruct, 2, *argv)


def test_without_photographs_all_networks_get_those_of_the_first(weights):
    first, second = NetworksRun(weights=(weights, "zfnet32-cifar10")).split()
    assert first.dataset_name == second.dataset_name == "shapes"
    assert name_networks([first, second, first]) == [
        "small (1)",
        "zfnet32-wide",
        "small (2)",
    ]


def fire(params, x):
    """A stem, and a module of two branches whose end has a name."""

    def conv(x, name):
        kernel = params[name]["kernel"]
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, numbers)
        return jax.nn.relu(y)

    x = jax.lax.reduce_window(
        conv(x, "stem"), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    x = conv(checkpoint_name(x, "maxpool"), "fire/squeeze")
    x = jnp.concatenate([conv(x, "fire/left"), conv(x, "fire/right")], -1)
    return conv(checkpoint_name(x, "fire"), "last").mean((1, 2))


def test_a_module_is_one_stage():
    rng = np.random.default_rng(0)
    shapes = {"stem": 3, "fire/squeeze": 4, "fire/left": 4, "fire/right": 4, "last": 8}
    params = {
        name: {"kernel": jnp.float32(rng.normal(size=(3, 3, inputs, 4)))}
        for name, inputs in shapes.items()
    }
    net = zf.network(fire, (8, 8, 3), params=params)
    image = rng.normal(size=(1, 8, 8, 3)).astype(np.float32)
    # The pooling lies in the lower half.
    assert find_layer(net, None) == "last"
    maps = net.activations(image, "last")["last"]
    stages = [*send_down(net, image, "last", maps, "deconvnet")]
    assert [stage.name for stage in stages] == [
        *("start", "last", "fire", "unpool", "stem = pixels")
    ]
    signals, pixels = follow_signal(net, image, "last", maps)
    assert "fire/squeeze" in signals
    for stage, name in zip(stages[1:-1], ("fire", "maxpool", "stem"), strict=True):
        np.testing.assert_array_equal(
            stage.values, np.asarray(signals[name])[0].sum(-1)
        )
        assert stage.shape == signals[name].shape[1:]
    np.testing.assert_array_equal(stages[-1].values, pixels[0])

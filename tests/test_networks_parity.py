"""One residual network in five forms against PyTorch and Captum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zfnet_jax as zf
from tests import networks
from tests.networks import RECTIFIED
from tests.references import make_residual
from tests.references.make_residual import RULES
from zfnet_jax.networks import Network, network

pytestmark = pytest.mark.usefixtures("compiled_once")

POSITIONED = ("stem", "stem.pool", *RECTIFIED[1:])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def images():
    return networks.residual_images()


@pytest.fixture(scope="module")
def stored():
    with np.load(make_residual.STORE) as arrays:
        return dict(arrays)


@functools.cache
def read(form: str) -> Network:
    positional, keywords, _ = networks.residual_form(form)
    return network(*positional, **keywords)


@pytest.mark.parametrize("form", networks.FORMS)
def test_every_form_is_the_same_function(form, images, stored):
    *_, apply = networks.residual_form(form)
    logits = np.asarray(jax.jit(lambda x: apply(x))(jnp.asarray(images)))
    np.testing.assert_allclose(logits, stored["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", networks.FORMS)
def test_layers_are_named_after_the_parameters(form):
    net = read(form)
    assert [name for name in net.layers if name in POSITIONED] == [*POSITIONED]
    assert net.output == "fc"
    assert net.num_classes == networks.CLASSES
    # A pooling of a rectified map is rectified too, and ends in no ReLU of its own.
    ends_in_relu = [
        name
        for name, layer in net.layers.items()
        if layer.rectified and "pool" not in layer.kind
    ]
    assert ends_in_relu == [*RECTIFIED]
    assert net.layers["stem"].shape == (17, 13, 8)
    assert net.layers["stem.pool"].kind == "max pool"
    assert net.layers["block2"].shape == (5, 4, 16)


def test_every_form_has_the_same_layers():
    tables = [
        [
            (layer.name, layer.kind, layer.shape, layer.receptive_field)
            for layer in read(form).layers.values()
        ]
        for form in ("nnx", "linen", "equinox", "function")
    ]
    for table in tables[1:]:
        assert table == tables[0]


def compare(net: Network, images: np.ndarray, expected: dict[str, np.ndarray]):
    """Logits, activations and maps of single activations."""
    assert distance(np.asarray(net(images)), expected["logits"]) <= 1e-5
    activations = net.activations(images, RECTIFIED)
    for layer in RECTIFIED:
        assert distance(activations[layer], expected[layer]) <= 1e-5, layer
        chosen = expected[f"{layer}/chosen"]
        units, positions = chosen[:, :1], chosen[:, 1:]
        for rule in RULES:
            maps = zf.project(net, images, layer, units, positions, rule=rule)
            np.testing.assert_array_equal(maps.units, units[:, 0])
            np.testing.assert_array_equal(maps.positions, positions)
            reference = expected[f"{layer}/{rule}"]
            for index, pixels in enumerate(np.asarray(maps.pixels)):
                gap = distance(pixels, reference[index])
                assert gap <= 1e-4, (layer, rule, index, gap)


@pytest.mark.parametrize("form", networks.FORMS)
def test_maps_are_those_stored(form, images, stored):
    compare(read(form), images, stored)


def test_strongest_activations_are_found_without_being_named(images, stored):
    """The first image's reference is of the strongest activation of the map."""
    for layer in RECTIFIED:
        maps = zf.project(read("nnx"), images[:1], layer)
        unit, *position = stored[f"{layer}/chosen"][0]
        assert maps.units[0] == unit
        np.testing.assert_array_equal(maps.positions[0], position)
        assert distance(maps.pixels, stored[f"{layer}/deconvnet"][:1]) <= 1e-4


@pytest.mark.parametrize("form", ["nnx", "equinox"])
def test_crops_hold_all_of_the_map(form, images, stored):
    """The receptive field that is read off the network has the whole projection."""
    net = read(form)
    for layer in RECTIFIED:
        chosen = stored[f"{layer}/chosen"]
        units, positions = chosen[:, :1], chosen[:, 1:]
        crops = zf.project(net, images, layer, units, positions, crop=True)
        for index, (top, left, bottom, right) in enumerate(np.asarray(crops.boxes)):
            whole = np.zeros(images.shape[1:], np.float32)
            height, width = images.shape[1:3]
            rows = slice(max(top, 0), min(bottom, height))
            columns = slice(max(left, 0), min(right, width))
            inside = np.asarray(crops.pixels[index])[
                rows.start - top : rows.stop - top,
                columns.start - left : columns.stop - left,
            ]
            whole[rows, columns] = inside
            gap = distance(whole, stored[f"{layer}/deconvnet"][index])
            assert gap <= 1e-4, (layer, index, gap)


@pytest.fixture(scope="module")
def by_captum():
    """Other images than those of the stored references."""
    pytest.importorskip("torch", reason="needs the parity extra")
    pytest.importorskip("captum", reason="needs the parity extra")
    images = networks.residual_images(5)[2:]
    return images, make_residual.references(images)


@pytest.mark.parity
@pytest.mark.parametrize("form", networks.FORMS)
def test_maps_are_those_of_captum(form, by_captum):
    compare(read(form), *by_captum)


@pytest.mark.parity
def test_stored_references_are_those_of_captum(images, stored):
    pytest.importorskip("torch", reason="needs the parity extra")
    pytest.importorskip("captum", reason="needs the parity extra")
    for name, array in make_residual.references(images).items():
        np.testing.assert_allclose(array, stored[name], rtol=1e-6, atol=1e-6)

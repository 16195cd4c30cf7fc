"""One residual network in five forms against PyTorch and Captum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zfnet_jax as zf
from tests import networks
from tests.comparison import cut, distance
from tests.networks import RECTIFIED
from tests.references import make_residual
from zfnet_jax.networks import Network, network

RULES = ("deconvnet", "guided", "gradient")
POSITIONED = ("stem", "stem.pool", *RECTIFIED[1:])


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


def compare(form: str, images: np.ndarray, expected: dict[str, np.ndarray]):
    """Logits, activations and maps of single activations."""
    net = read(form)
    assert distance(np.asarray(net(images)), expected["logits"]) <= 1e-5
    activations = net.activations(images, RECTIFIED)
    # The layers of all forms are the same, so one form stands for the others in most.
    for layer in RECTIFIED if form == "function" else RECTIFIED[-1:]:
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
    compare(form, images, stored)


def test_crops_hold_all_of_the_map(images, stored):
    """The receptive field that is read off the network has the whole projection."""
    net = read("nnx")
    for layer in RECTIFIED:
        chosen = stored[f"{layer}/chosen"]
        units, positions = chosen[:, :1], chosen[:, 1:]
        crops = zf.project(net, images, layer, units, positions, crop=True)
        whole = stored[f"{layer}/deconvnet"]
        for pixels, box, expected in zip(crops.pixels, crops.boxes, whole, strict=True):
            assert distance(pixels, cut(expected, box)) <= 1e-4, layer
            assert np.count_nonzero(expected) == np.count_nonzero(cut(expected, box))


@pytest.fixture(scope="module")
def by_captum():
    """Other images than those of the stored references."""
    pytest.importorskip("torch", reason="needs the parity extra")
    pytest.importorskip("captum", reason="needs the parity extra")
    images = networks.residual_images(4)[2:]  # as many, so nothing is compiled anew
    return images, make_residual.references(images)


@pytest.mark.parity
@pytest.mark.parametrize("form", networks.FORMS)
def test_maps_are_those_of_captum(form, by_captum):
    compare(form, *by_captum)

"""Any model as named activations: names, layouts, checks and errors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import networks as examples
from zfnet_jax.arch import (
    ZFNET32,
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
)
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import Network, as_network, network

SHAPE = (12, 10, 3)
SMALL = Architecture(
    "small",
    (12, 10),
    (
        Conv("conv1", 4, kernel=3, padding=1),
        MaxPool("pool1", padding=1),
        ContrastNorm("norm1"),
        Conv("conv2", 6, kernel=3),
        Dense("fc3", 7),
        Dense("logits", 5, relu=False),
    ),
)


def images(count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype("f4")


@pytest.fixture(scope="module")
def model() -> ConvNet:
    return ConvNet(SMALL, rngs=nnx.Rngs(0))


class Tiny(nnx.Module):
    """Batch normalization and dropout, as in training."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.fc = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.fc(self.drop(x))


def test_a_convnet_has_the_layers_of_its_architecture(model):
    net = network(model)
    assert list(net.layers) == [layer.name for layer in SMALL.layers]
    assert {n: layer.shape for n, layer in net.layers.items()} == SMALL.shapes()
    assert [layer.rectified for layer in net.layers.values()] == [1, 0, 0, 1, 1, 0]
    activations = net.activations(images(), batch_size=2)
    for name, feature in model.features(images()).features.items():
        np.testing.assert_allclose(activations[name], feature, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net(images()), model(images()), rtol=1e-5, atol=1e-6)


def test_a_function_that_closes_over_a_convnet_has_its_names(model):
    net = network(lambda x: model(x), SHAPE)
    names = "conv1 conv1.pool conv1.pool.norm conv2 fc3 logits".split()
    assert list(net.layers) == names


def test_names_go_by_kind_and_order_where_nothing_is_known():
    def function(x):
        for kernel in (jnp.ones((3, 3, 3, 4)), jnp.ones((3, 3, 4, 4))):
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return jax.nn.relu(x.sum((1, 2)) ** 2)

    net = network(function, SHAPE)
    assert list(net.layers) == ["conv1", "conv2", "conv2.pool", "relu1"]


def test_a_dict_of_activations_names_its_entries_in_order(model):
    def several(x):
        features = model.features(x).features
        return {"late": features["fc3"], "early": features["conv1"]}

    net = network(several, SHAPE)
    assert list(net.layers) == ["late", "early"]
    assert net.layers["early"].shape == (12, 10, 4)
    assert net.layers["early"].rectified and net.layers["early"].kind == "conv"
    expected = model.features(images()).features
    np.testing.assert_allclose(
        net.activations(images())["early"], expected["conv1"], rtol=1e-5, atol=1e-6
    )


def test_weights_that_change_later_are_seen():
    model = Tiny()
    model.eval()
    net = network(model, SHAPE)
    before = net(images())
    model.fc.kernel[...] = 2 * model.fc.kernel[...]
    np.testing.assert_allclose(net(images()), 2 * before, rtol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        network,
        lambda x: network(lambda y: x(y), SHAPE),
        lambda x: network(lambda y: dict(x.features(y).features), SHAPE),
    ],
    ids=["ConvNet", "function", "dict"],
)
def test_map_weights_changes_one_layer(model, wrap):
    net = wrap(model)
    changed = net.map_weights("fc3", lambda x: 0 * x)
    before, after = net.activations(images()), changed.activations(images())
    np.testing.assert_array_equal(before["conv2"], after["conv2"])
    assert before["fc3"].any() and not after["fc3"].any()
    np.testing.assert_array_equal(net(images()), before[net.output])


def test_networks_of_one_architecture_share_a_program(model):
    other = ConvNet(SMALL, rngs=nnx.Rngs(1))
    traces = []

    @jax.jit
    def total(net: Network, x: jax.Array):
        traces.append(1)
        return net.features(x, ("logits",))["logits"].sum()

    assert total(network(model), images()) != total(network(other), images())
    assert len(traces) == 1


def test_images_may_stream(model):
    class Source:
        def __len__(self):
            return 7

        def __getitem__(self, indices):
            assert len(indices) <= 3
            return images(7)[indices]

    net, done = network(model), []
    activations = net.activations(
        Source(), "conv2", batch_size=3, progress=lambda *x: done.append(x)
    )
    expected = net.activations(images(7), "conv2")["conv2"]
    np.testing.assert_array_equal(activations["conv2"], expected)
    assert done == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 8, 10, 3), "f4"), r"\(n, 12, 10, 3\), not \(2, 8, 10, 3\)"),
        (np.zeros((2, 3, 12, 10), "f4"), r"channels come last.*transpose\(0, 2, 3, 1"),
        (np.zeros(SHAPE, "f4"), r"image\[None\]"),
        (np.zeros((2, *SHAPE), "u1"), r"uint8: .*preprocess"),
        (np.zeros((0, *SHAPE), "f4"), "the batch is empty"),
        (
            np.where(np.arange(4)[:, None, None, None] == 2, np.nan, images(4)),
            "image 2",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(model, given, message):
    net = network(model)
    for take in (net, net.activations):
        with pytest.raises(ValueError, match=message):
            take(given)


def test_layers_and_targets_are_checked(model):
    net = network(model, class_names=tuple("abcde"))
    with pytest.raises(ValueError, match="no layer 'conv9'; the network has conv1 po"):
        net.activations(images(), "conv9")
    with pytest.raises(ValueError, match="layers is empty"):
        net.activations(images(), [])
    assert net.select(["fc3", "conv1", "fc3"]) == ("conv1", "fc3")
    assert net.targets("c", 2).tolist() == [2, 2]
    assert net.targets(["e", 0], 2).tolist() == [4, 0]
    for targets, message in (
        ("z", "no class 'z'; the network knows a, b"),
        (5, "target 5: the network has classes 0 to 4"),
        ([0, 1, 2], "3 targets for 2 images"),
        (1.5, "neither a label nor a class name"),
    ):
        with pytest.raises(ValueError, match=message):
            net.targets(targets, 2)
    with pytest.raises(ValueError, match="has no class_names"):
        network(model).targets("a", 1)
    with pytest.raises(ValueError, match="2 names; the network has 5 outputs"):
        network(model, class_names=("a", "b"))


def test_training_mode_is_refused():
    for model in (Tiny(), functools.partial(Tiny())):
        with pytest.raises(ValueError, match=r"model\.eval\(\)"):
            network(model, SHAPE)
    dropping = Tiny()
    dropping.norm.use_running_average = True
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        network(dropping, SHAPE)

    def standardized(x):
        return ((x - x.mean(0)) / x.std(0)).mean((1, 2))

    with pytest.raises(ValueError, match=r"mixes the images.*model\.eval\(\)"):
        network(standardized, SHAPE)

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            return nn.BatchNorm(use_running_average=not train)(x).mean((1, 2))

    variables = Linen().init(jax.random.key(0), images(), train=False)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        network(Linen().apply, SHAPE, params=variables)
    network(functools.partial(Linen().apply, train=False), SHAPE, params=variables)


def test_a_softmax_at_the_end_is_refused(model):
    with pytest.raises(ValueError, match="take the logits"):
        network(lambda x: jax.nn.softmax(model(x)), SHAPE)


def test_models_that_cannot_be_read_are_refused(model):
    with pytest.raises(ValueError, match="image_shape is needed"):
        network(lambda x: x)
    with pytest.raises(ValueError, match=r"\(height, width, channels\), not \(3, 4\)"):
        network(lambda x: x, (3, 4))
    with pytest.raises(TypeError, match="int, which cannot be called"):
        network(3, SHAPE)
    with pytest.raises(ValueError, match="small takes images of shape"):
        network(model, (8, 8, 3))
    with pytest.raises(ValueError, match="must return one array of logits"):
        network(lambda x: x.sum(), SHAPE)


def test_bare_models_take_the_shape_of_the_images(model):
    net, x = as_network(lambda x: model(x), images())
    assert net.image_shape == SHAPE and x.shape == (3, *SHAPE)
    with pytest.raises(ValueError, match=r"\[n, h, w, c\]"):
        as_network(model.__call__, images()[0])


def test_parameters_and_multiply_adds_by_hand():
    def conv(x, kernel, stride=1, groups=1):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    inside_a_call = jax.custom_jvp(lambda x, kernel: conv(x, kernel))
    inside_a_call.defjvps(None, None)

    def model(params, x):
        x = nnx.relu(conv(x, params["first"]["kernel"], 2, 2) + params["first"]["bias"])
        x = nnx.relu(conv(x, params["shared"]["kernel"]))
        x = nnx.relu(inside_a_call(x, params["shared"]["kernel"]))
        return x.mean((1, 2)) @ params["fc"]["kernel"]

    params = {
        "first": {"kernel": jnp.ones((3, 3, 2, 6)), "bias": jnp.ones(6)},
        "shared": {"kernel": jnp.ones((1, 1, 6, 6))},
        "fc": {"kernel": jnp.ones((6, 5))},
        "unused": {"kernel": jnp.ones(9)},
    }
    net = network(model, (8, 6, 4), params=params)
    rows = [(x.name, x.parameters, x.multiply_adds) for x in net.layers.values()]
    assert rows == [
        # 4 x 3 positions, 6 channels, 3 x 3 x 2 weights each.
        ("first", 114, 12 * 6 * 18),
        ("shared", 36, 12 * 36),
        ("shared_2", 36, 12 * 36),
        ("shared_2.pool", 0, 0),
        ("fc", 30, 30),
    ]
    assert net.parameters == 114 + 36 + 30
    assert net.multiply_adds == 1296 + 2 * 432 + 30


def test_the_table_lists_every_layer_and_totals():
    table = str(network(examples.residual_nnx(), examples.IMAGE_SHAPE)).splitlines()
    assert table[0].split("  ")[0] == "layer"
    row = next(line for line in table if line.startswith("block2.conv1"))
    # With the four constants of the batch normalization.
    row_in_words = "block2.conv1 conv 5 x 4 x 16 yes 1,216 35 x 35 8 x 8 23,040"
    assert row.split() == row_in_words.split()
    assert table[-2].split() == "fc dense 10 170 whole image 160".split()
    assert table[-1].split() == "total 6,370 404,312".split()
    assert repr(network(ConvNet(ZFNET32, rngs=nnx.Rngs(0)))) == (
        "Network(32 x 32 x 3 -> 10, 11 layers)"
    )

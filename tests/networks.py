"""Small networks that the tests share.

First chains of layers for `zf.ConvNet`, then a residual network in evaluation, with one
set of weights in five forms: a Flax NNX module, a Linen module, an Equinox module, a
plain function and a Keras model. Attributes have the same names in all of them, so the
names of the layers agree. `tests/references/make_residual.py` has it in PyTorch.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from jax import lax

import zfnet_jax as zf
from tests.references.deconvnet_cases import draw_state
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.data import CAFFE, SHAPES, Normalization, Preprocessing
from zfnet_jax.imagenet import squeezenet
from zfnet_jax.imagenet.plain import PlainNetwork

# Chains of layers.

# It halves the shapes of 32 x 32, so that pictures need resizing too.
SMALL = Architecture(
    "small",
    (16, 16),
    (
        Conv("conv1", 4, kernel=3, padding=1),
        MaxPool("pool1", kernel=2, stride=2),
        Conv("conv2", 6, kernel=3, padding=1),
        Dense("fc3", 8),
        Dense("logits", len(SHAPES), relu=False),
    ),
)
TINY = Architecture(
    "tiny",
    (9, 12),
    (
        Conv("conv1", 5, 3, padding=1),
        MaxPool("pool1", 3, 2),
        Conv("conv2", 4, 2),
        Dense("fc3", 6),
        Dense("logits", 3, relu=False),
    ),
)
# Everything uneven: strides, one-sided padding, a pooling that rounds up, groups, a
# stride beyond its kernel.
MIXED = Architecture(
    "mixed",
    (23, 19),
    (
        Conv("conv1", 6, kernel=(5, 3), stride=(2, 1), padding=((2, 0), (1, 2))),
        ContrastNorm("norm1", alpha=0.3),
        MaxPool("pool1", padding=1, round_up=True),
        Conv("conv2", 8, kernel=3, padding=1, groups=2),
        Conv("conv3", 6, kernel=1, stride=2),
        Dense("fc4", 7),
        Dense("logits", 4, relu=False),
    ),
)
# Everything that the paper's networks lack: a pooling of the image and of a pooled
# map, groups, rectangles, uneven padding, strides that skip, and a normalization just
# before a dense layer.
ODD = Architecture(
    "odd",
    (29, 46),
    (
        MaxPool("pool0", (1, 2), (1, 2)),
        Conv("conv1", 8, (3, 2), stride=(2, 1), padding=((1, 0), (0, 1))),
        MaxPool("pool1", 3, 2, ((1, 0), (0, 2))),
        MaxPool("pool2", (3, 2), (1, 2)),
        ContrastNorm("norm2", size=3, k=1.0, alpha=0.3),
        Conv("conv3", 6, 2, padding=((0, 2), (1, 0)), groups=2),
        MaxPool("pool3", 1, 2),
        ContrastNorm("norm3", size=4, k=1.0, alpha=0.3),
        Dense("fc4", 7),
        Dense("logits", 4, relu=False),
    ),
    channels=2,
)
LEARNED: dict[str, str | int | float] = {"dataset": "shapes", "test_accuracy": 0.125}


def random_model(arch: Architecture, seed: int = 0) -> zf.ConvNet:
    return zf.load_weights(draw_state(arch, seed), arch)


def as_function(model: zf.ConvNet, **options: Any) -> zf.networks.Network:
    """The same network, read off a function that is not known to be a `ConvNet`'s."""
    shape = (*model.arch.input_hw, model.arch.channels)
    return zf.network(lambda images: model.features(images).features, shape, **options)


def save(path: Path, seed: int, arch: Architecture = SMALL, metadata=LEARNED) -> None:
    """Save an untrained network; conv2's unit 1 is dead."""
    model = zf.ConvNet(arch, len(SHAPES), rngs=nnx.Rngs(seed))
    if arch is SMALL:
        model.conv2.bias[...] = model.conv2.bias[...].at[1].set(-1e6)
    size = None if arch.input_hw == (32, 32) else arch.input_hw
    mean = np.full((32, 32, 3), 128, np.float32)
    preprocess = Preprocessing(mean, 1 / 64, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    zf.save(
        path, model, preprocess=preprocess, class_names=tuple(SHAPES), metadata=metadata
    )


# A residual network.

# Even, rectangular, and with odd maps in front of every "SAME" stride of 2, where
# TensorFlow's padding is the same on both sides as it is here.
IMAGE_SHAPE = (34, 26, 3)
CLASSES = 10
# Flax declares a padding of pairs as a string.
PADDING: Any = ((1, 1), (1, 1))


def convolutions(width: int = 8) -> dict[str, tuple[int, int, int]]:
    """Kernel size, input and output channels of each; all are without bias."""
    return {
        "stem": (7, 3, width),
        "block1.conv1": (3, width, width),
        "block1.conv2": (3, width, width),
        "block2.conv1": (3, width, 2 * width),
        "block2.conv2": (3, 2 * width, 2 * width),
        "block2.shortcut": (1, width, 2 * width),
    }


NORMS = {
    "stem": "stem_norm",
    "block1.conv1": "block1.norm1",
    "block1.conv2": "block1.norm2",
    "block2.conv1": "block2.norm1",
    "block2.conv2": "block2.norm2",
    "block2.shortcut": "block2.shortcut_norm",
}
# Layers that end in a ReLU, in forward order.
RECTIFIED = ("stem", "block1.conv1", "block1", "block2.conv1", "block2")


@functools.cache
def residual_weights(width: int = 8) -> dict[str, np.ndarray]:
    """The weights by path, such as "block1.conv1.kernel": HWIO float32."""
    # RandomState is the generator whose numbers NumPy keeps for good.
    rng = np.random.RandomState(0)
    weights = {}
    for name, (size, inputs, outputs) in convolutions(width).items():
        bound = math.sqrt(6 / (size * size * inputs))
        weights[f"{name}.kernel"] = rng.uniform(
            -bound, bound, (size, size, inputs, outputs)
        )
        for part, low, high in (
            ("scale", 0.5, 1.5),
            ("bias", -0.3, 0.3),
            ("mean", -0.5, 0.5),
            ("var", 0.5, 2.0),
        ):
            weights[f"{NORMS[name]}.{part}"] = rng.uniform(low, high, outputs)
    weights["fc.kernel"] = rng.uniform(-0.5, 0.5, (2 * width, CLASSES))
    weights["fc.bias"] = rng.uniform(-0.5, 0.5, CLASSES)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def residual_images(count: int = 2) -> np.ndarray:
    """float32[count, 34, 26, 3]: smooth noise, the same for a seed."""
    rng = np.random.RandomState(1)
    noise = rng.uniform(-2, 2, (count, 36, 28, 3))
    rows = noise[:, :-2] + noise[:, 1:-1] + noise[:, 2:]
    smooth = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    return (smooth / 3).astype(np.float32)


def nested(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The same weights as dicts in dicts."""
    tree: dict[str, Any] = {}
    for path, value in weights.items():
        *parents, name = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = jnp.asarray(value)
    return tree


# A plain function of weights and images.


def residual_function(params: Mapping[str, Any], images: jax.Array) -> jax.Array:
    """Logits of float32[b, 34, 26, 3] images."""

    def conv(x, layer, norm, stride=1):
        kernel = layer["kernel"]
        x = lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(size // 2, size // 2) for size in kernel.shape[:2]],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        shifted = (x - norm["mean"]) / jnp.sqrt(norm["var"] + 1e-5)
        return norm["scale"] * shifted + norm["bias"]

    def block(x, layer, stride=1):
        y = conv(x, layer["conv1"], layer["norm1"], stride)
        y = conv(jnp.maximum(y, 0), layer["conv2"], layer["norm2"])
        if "shortcut" in layer:
            x = conv(x, layer["shortcut"], layer["shortcut_norm"], stride)
        return jnp.maximum(x + y, 0)

    x = jnp.maximum(conv(images, params["stem"], params["stem_norm"], 2), 0)
    x = lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )
    x = block(x, params["block1"])
    x = block(x, params["block2"], 2)
    return x.mean((1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"]


# Flax NNX.


def _nnx_conv(inputs: int, outputs: int, size: int, stride: int, rngs: nnx.Rngs):
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        rngs=rngs,
    )


class NnxBlock(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        self.conv1 = _nnx_conv(inputs, outputs, 3, stride, rngs)
        self.norm1 = nnx.BatchNorm(outputs, rngs=rngs)
        self.conv2 = _nnx_conv(outputs, outputs, 3, 1, rngs)
        self.norm2 = nnx.BatchNorm(outputs, rngs=rngs)
        if stride > 1:
            self.shortcut = _nnx_conv(inputs, outputs, 1, stride, rngs)
            self.shortcut_norm = nnx.BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if hasattr(self, "shortcut"):
            x = self.shortcut_norm(self.shortcut(x))
        return nnx.relu(x + y)


class NnxResidual(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.stem = _nnx_conv(3, width, 7, 2, rngs)
        self.stem_norm = nnx.BatchNorm(width, rngs=rngs)
        self.block1 = NnxBlock(width, width, 1, rngs)
        self.block2 = NnxBlock(width, 2 * width, 2, rngs)
        self.fc = nnx.Linear(2 * width, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem_norm(self.stem(images)))
        x = nnx.max_pool(x, (3, 3), (2, 2), PADDING)
        return self.fc(self.block2(self.block1(x)).mean((1, 2)))


def residual_nnx(width: int = 8) -> NnxResidual:
    model = NnxResidual(width, nnx.Rngs(0))
    for path, value in residual_weights(width).items():
        variable: Any = functools.reduce(getattr, path.split("."), model)
        variable[...] = jnp.asarray(value)
    model.eval()
    return model


# Flax Linen.


def _linen_conv(outputs: int, size: int, stride: int, name: str) -> nn.Conv:
    return nn.Conv(
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        name=name,
    )


def _linen_norm(name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, name=name)


class LinenBlock(nn.Module):
    outputs: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _linen_conv(self.outputs, 3, self.stride, "conv1")(x)
        y = nn.relu(_linen_norm("norm1")(y))
        y = _linen_norm("norm2")(_linen_conv(self.outputs, 3, 1, "conv2")(y))
        if self.stride > 1:
            x = _linen_conv(self.outputs, 1, self.stride, "shortcut")(x)
            x = _linen_norm("shortcut_norm")(x)
        return nn.relu(x + y)


class LinenResidual(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(_linen_norm("stem_norm")(_linen_conv(8, 7, 2, "stem")(images)))
        x = nn.max_pool(x, (3, 3), (2, 2), PADDING)
        x = LinenBlock(8, 1, name="block1")(x)
        x = LinenBlock(16, 2, name="block2")(x)
        return nn.Dense(CLASSES, name="fc")(x.mean((1, 2)))


def residual_linen() -> tuple[LinenResidual, dict[str, Any]]:
    """The module and its variables: parameters and statistics."""
    weights = residual_weights()
    statistics = {n: x for n, x in weights.items() if n.endswith((".mean", ".var"))}
    params = {n: x for n, x in weights.items() if n not in statistics}
    return LinenResidual(), {
        "params": nested(params),
        "batch_stats": nested(statistics),
    }


# Equinox: channels first, one image at a time.


class EquinoxNorm(eqx.Module):
    scale: jax.Array
    bias: jax.Array
    mean: jax.Array
    var: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.scale * lax.rsqrt(self.var + 1e-5)
        shift = self.bias - self.mean * factor
        return x * factor[:, None, None] + shift[:, None, None]


def _equinox_conv(layer: Mapping[str, Any], stride: int = 1) -> eqx.nn.Conv2d:
    weight = layer["kernel"].transpose(3, 2, 0, 1)
    outputs, inputs, size, _ = weight.shape
    conv = eqx.nn.Conv2d(
        inputs,
        outputs,
        size,
        stride,
        size // 2,
        use_bias=False,
        key=jax.random.key(0),
    )
    return eqx.tree_at(lambda module: module.weight, conv, weight)


class EquinoxBlock(eqx.Module):
    conv1: eqx.nn.Conv2d
    norm1: EquinoxNorm
    conv2: eqx.nn.Conv2d
    norm2: EquinoxNorm
    shortcut: eqx.nn.Conv2d | None
    shortcut_norm: EquinoxNorm | None

    def __init__(self, params: Mapping[str, Any], stride: int) -> None:
        self.conv1 = _equinox_conv(params["conv1"], stride)
        self.norm1 = EquinoxNorm(**params["norm1"])
        self.conv2 = _equinox_conv(params["conv2"])
        self.norm2 = EquinoxNorm(**params["norm2"])
        self.shortcut, self.shortcut_norm = None, None
        if "shortcut" in params:
            self.shortcut = _equinox_conv(params["shortcut"], stride)
            self.shortcut_norm = EquinoxNorm(**params["shortcut_norm"])

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return jax.nn.relu(x + y)


class EquinoxResidual(eqx.Module):
    stem: eqx.nn.Conv2d
    stem_norm: EquinoxNorm
    pool: eqx.nn.MaxPool2d
    block1: EquinoxBlock
    block2: EquinoxBlock
    fc: eqx.nn.Linear

    def __init__(self) -> None:
        params = nested(residual_weights())
        self.stem = _equinox_conv(params["stem"], 2)
        self.stem_norm = EquinoxNorm(**params["stem_norm"])
        self.pool = eqx.nn.MaxPool2d(3, 2, 1)
        self.block1 = EquinoxBlock(params["block1"], 1)
        self.block2 = EquinoxBlock(params["block2"], 2)
        self.fc = eqx.tree_at(
            lambda module: (module.weight, module.bias),
            eqx.nn.Linear(16, CLASSES, key=jax.random.key(0)),
            (params["fc"]["kernel"].T, params["fc"]["bias"]),
        )

    def __call__(self, image: jax.Array) -> jax.Array:
        """Logits of one image: float32[3, 34, 26]."""
        x = self.pool(jax.nn.relu(self.stem_norm(self.stem(image))))
        return self.fc(self.block2(self.block1(x)).mean((1, 2)))


# Keras.


def import_keras() -> Any:
    """Keras on the JAX backend; skips the test that calls it where there is none."""
    if os.environ.get("KERAS_BACKEND") != "jax":
        pytest.skip("needs the keras extra and KERAS_BACKEND=jax")
    return pytest.importorskip("keras", reason="needs the keras extra")


def residual_keras() -> Any:
    """A functional model."""
    keras = import_keras()
    layers = keras.layers

    def conv(x, name, stride=1):
        size, _, outputs = convolutions()[name]
        padding = "same"
        if size == 7:
            # As `keras.applications` does it.
            x, padding = layers.ZeroPadding2D(3)(x), "valid"
        x = layers.Conv2D(outputs, size, stride, padding, use_bias=False, name=name)(x)
        return layers.BatchNormalization(epsilon=1e-5, name=NORMS[name])(x)

    def block(x, name, stride=1):
        y = layers.ReLU()(conv(x, f"{name}.conv1", stride))
        y = conv(y, f"{name}.conv2")
        if stride > 1:
            x = conv(x, f"{name}.shortcut", stride)
        return layers.Activation("relu")(layers.Add()([x, y]))

    images = keras.Input(IMAGE_SHAPE)
    x = layers.Activation("relu")(conv(images, "stem", 2))
    x = layers.MaxPooling2D(3, 2, "same")(x)
    x = block(block(x, "block1"), "block2", 2)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, layers.Dense(CLASSES, name="fc")(x))

    weights = residual_weights()
    for layer in ("fc", *NORMS, *NORMS.values()):
        # In Keras' order: kernel and bias, or scale, bias, mean and variance.
        parts = [x for n, x in weights.items() if n.rpartition(".")[0] == layer]
        model.get_layer(layer).set_weights(parts)
    return model


Form = tuple[tuple[Any, ...], dict[str, Any], Callable[[jax.Array], Any]]


def residual_form(name: str) -> Form:
    """Arguments of `zf.network`, positional and by keyword, and images -> logits."""
    match name:
        case "nnx":
            model = residual_nnx()
            return (model, IMAGE_SHAPE), {}, model
        case "linen":
            module, variables = residual_linen()
            apply = functools.partial(module.apply, variables)
            return (module.apply, IMAGE_SHAPE), {"params": variables}, apply
        case "equinox":
            model = EquinoxResidual()
            apply = lambda x: jax.vmap(model)(jnp.moveaxis(x, -1, 1))  # noqa: E731
            return (model, IMAGE_SHAPE), {}, apply
        case "function":
            params = nested(residual_weights())
            apply = functools.partial(residual_function, params)
            return (residual_function, IMAGE_SHAPE), {"params": params}, apply
        case "keras":
            model = residual_keras()
            return (model,), {}, model
    raise ValueError(f"no form is called {name!r}")


FORMS = (
    "nnx",
    "linen",
    "equinox",
    "function",
    pytest.param("keras", marks=pytest.mark.keras),
)


# The model of the README's example.


class SmallNet(nnx.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.fc = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.max_pool(nnx.relu(self.conv1(images)), (2, 2), (2, 2))
        return self.fc(nnx.relu(self.conv2(x)).mean((1, 2)))


def small_network() -> zf.networks.Network:
    """That model with preprocessing, as `--model tests.networks:small_network`.

    It sees the center 24 of 27 pixels of a photograph.
    """
    preprocess = Normalization((128.0, 128.0, 128.0), (128.0, 128.0, 128.0))
    return zf.network(SmallNet(nnx.Rngs(0)), (24, 24, 3), preprocess=preprocess)


# Published networks.


def random_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Contents of a PyTorch file: kernels by He's scale, positive variances."""
    # RandomState is the generator whose numbers NumPy keeps for good.
    rng = np.random.RandomState(0)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        if len(shape) > 1:
            values = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith("bias") or name.endswith("mean"):
            values = rng.uniform(-0.1, 0.1, shape)
        else:
            values = rng.uniform(0.5, 1.5, shape)
        tensors[name] = values.astype(np.float32)
    return tensors


def build(
    plain: PlainNetwork, tensors: Mapping[str, np.ndarray] | None = None, **options: Any
) -> zf.networks.Network:
    """A published network, by default with random weights."""
    params = plain.convert(
        "tensors", random_tensors(plain.shapes) if tensors is None else tensors
    )
    return zf.network(plain.apply, plain.image_shape, params=params, **options)


def load_squeezenet(weights: str) -> zf.networks.Network:
    """The authors' SqueezeNet, as `--model tests.networks:load_squeezenet`."""
    tensors = safetensors.numpy.load_file(weights)
    return build(squeezenet.V1_0_CAFFE, tensors, preprocess=CAFFE)

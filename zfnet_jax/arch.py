"""Architectures as data: layer specifications, output shapes and receptive fields.

Plain Python, without JAX: what the model and every tool interpret (Fig. 3).

    >>> receptive_field(ZFNET, "conv2").size
    (27, 27)
    >>> ablate(ZFNET, remove=("fc7",)).shapes()["pool5"]
    (6, 6, 256)
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def _padding(value: int | Padding) -> Padding:
    return ((value, value), (value, value)) if isinstance(value, int) else value


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution with a bias, followed by a ReLU.

    Attributes:
        name: Layer name; the feature of this name is the rectified map.
        features: Output channels.
        kernel: Height and width; a single int means a square.
        stride: Vertical and horizontal stride, in pixels of the input map.
        padding: ((top, bottom), (left, right)) zeros; a single int means all four.
        groups: Channel groups, 1 for a dense connection.

    Example:
        >>> Conv("conv1", 96, kernel=7, stride=2, padding=1).kernel
        (7, 7)
    """

    name: str
    features: int
    kernel: Pair
    stride: Pair
    padding: Padding
    groups: int

    def __init__(
        self,
        name: str,
        features: int,
        kernel: int | Pair,
        stride: int | Pair = 1,
        padding: int | Padding = 0,
        groups: int = 1,
    ) -> None:
        """Store pairs."""
        _freeze(
            self,
            name=name,
            features=features,
            kernel=_pair(kernel),
            stride=_pair(stride),
            padding=_padding(padding),
            groups=groups,
        )
        _at_least_one(name, features=features, groups=groups)
        if features % groups:
            raise ValueError(f"{name}: {features} features do not split in {groups}")


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Max pooling; padding never wins a window.

    Attributes:
        name: Layer name.
        kernel: Window height and width.
        stride: Vertical and horizontal stride.
        padding: ((top, bottom), (left, right)).
        round_up: Round the output's size up, as in Caffe and PyTorch's `ceil_mode`.
            Each `Architecture` then sets its own bottom and right padding.

    Example:
        >>> MaxPool("pool1").stride
        (2, 2)
    """

    name: str
    kernel: Pair
    stride: Pair
    padding: Padding
    round_up: bool

    def __init__(
        self,
        name: str,
        kernel: int | Pair = 3,
        stride: int | Pair = 2,
        padding: int | Padding = 0,
        round_up: bool = False,
    ) -> None:
        """Store pairs."""
        _freeze(
            self,
            name=name,
            kernel=_pair(kernel),
            stride=_pair(stride),
            padding=_padding(padding),
            round_up=round_up,
        )


@dataclasses.dataclass(frozen=True)
class ContrastNorm:
    """Contrast normalization across feature maps.

    x / (k + alpha * sum of squares over `size` neighboring channels) ** beta, with
    the constants of Krizhevsky et al. 2012, section 3.3. Zeiler & Fergus give none.
    PyTorch's `LocalResponseNorm` takes `size * alpha` for the same alpha.

    Attributes:
        name: Layer name.
        size: Number of channels; channel c and the `size // 2` before it, and the
            `(size - 1) // 2` after it.
        k: Offset of the divisor.
        alpha: Factor of the sum of squares.
        beta: Exponent of the divisor.

    Example:
        >>> ContrastNorm("norm1").size
        5
    """

    name: str
    size: int = 5
    k: float = 2.0
    alpha: float = 1e-4
    beta: float = 0.75

    def __post_init__(self) -> None:
        """Check the size."""
        _at_least_one(self.name, size=self.size)


@dataclasses.dataclass(frozen=True)
class Dense:
    """A fully connected layer; the first flattens its map in (row, column, channel).

    Attributes:
        name: Layer name.
        features: Output units.
        relu: Whether a ReLU follows; only the classifier `logits` has none.
        dropout: Probability of dropping an output in training.

    Example:
        >>> Dense("fc6", 4096, dropout=0.5).relu
        True
    """

    name: str
    features: int
    relu: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the sizes."""
        _at_least_one(self.name, features=self.features)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"{self.name}: dropout {self.dropout} is not in [0, 1)")


Layer = Conv | MaxPool | ContrastNorm | Dense
Shape = tuple[int, int, int] | tuple[int]


def _at_least_one(name: str, **sizes: int) -> None:
    for what, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: {what} must be at least 1, not {size!r}")


def _check_name(arch: str, name: str) -> None:
    # Names become parts of file names and of attribute paths.
    if not re.fullmatch(r"[A-Za-z0-9._/-]+", name) or {"", ".."} & {*name.split("/")}:
        raise ValueError(
            f"{arch}: {name!r} cannot name a layer: names hold letters, digits and "
            "`. _ - /` only, and no empty or `..` part"
        )


def _freeze(instance: object, **fields: object) -> None:
    for name, value in fields.items():
        object.__setattr__(instance, name, value)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A sequence of layers that ends in the dense classifier `logits`.

    Attributes:
        name: A short name, stored alongside weights.
        input_hw: Height and width of the input image in pixels.
        layers: Layer specifications from the image up.
        channels: Image channels.

    Example:
        >>> layers = Conv("conv1", 8, kernel=3), Dense("logits", 10, relu=False)
        >>> Architecture("tiny", (28, 28), layers, channels=1).shapes()
        {'conv1': (26, 26, 8), 'logits': (10,)}

    Raises:
        ValueError: The layers have impossible names or sizes, or do not fit together.
    """

    name: str
    input_hw: Pair
    layers: tuple[Layer, ...]
    channels: int = 3

    def __post_init__(self) -> None:
        """Check all layers, and pad the poolings whose size is rounded up."""
        height, width = self.input_hw
        _at_least_one(self.name, height=height, width=width, channels=self.channels)
        names = [layer.name for layer in self.layers]
        for name in names:
            _check_name(self.name, name)
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name}: layer names repeat: {', '.join(names)}")
        last = self.layers[-1] if self.layers else None
        if not isinstance(last, Dense) or last.name != "logits" or last.relu:
            raise ValueError(
                f"{self.name}: the last layer must be Dense('logits', n, relu=False)"
            )
        layers: list[Layer] = []
        shape: Shape = (height, width, self.channels)
        for layer in self.layers:
            if isinstance(layer, MaxPool) and layer.round_up:
                layer = _pad_to_round_up(layer, shape)
            layers.append(layer)
            shape = _output_shape(layer, shape)
        _freeze(self, layers=tuple(layers))

    @property
    def num_classes(self) -> int:
        """Width of the classifier."""
        classifier = self.layers[-1]
        assert isinstance(classifier, Dense)
        return classifier.features

    def with_classes(self, num_classes: int) -> Architecture:
        """The same architecture with a classifier of `num_classes` outputs."""
        classifier = dataclasses.replace(self.layers[-1], features=num_classes)
        return dataclasses.replace(self, layers=(*self.layers[:-1], classifier))

    def with_input(self, input_hw: int | Pair) -> Architecture:
        """The same layers for images of another size, squares or rectangles."""
        return dataclasses.replace(self, input_hw=_pair(input_hw))

    def layer(self, name: str) -> Layer:
        """Specification of one layer.

        Raises:
            ValueError: There is no such layer. The message lists those that exist.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = " ".join(layer.name for layer in self.layers)
        raise ValueError(f"{self.name} has no layer {name!r}; it has {names}")

    def shapes(self) -> dict[str, Shape]:
        """Output shape of every layer for one image: (h, w, c) or (features,)."""
        return {layer.name: out for layer, _, out in self.walk()}

    def walk(self) -> Iterator[tuple[Layer, Shape, Shape]]:
        """Yield every layer with its input and output shape, from the image up."""
        shape: Shape = (*self.input_hw, self.channels)
        for layer in self.layers:
            out = _output_shape(layer, shape)
            yield layer, shape, out
            shape = out

    def kernel_shapes(self) -> dict[str, tuple[int, ...]]:
        """Kernel shape of every layer with weights: HWIO or (in, out)."""
        kernels: dict[str, tuple[int, ...]] = {}
        for layer, shape, _ in self.walk():
            if isinstance(layer, Conv):
                inputs = shape[-1] // layer.groups
                kernels[layer.name] = (*layer.kernel, inputs, layer.features)
            elif isinstance(layer, Dense):
                kernels[layer.name] = (math.prod(shape), layer.features)
        return kernels


def _output_shape(layer: Layer, shape: Shape) -> Shape:
    if isinstance(layer, Dense):
        return (layer.features,)
    if len(shape) == 1:
        raise ValueError(f"{layer.name}: a spatial layer cannot follow a dense one")
    if isinstance(layer, ContrastNorm):
        return shape
    height, width, channels = shape
    rows, columns = _output_extent(layer, height, 0), _output_extent(layer, width, 1)
    if isinstance(layer, MaxPool):
        return rows, columns, channels
    if channels % layer.groups:
        raise ValueError(
            f"{layer.name}: {channels} input maps do not split in {layer.groups}"
        )
    return rows, columns, layer.features


def _pad_to_round_up(pool: MaxPool, shape: Shape) -> MaxPool:
    padding = []
    # A dense layer's output has no extents; `_output_shape` refuses it.
    for axis, extent in enumerate(shape[:-1]):
        kernel, stride = pool.kernel[axis], pool.stride[axis]
        before, _ = pool.padding[axis]
        steps = -((kernel - extent - 2 * before) // stride)
        # The last window must start inside the map or the padding before it.
        steps = min(steps, (extent + before - 1) // stride)
        after = max(0, steps * stride + kernel - extent - before)
        padding.append((before, after))
    return dataclasses.replace(pool, padding=tuple(padding))


def _output_extent(layer: Conv | MaxPool, extent: int, axis: int) -> int:
    window, stride = layer.kernel[axis], layer.stride[axis]
    before, after = layer.padding[axis]
    if min(window, stride) < 1 or min(before, after) < 0:
        raise ValueError(f"{layer.name}: windows and strides start at 1, padding at 0")
    if isinstance(layer, MaxPool) and max(before, after) >= window:
        raise ValueError(f"{layer.name}: padding {before, after} fills a whole window")
    room = extent + before + after - window
    if room < 0:
        raise ValueError(
            f"{layer.name}: window {window} is larger than its padded map of "
            f"{extent + before + after}"
        )
    return room // stride + 1


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """Pixels of the image, or of a map, that a unit of a layer depends on.

    All values are (rows, columns).

    Attributes:
        size: Extent in pixels.
        stride: Distance in pixels between the fields of neighboring positions.
        start: First pixel of the field of position (0, 0); negative inside the padding.
        input_hw: Extent of the image or map.
    """

    size: Pair
    stride: Pair
    start: Pair
    input_hw: Pair

    def box(
        self, row: int, column: int, *, clip: bool = True
    ) -> tuple[int, int, int, int]:
        """Field of position (row, column): top, left, bottom, right.

        Bottom and right are exclusive. With `clip` the box ends at the image border;
        otherwise it may leave the image. No path reaches some pixels of the box where a
        stride exceeds its kernel.
        """
        top = self.start[0] + self.stride[0] * row
        left = self.start[1] + self.stride[1] * column
        bottom, right = top + self.size[0], left + self.size[1]
        if clip:
            height, width = self.input_hw
            top, bottom = (min(max(edge, 0), height) for edge in (top, bottom))
            left, right = (min(max(edge, 0), width) for edge in (left, right))
        return top, left, bottom, right

    def through(self, layer: Conv | MaxPool, input_hw: Pair) -> ReceptiveField:
        """Field of the same unit one layer further down, in that layer's input."""
        axes = zip(self.size, self.stride, self.start, strict=True)
        rows, columns = (
            (
                (size - 1) * layer.stride[axis] + layer.kernel[axis],
                stride * layer.stride[axis],
                start * layer.stride[axis] - layer.padding[axis][0],
            )
            for axis, (size, stride, start) in enumerate(axes)
        )
        size, stride, start = zip(rows, columns, strict=True)
        return ReceptiveField(size, stride, start, input_hw)


def receptive_field(network: Any, layer: str) -> ReceptiveField:
    """Receptive field of a layer's units, in pixels of the image.

    Dense layers, and layers of a network whose field cannot be known, see the whole
    image.

    Args:
        network: An architecture, a `ConvNet` or a `Network`.
        layer: A layer name.

    Raises:
        ValueError: There is no such layer.

    Example:
        >>> field = receptive_field(ZFNET, "conv2")
        >>> field.size, field.stride, field.box(0, 0)
        ((27, 27), (8, 8), (0, 0, 24, 24))
    """
    arch = getattr(network, "arch", network)  # of a ConvNet
    if isinstance(arch, Architecture):
        field, hw = _compute_field(arch, layer), arch.input_hw
    else:
        field, hw = network.layer(layer).receptive_field, network.image_shape[:2]
    # Wherever the unit lies, it sees the same pixels.
    return field or ReceptiveField(hw, (0, 0), (0, 0), hw)


def _compute_field(arch: Architecture, layer: str) -> ReceptiveField | None:
    target = arch.layer(layer)
    if isinstance(target, Dense):
        return None
    below = [*arch.walk()][: arch.layers.index(target) + 1]
    field = ReceptiveField((1, 1), (1, 1), (0, 0), map_hw(below[-1][2]))
    for spec, inputs, _ in reversed(below):
        if isinstance(spec, Conv | MaxPool):
            field = field.through(spec, map_hw(inputs))
    return field


def has_relu(layer: Layer) -> bool:
    """Return whether a ReLU follows a layer."""
    return isinstance(layer, Conv) or (isinstance(layer, Dense) and layer.relu)


def map_hw(shape: Shape) -> Pair:
    """Height and width of a spatial layer's output shape."""
    assert len(shape) == 3
    return shape[:2]


def ablate(
    arch: Architecture,
    remove: Collection[str] = (),
    widths: Mapping[str, int] | None = None,
) -> Architecture:
    """Remove or resize layers, as in the paper's Table 3.

        >>> ablate(ZFNET, remove=("fc7",), widths={"fc6": 2048}).name
        'zfnet -fc7 fc6=2048'

    Args:
        arch: The architecture to vary.
        remove: Names of layers to leave out.
        widths: New number of features, by layer name.

    Raises:
        ValueError: A name is unknown, a width is given for a layer that has none or is
            removed, or the remaining layers don't fit together.
    """
    widths = dict(widths or {})
    if clash := sorted(set(remove) & set(widths)):
        raise ValueError(f"both removed and resized: {' '.join(clash)}")
    layers = {layer.name: layer for layer in arch.layers}
    for name, width in widths.items():
        layer = arch.layer(name)
        if not isinstance(layer, Conv | Dense):
            raise ValueError(f"{name} has no width to change")
        layers[name] = dataclasses.replace(layer, features=width)
    for name in remove:
        layers.pop(arch.layer(name).name, None)
    changes = [f"-{name}" for name in remove]
    changes += [f"{name}={width}" for name, width in widths.items()]
    name = " ".join([arch.name, *changes])
    return Architecture(name, arch.input_hw, tuple(layers.values()), arch.channels)


_HEAD: tuple[Layer, ...] = (
    Dense("fc6", 4096, dropout=0.5),
    Dense("fc7", 4096, dropout=0.5),
    Dense("logits", 1000, relu=False),
)


def _top(*features: int, round_up: bool = False) -> tuple[Layer, ...]:
    """Layers 3 to 8 of the paper's network and of Krizhevsky et al. 2012."""
    names = "conv3", "conv4", "conv5"
    convs = (
        Conv(name, count, kernel=3, padding=1)
        for name, count in zip(names, features, strict=True)
    )
    return (*convs, MaxPool("pool5", round_up=round_up), *_HEAD)


ZFNET = Architecture(
    "zfnet",
    (224, 224),
    (
        Conv("conv1", 96, kernel=7, stride=2, padding=1),
        MaxPool("pool1", padding=1),
        ContrastNorm("norm1"),
        Conv("conv2", 256, kernel=5, stride=2),
        MaxPool("pool2", padding=1),
        ContrastNorm("norm2"),
        *_top(384, 384, 256),
    ),
)
ZFNET_PLAIN = dataclasses.replace(
    ablate(ZFNET, remove=("norm1", "norm2")), name="zfnet-plain"
)

# Krizhevsky et al. 2012, section 3.5: normalization comes before pooling. Padding 2
# makes a 224 image give their 55 x 55 map.
ALEXNET = Architecture(
    "alexnet",
    (224, 224),
    (
        Conv("conv1", 96, kernel=11, stride=4, padding=2),
        ContrastNorm("norm1"),
        MaxPool("pool1"),
        Conv("conv2", 256, kernel=5, padding=2),
        ContrastNorm("norm2"),
        MaxPool("pool2"),
        *_top(384, 384, 256),
    ),
)

ZFNET32 = Architecture(
    "zfnet32",
    (32, 32),
    (
        Conv("conv1", 48, kernel=5, padding=2),
        MaxPool("pool1", padding=1),
        Conv("conv2", 96, kernel=3, padding=1),
        MaxPool("pool2", padding=1),
        Conv("conv3", 128, kernel=3, padding=1),
        Conv("conv4", 128, kernel=3, padding=1),
        Conv("conv5", 96, kernel=3, padding=1),
        MaxPool("pool5", padding=1),
        Dense("fc6", 256, dropout=0.2),
        Dense("fc7", 256, dropout=0.2),
        Dense("logits", 10, relu=False),
    ),
)

ZFNET32_WIDE = Architecture(
    "zfnet32-wide",
    (32, 32),
    (
        Conv("conv1", 64, kernel=5, padding=2),
        MaxPool("pool1", padding=1),
        Conv("conv2", 128, kernel=3, padding=1),
        Conv("conv3", 128, kernel=3, padding=1),
        MaxPool("pool3", padding=1),
        Conv("conv4", 256, kernel=3, padding=1),
        Conv("conv5", 192, kernel=3, padding=1),
        MaxPool("pool5", padding=1),
        Dense("fc6", 256, dropout=0.2),
        Dense("fc7", 256, dropout=0.2),
        Dense("logits", 10, relu=False),
    ),
)


def _mini(name: str, conv1: Conv, conv2: Conv) -> Architecture:
    layers: tuple[Layer, ...] = (
        conv1,
        MaxPool("pool1", padding=1),
        conv2,
        MaxPool("pool2", padding=1),
        Conv("conv3", 96, kernel=3, padding=1),
        Conv("conv4", 96, kernel=3, padding=1),
        Conv("conv5", 64, kernel=3, padding=1),
        MaxPool("pool5", padding=1),
        Dense("fc6", 1024, dropout=0.5),
        Dense("fc7", 1024, dropout=0.5),
        Dense("logits", 10, relu=False),
    )
    return Architecture(name, (32, 32), layers)


# The paper's two networks for 32 x 32 images and two CPU cores, alike except for layers
# 1 and 2: a quarter of the widths, half of the strides of layer 1, no normalization.
ZFNET_MINI = _mini(
    "zfnet-mini",
    Conv("conv1", 24, kernel=5, stride=1, padding=2),
    Conv("conv2", 64, kernel=5, stride=2, padding=2),
)
ALEXNET_MINI = _mini(
    "alexnet-mini",
    Conv("conv1", 24, kernel=7, stride=2, padding=3),
    Conv("conv2", 64, kernel=5, stride=1, padding=2),
)


# Public networks, trained on ImageNet.


def _build_pytorchcv(name: str, conv1: Conv, conv2: Conv, *top: int) -> Architecture:
    """Build a network of pytorchcv; PyTorch divides its alpha of 1e-4 by the size."""
    layers: list[Layer] = []
    for number, conv in enumerate((conv1, conv2), 1):
        norm = ContrastNorm(f"norm{number}", alpha=1e-4 / 5)
        layers += [conv, norm, MaxPool(f"pool{number}", round_up=True)]
    layers += _top(*top, round_up=True)
    return Architecture(name, (224, 224), tuple(layers))


def _build_vgg(depth: int, *convs: int) -> Architecture:
    """Build a network of Simonyan & Zisserman 2014 by its convolutions per block."""
    layers: list[Layer] = []
    features = 64, 128, 256, 512, 512
    for block, (count, width) in enumerate(zip(convs, features, strict=True), 1):
        names = [f"conv{block}_{number}" for number in range(1, count + 1)]
        layers += [Conv(name, width, kernel=3, padding=1) for name in names]
        layers.append(MaxPool(f"pool{block}", kernel=2))
    return Architecture(f"vgg{depth}", (224, 224), (*layers, *_HEAD))


_ZFNET_CONVS = (
    Conv("conv1", 96, kernel=7, stride=2, padding=1),
    Conv("conv2", 256, kernel=5, stride=2),
)
_ALEXNET_CONVS = (
    Conv("conv1", 96, kernel=11, stride=4),
    Conv("conv2", 256, kernel=5, padding=2),
)
_PUBLIC = (
    _build_pytorchcv("zfnet-imagenet", *_ZFNET_CONVS, 384, 384, 256),
    _build_pytorchcv("zfnetb-imagenet", *_ZFNET_CONVS, 512, 1024, 512),
    _build_pytorchcv("alexnet-imagenet", *_ALEXNET_CONVS, 384, 384, 256),
    Architecture(
        "alexnet-torchvision",
        (224, 224),
        (
            Conv("conv1", 64, kernel=11, stride=4, padding=2),
            MaxPool("pool1"),
            Conv("conv2", 192, kernel=5, padding=2),
            MaxPool("pool2"),
            *_top(384, 256, 256),
        ),
    ),
    _build_vgg(11, 1, 1, 2, 2, 2),
    _build_vgg(13, 2, 2, 2, 2, 2),
    _build_vgg(16, 2, 2, 3, 3, 3),
    _build_vgg(19, 2, 2, 4, 4, 4),
)

ARCHITECTURES = {
    arch.name: arch
    for arch in (ZFNET, ZFNET_PLAIN, ALEXNET, ZFNET32, ZFNET32_WIDE, *_PUBLIC)
}

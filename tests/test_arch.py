"""Architectures: the paper's numbers, what is refused, and what each unit sees."""

import dataclasses
import itertools
import types

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zfnet_jax.arch import (
    ALEXNET,
    ARCHITECTURES,
    ZFNET,
    ZFNET32,
    ZFNET_PLAIN,
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
    ReceptiveField,
    ablate,
    receptive_field,
)

LOGITS = Dense("logits", 2, relu=False)


def stack(*layers, hw=(8, 8)):
    return Architecture("net", hw, (*layers, LOGITS))


# --- the paper's networks ---


def test_zfnet_is_the_papers():
    """Fig. 3: 110 → 55 → 26 → 13 → 6, and 9,216 values into layer 6."""
    assert ZFNET.shapes() == {
        "conv1": (110, 110, 96),
        "pool1": (55, 55, 96),
        "norm1": (55, 55, 96),
        "conv2": (26, 26, 256),
        "pool2": (13, 13, 256),
        "norm2": (13, 13, 256),
        "conv3": (13, 13, 384),
        "conv4": (13, 13, 384),
        "conv5": (13, 13, 256),
        "pool5": (6, 6, 256),
        "fc6": (4096,),
        "fc7": (4096,),
        "logits": (1000,),
    }
    assert ZFNET.kernel_shapes() == {
        "conv1": (7, 7, 3, 96),
        "conv2": (5, 5, 96, 256),
        "conv3": (3, 3, 256, 384),
        "conv4": (3, 3, 384, 384),
        "conv5": (3, 3, 384, 256),
        "fc6": (9216, 4096),
        "fc7": (4096, 4096),
        "logits": (4096, 1000),
    }
    assert (ZFNET.name, ZFNET.input_hw, ZFNET.channels) == ("zfnet", (224, 224), 3)


@pytest.mark.parametrize(
    ("name", "kernel", "stride", "padding"),
    [
        ("conv1", 7, 2, 1),
        ("pool1", 3, 2, 1),
        ("conv2", 5, 2, 0),
        ("pool2", 3, 2, 1),
        ("conv3", 3, 1, 1),
        ("conv4", 3, 1, 1),
        ("conv5", 3, 1, 1),
        ("pool5", 3, 2, 0),
    ],
)
def test_zfnets_windows(name, kernel, stride, padding):
    layer = ZFNET.layer(name)
    assert isinstance(layer, Conv if name.startswith("conv") else MaxPool)
    assert layer.kernel == (kernel, kernel)
    assert layer.stride == (stride, stride)
    assert layer.padding == ((padding, padding), (padding, padding))


@pytest.mark.parametrize("arch", [ZFNET, ZFNET_PLAIN, ALEXNET], ids=lambda a: a.name)
def test_the_papers_head(arch):
    assert arch.layers[-3:] == (
        Dense("fc6", 4096, relu=True, dropout=0.5),
        Dense("fc7", 4096, relu=True, dropout=0.5),
        Dense("logits", 1000, relu=False, dropout=0.0),
    )
    assert arch.num_classes == 1000
    # Layers 3 to 5 are dense, not split over two GPUs.
    assert all(layer.groups == 1 for layer in arch.layers if isinstance(layer, Conv))


@pytest.mark.parametrize("arch", [ZFNET, ALEXNET], ids=lambda a: a.name)
def test_contrast_norm_has_krizhevskys_constants(arch):
    norms = [layer for layer in arch.layers if isinstance(layer, ContrastNorm)]
    assert norms == [
        ContrastNorm(name, size=5, k=2.0, alpha=1e-4, beta=0.75)
        for name in ("norm1", "norm2")
    ]


def test_zfnet_plain_is_zfnet_without_normalisation():
    norms = ("norm1", "norm2")
    assert ZFNET_PLAIN.layers == ablate(ZFNET, remove=norms).layers
    assert ZFNET_PLAIN.name == "zfnet-plain"
    assert ZFNET_PLAIN.kernel_shapes() == ZFNET.kernel_shapes()


def test_alexnet_is_the_papers_single_tower():
    assert [layer.name for layer in ALEXNET.layers[:6]] == [
        "conv1", "norm1", "pool1", "conv2", "norm2", "pool2",
    ]  # fmt: skip
    shapes = ALEXNET.shapes()
    maps = [shapes[f"{name}"] for name in ("conv1", "pool1", "pool2", "pool5")]
    assert maps == [(55, 55, 96), (27, 27, 96), (13, 13, 256), (6, 6, 256)]
    kernels = ALEXNET.kernel_shapes()
    assert kernels["conv1"] == (11, 11, 3, 96)
    assert kernels["conv2"] == (5, 5, 96, 256)
    assert kernels["fc6"] == (9216, 4096)
    conv1, conv2 = ALEXNET.layer("conv1"), ALEXNET.layer("conv2")
    assert isinstance(conv1, Conv) and conv1.stride == (4, 4)
    assert isinstance(conv2, Conv) and conv2.stride == (1, 1)
    # Above the second pooling the two networks are the same.
    assert ALEXNET.layers[6:] == ZFNET_PLAIN.layers[4:]


def test_zfnet32_is_of_the_same_family():
    assert [(type(layer), layer.name) for layer in ZFNET32.layers] == [
        (type(layer), layer.name) for layer in ZFNET_PLAIN.layers
    ]
    assert [type(layer) for layer in ZFNET32.layers].count(Conv) == 5
    assert [type(layer) for layer in ZFNET32.layers].count(MaxPool) == 3
    assert [type(layer) for layer in ZFNET32.layers].count(Dense) == 3
    assert (ZFNET32.input_hw, ZFNET32.num_classes) == ((32, 32), 10)


def test_architectures_are_listed_by_name():
    assert list(ARCHITECTURES) == ["zfnet", "zfnet-plain", "alexnet", "zfnet32"]
    assert all(arch.name == name for name, arch in ARCHITECTURES.items())


def test_architectures_are_values():
    """Equal descriptions are equal and hash alike: jit and nnx compare them."""
    again = dataclasses.replace(ZFNET)
    assert again is not ZFNET and again == ZFNET and hash(again) == hash(ZFNET)
    assert ZFNET != ZFNET_PLAIN
    with pytest.raises(dataclasses.FrozenInstanceError):
        ZFNET.layer("conv1").name = "conv9"  # type: ignore


# --- Table 3 ---

BIG = {"conv3": 512, "conv4": 1024, "conv5": 512}
TABLE3 = {
    "alexnet: layers 3, 4 removed": ablate(ALEXNET, remove=("conv3", "conv4")),
    "alexnet: layer 7 removed": ablate(ALEXNET, remove=("fc7",)),
    "alexnet: layers 6, 7 removed": ablate(ALEXNET, remove=("fc6", "fc7")),
    "alexnet: layers 3, 4, 6, 7 removed": ablate(
        ALEXNET, remove=("conv3", "conv4", "fc6", "fc7")
    ),
    "alexnet: 2,048 units": ablate(ALEXNET, widths={"fc6": 2048, "fc7": 2048}),
    "alexnet: 8,192 units": ablate(ALEXNET, widths={"fc6": 8192, "fc7": 8192}),
    "zfnet: 2,048 units": ablate(ZFNET, widths={"fc6": 2048, "fc7": 2048}),
    "zfnet: 8,192 units": ablate(ZFNET, widths={"fc6": 8192, "fc7": 8192}),
    "zfnet: 512, 1024, 512": ablate(ZFNET, widths=BIG),
    "zfnet: both": ablate(ZFNET, widths={**BIG, "fc6": 8192, "fc7": 8192}),
}
C5 = (3, 3, 384, 256)
KERNELS3 = {  # the kernels that a row changes; None: gone
    "alexnet: layers 3, 4 removed": {
        "conv3": None, "conv4": None, "conv5": (3, 3, 256, 256),
    },
    "alexnet: layer 7 removed": {"fc7": None},
    "alexnet: layers 6, 7 removed": {
        "fc6": None, "fc7": None, "logits": (9216, 1000),
    },
    "alexnet: layers 3, 4, 6, 7 removed": {
        "conv3": None, "conv4": None, "conv5": (3, 3, 256, 256),
        "fc6": None, "fc7": None, "logits": (9216, 1000),
    },
    "alexnet: 2,048 units": {
        "fc6": (9216, 2048), "fc7": (2048, 2048), "logits": (2048, 1000),
    },
    "alexnet: 8,192 units": {
        "fc6": (9216, 8192), "fc7": (8192, 8192), "logits": (8192, 1000),
    },
    "zfnet: 2,048 units": {
        "fc6": (9216, 2048), "fc7": (2048, 2048), "logits": (2048, 1000),
    },
    "zfnet: 8,192 units": {
        "fc6": (9216, 8192), "fc7": (8192, 8192), "logits": (8192, 1000),
    },
    "zfnet: 512, 1024, 512": {
        "conv3": (3, 3, 256, 512), "conv4": (3, 3, 512, 1024),
        "conv5": (3, 3, 1024, 512), "fc6": (18432, 4096),
    },
    "zfnet: both": {
        "conv3": (3, 3, 256, 512), "conv4": (3, 3, 512, 1024),
        "conv5": (3, 3, 1024, 512), "fc6": (18432, 8192), "fc7": (8192, 8192),
        "logits": (8192, 1000),
    },
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE3)
def test_table_3_is_one_line_a_row(row):
    base = ALEXNET if row.startswith("alexnet") else ZFNET
    expected = {**base.kernel_shapes(), **KERNELS3[row]}
    kernels = {name: shape for name, shape in expected.items() if shape}
    arch = TABLE3[row]
    assert arch.kernel_shapes() == kernels
    assert arch.input_hw == base.input_hw and arch.channels == base.channels
    # What a row does not name keeps its windows, padding and dropout.
    for layer in arch.layers:
        original = base.layer(layer.name)
        if isinstance(layer, Conv | Dense) and isinstance(original, Conv | Dense):
            layer = dataclasses.replace(layer, features=original.features)
        assert layer == original


def test_variants_have_names_of_their_own():
    names = [arch.name for arch in (*TABLE3.values(), ALEXNET, ZFNET)]
    assert len(set(names)) == len(names)
    assert ablate(ZFNET, remove=("fc7",)).name == "zfnet -fc7"
    assert ablate(ZFNET, widths={"fc6": 2048}).name == "zfnet fc6=2048"


def test_ablating_nothing_changes_nothing():
    assert ablate(ZFNET) == ZFNET


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remove": ("fc8",)}, r"zfnet has no layer 'fc8'.*conv1 pool1 norm1.*logits$"),
        ({"widths": {"fc8": 9}}, r"zfnet has no layer 'fc8'.*fc6 fc7 logits$"),
        ({"widths": {"pool1": 9}}, "pool1 has no width"),
        ({"widths": {"norm1": 9}}, "norm1 has no width"),
        (
            {"remove": ("fc7", "conv3", "fc6"), "widths": {"fc7": 9, "fc6": 9}},
            "both removed and resized: fc6 fc7",
        ),
        ({"remove": ("logits",)}, "last layer must be .*logits"),
    ],
)
def test_an_impossible_ablation_is_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        ablate(ZFNET, **changes)
    assert "\n" not in str(caught.value)


# --- variants of size ---


def test_with_classes_changes_the_classifier_only():
    arch = ZFNET.with_classes(7)
    assert arch.num_classes == 7
    assert arch.layers[-1] == Dense("logits", 7, relu=False)
    assert arch.layers[:-1] == ZFNET.layers[:-1]
    assert (arch.name, arch.input_hw) == (ZFNET.name, ZFNET.input_hw)
    assert ZFNET.num_classes == 1000


def test_with_input_takes_squares_and_rectangles():
    assert ZFNET.with_input(224) == ZFNET
    arch = ZFNET.with_input((224, 320))
    # Columns: (320 + 2 - 7) // 2 + 1 = 158, 79, (79 - 5) // 2 + 1 = 38, 19, 9.
    maps = [arch.shapes()[f"{name}"] for name in ("conv1", "pool1", "conv2", "pool2")]
    assert maps == [(110, 158, 96), (55, 79, 96), (26, 38, 256), (13, 19, 256)]
    assert arch.shapes()["pool5"] == (6, 9, 256)
    assert arch.kernel_shapes()["fc6"] == (6 * 9 * 256, 4096)
    assert arch.layers == ZFNET.layers


def test_rectangular_windows_and_lopsided_padding():
    arch = stack(
        Conv("conv1", 4, kernel=(2, 5), stride=(3, 1), padding=((1, 0), (0, 2))),
        MaxPool("pool1", kernel=(1, 2), stride=(2, 3), padding=((0, 0), (1, 0))),
        hw=(9, 6),
    )
    # Rows: (9 + 1 - 2) // 3 + 1 = 3, (3 - 1) // 2 + 1 = 2.
    # Columns: (6 + 2 - 5) + 1 = 4, (4 + 1 - 2) // 3 + 1 = 2.
    assert arch.shapes() == {"conv1": (3, 4, 4), "pool1": (2, 2, 4), "logits": (2,)}
    assert arch.kernel_shapes() == {"conv1": (2, 5, 3, 4), "logits": (16, 2)}


def test_ints_stand_for_squares():
    square = ((2, 2), (2, 2))
    assert Conv("c", 1, 3, 2, 2) == Conv("c", 1, (3, 3), (2, 2), square)
    assert MaxPool("p", 4, 3, 2) == MaxPool("p", (4, 4), (3, 3), square)
    assert Conv("c", 1, 3) == Conv("c", 1, 3, stride=1, padding=0, groups=1)


def test_groups_split_the_input_maps():
    arch = stack(Conv("conv1", 4, 1), Conv("conv2", 6, 3, groups=2))
    assert arch.kernel_shapes()["conv2"] == (3, 3, 2, 6)
    assert arch.shapes()["conv2"] == (6, 6, 6)


def test_walk_chains_the_shapes():
    steps = list(ZFNET.walk())
    assert [layer for layer, _, _ in steps] == list(ZFNET.layers)
    assert steps[0][1] == (224, 224, 3)
    for (_, _, out), (_, shape, _) in itertools.pairwise(steps):
        assert out == shape


# --- what does not fit together ---


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((Conv("a", 1, 9),), "a: window 9 .* larger than its padded map of 8"),
        ((Conv("a", 1, 11, padding=1),), "a: window 11 .* padded map of 10"),
        ((MaxPool("a", 7), MaxPool("b", 2)), "b: window 2 .* padded map of 1"),
        ((Conv("a", 1, (1, 9)),), "a: window 9 .* padded map of 8"),
        ((Conv("a", 1, 1), Conv("a", 1, 1)), "layer names repeat: a, a, logits"),
        ((Dense("a", 4), Conv("b", 1, 1)), "b: .* cannot follow a dense one"),
        ((Dense("a", 4), MaxPool("b", 1, 1)), "b: .* cannot follow a dense one"),
        ((Dense("a", 4), ContrastNorm("b")), "b: .* cannot follow a dense one"),
        ((MaxPool("a", 2, padding=2),), "a: padding .* fills a whole window"),
        (
            (MaxPool("a", (3, 2), padding=((1, 1), (0, 2))),),
            "a: padding .* fills a whole window",
        ),
        ((Conv("a", 1, 0),), "a: windows and strides start at 1"),
        ((Conv("a", 1, 1, stride=0),), "a: windows and strides start at 1"),
        ((Conv("a", 1, 3, padding=-1),), "a: .* padding at 0"),
        ((Conv("a", 2, 1, groups=2),), "a: 3 input maps do not split in 2"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ValueError, match=message) as caught:
        stack(*layers)
    assert "\n" not in str(caught.value)


def test_features_that_do_not_split_are_refused():
    with pytest.raises(ValueError, match="a: 3 features do not split in 2"):
        Conv("a", 3, 1, groups=2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Conv("a", 0, 1), "a: features must be at least 1, not 0"),
        (lambda: Conv("a", 2, 1, groups=0), "a: groups must be at least 1, not 0"),
        (lambda: ContrastNorm("a", size=0), "a: size must be at least 1, not 0"),
        (lambda: Dense("a", -3), "a: features must be at least 1, not -3"),
        (lambda: Dense("a", 1, dropout=1.0), r"a: dropout 1.0 is not in \[0, 1\)"),
        (lambda: Dense("a", 1, dropout=-0.1), r"a: dropout -0.1 is not in \[0, 1\)"),
        (lambda: ZFNET.with_input((0, 8)), "zfnet: height must be at least 1, not 0"),
        (lambda: ZFNET.with_classes(0), "logits: features must be at least 1, not 0"),
        (lambda: ablate(ZFNET, widths={"fc6": 0}), "fc6: features must be at least 1"),
        (
            lambda: Architecture("net", (8, 8), (LOGITS,), channels=0),
            "net: channels must be at least 1, not 0",
        ),
    ],
)
def test_extents_that_no_layer_can_have_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "layers",
    [
        (),
        (Conv("logits", 2, 1),),
        (Dense("fc6", 2, relu=False),),
        (Dense("logits", 2),),
        (LOGITS, Dense("fc6", 4)),
    ],
)
def test_the_last_layer_is_the_classifier(layers):
    with pytest.raises(
        ValueError, match=r"net: the last layer must be Dense\('logits'"
    ):
        Architecture("net", (8, 8), layers)


def test_an_image_too_small_is_refused():
    # conv1 leaves 3 x 3 of 9 x 9, pool1 2 x 2, on which the 5 x 5 of conv2 has no room.
    with pytest.raises(ValueError, match=r"conv2: window 5 .* padded map of 2$"):
        ZFNET.with_input(9)


def test_an_unknown_layer_lists_what_exists():
    listed = "conv1 pool1 conv2 pool2 conv3 conv4 conv5 pool5 fc6 fc7 logits"
    for ask in (ZFNET32.layer, lambda name: receptive_field(ZFNET32, name)):
        with pytest.raises(ValueError) as caught:
            ask("conv6")
        assert str(caught.value) == f"zfnet32 has no layer 'conv6'; it has {listed}"


# --- receptive fields ---


@pytest.mark.parametrize(
    ("layer", "size", "stride", "start"),
    [
        # Going up, a window of k adds (k - 1) strides to the size, a padding of p takes
        # p strides from the start, and a stride of s multiplies the stride.
        ("conv1", 7, 2, -1),
        ("pool1", 11, 4, -3),  # 7 + 2·2, -1 - 1·2
        ("norm1", 11, 4, -3),  # looks across maps, not pixels
        ("conv2", 27, 8, -3),  # 11 + 4·4, no padding
        ("pool2", 43, 16, -11),  # 27 + 2·8, -3 - 1·8
        ("conv3", 75, 16, -27),  # 43 + 2·16, -11 - 1·16
        ("conv4", 107, 16, -43),
        ("conv5", 139, 16, -59),
        ("pool5", 171, 32, -59),  # 139 + 2·16, no padding
    ],
)
def test_zfnets_receptive_fields(layer, size, stride, start):
    field = receptive_field(ZFNET, layer)
    assert (field.size, field.stride, field.start) == (
        (size, size),
        (stride, stride),
        (start, start),
    )
    assert field.input_hw == (224, 224)


@pytest.mark.parametrize(
    ("layer", "size", "stride", "start"),
    [
        ("conv1", 11, 4, -2),
        ("norm1", 11, 4, -2),
        ("pool1", 19, 8, -2),  # 11 + 2·4
        ("conv2", 51, 8, -18),  # 19 + 4·8, -2 - 2·8
        ("pool2", 67, 16, -18),  # 51 + 2·8
        ("conv5", 163, 16, -66),  # 67 + 3·2·16, -18 - 3·16
        ("pool5", 195, 32, -66),
    ],
)
def test_alexnets_receptive_fields(layer, size, stride, start):
    field = receptive_field(ALEXNET, layer)
    assert (field.size, field.stride, field.start) == (
        (size, size),
        (stride, stride),
        (start, start),
    )


def test_boxes_are_clipped_on_request():
    field = receptive_field(ZFNET, "conv5")
    assert field.box(0, 0) == (0, 0, 80, 80)
    assert field.box(0, 0, clip=False) == (-59, -59, 80, 80)
    assert field.box(6, 6) == field.box(6, 6, clip=False) == (37, 37, 176, 176)
    assert field.box(12, 3) == (133, 0, 224, 128)
    assert field.box(12, 3, clip=False) == (133, -11, 272, 128)


def test_a_unit_that_sees_padding_only_has_an_empty_box():
    arch = stack(Conv("a", 1, 1, padding=1))
    assert receptive_field(arch, "a").box(0, 0) == (0, 0, 0, 0)
    assert receptive_field(arch, "a").box(9, 4) == (8, 3, 8, 4)


@pytest.mark.parametrize("layer", ["fc6", "fc7", "logits"])
def test_a_dense_unit_sees_the_whole_image(layer):
    field = receptive_field(ZFNET.with_input((224, 320)), layer)
    assert field == ReceptiveField((224, 320), (0, 0), (0, 0), (224, 320))
    assert field.box(0, 0) == field.box(0, 0, clip=False) == (0, 0, 224, 320)


def positions_seen(layers, axis, position):
    """Coordinates along one axis that a position sees, as if no map had an end."""
    seen = {position}
    for layer in reversed(layers):
        if isinstance(layer, Conv | MaxPool):
            first = -layer.padding[axis][0]
            seen = {
                layer.stride[axis] * place + first + tap
                for place in seen
                for tap in range(layer.kernel[axis])
            }
    return seen


def influence(arch):
    """For each spatial layer, which pixels reach each position: bool [h, w, H, W]."""
    height, width = arch.input_hw
    seen = np.eye(height * width, dtype=bool).reshape(height, width, height, width)
    maps = {}
    for layer, (_, _, out) in zip(arch.layers, arch.walk(), strict=True):
        if isinstance(layer, Dense):
            break
        if isinstance(layer, Conv | MaxPool):
            padded = np.pad(seen, (*layer.padding, (0, 0), (0, 0)))
            seen = np.zeros((*out[:2], height, width), bool)
            for i, j in np.ndindex(*out[:2]):
                top, left = i * layer.stride[0], j * layer.stride[1]
                bottom, right = top + layer.kernel[0], left + layer.kernel[1]
                seen[i, j] = padded[top:bottom, left:right].any((0, 1))
        maps[layer.name] = seen
    return maps


def bounds(pixels):
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def spatial_layers(draw):
    """Some windows in a row; a window always reaches beyond its padding."""
    layers = []
    for index in range(draw(st.integers(1, 4))):
        kernel, stride = draw(pairs(1, 4)), draw(pairs(1, 3))
        padding = draw(pairs(0, kernel[0] - 1)), draw(pairs(0, kernel[1] - 1))
        match draw(st.sampled_from(["conv", "conv", "pool", "norm"])):
            case "conv":
                layers.append(Conv(f"conv{index}", 1, kernel, stride, padding))
            case "pool":
                layers.append(MaxPool(f"pool{index}", kernel, stride, padding))
            case "norm":
                layers.append(ContrastNorm(f"norm{index}"))
    return tuple(layers)


def built(hw, layers):
    try:
        return stack(*layers, hw=hw)
    except ValueError:
        assume(False)
        raise


def covers(arch):
    """Whether every window meets the next and no pixel of any map is left unread."""
    return all(
        layer.stride[axis] <= layer.kernel[axis]
        and (shape[axis] + sum(layer.padding[axis]) - layer.kernel[axis])
        % layer.stride[axis]
        <= layer.padding[axis][1]
        for layer, shape, _ in arch.walk()
        if isinstance(layer, Conv | MaxPool)
        for axis in (0, 1)
    )


@settings(max_examples=60)
@given(pairs(5, 16), spatial_layers())
def test_boxes_without_clipping_are_the_windows_composed(hw, layers):
    arch = built(hw, layers)
    for depth, (layer, _, out) in enumerate(arch.walk()):
        if len(out) == 1:
            break
        field = receptive_field(arch, layer.name)
        below = arch.layers[: depth + 1]
        for position in ((0, 0), (out[0] - 1, out[1] // 2)):
            rows, columns = (
                positions_seen(below, axis, position[axis]) for axis in (0, 1)
            )
            assert field.box(*position, clip=False) == (
                min(rows),
                min(columns),
                max(rows) + 1,
                max(columns) + 1,
            )


@settings(max_examples=60)
@given(pairs(5, 16), spatial_layers())
def test_boxes_are_the_pixels_that_matter(hw, layers):
    arch = built(hw, layers)
    exact = covers(arch)
    for name, seen in influence(arch).items():
        field = receptive_field(arch, name)
        for position in np.ndindex(*seen.shape[:2]):
            top, left, bottom, right = box = field.box(*position)
            if exact:
                assert box == bounds(seen[position])
            outside = seen[position].copy()
            outside[top:bottom, left:right] = False
            assert not outside.any()


# --- layer names, and receptive fields of other networks ---


@pytest.mark.parametrize("name", ["conv1", "block1.conv-2", "a/b_c", "Mixed_5b..x"])
def test_layer_names_that_are_allowed(name):
    assert stack(Dense(name, 4)).layers[0].name == name


@pytest.mark.parametrize(
    "name",
    ["", "/etc/x", "../x", "a/../b", "a/..", "a/", "a b", "$x", "a\n", "é", "\u202ex"],
)
def test_a_layer_name_cannot_leave_its_folder(name):
    with pytest.raises(ValueError, match=r"net: .* cannot name a layer"):
        stack(Dense(name, 4))


def test_receptive_fields_of_anything_that_has_layers():
    field = ReceptiveField((3, 3), (1, 1), (0, 0), (8, 6))

    class Table:
        image_shape = (8, 6, 3)

        def layer(self, name):
            fields = {"stem": field, "head": None}
            return types.SimpleNamespace(receptive_field=fields[name])

    assert receptive_field(Table(), "stem") is field
    assert receptive_field(Table(), "head").box(0, 0) == (0, 0, 8, 6)


def test_one_channel_is_a_channel_like_any_other():
    arch = Architecture("gray", (8, 8), (Conv("conv1", 2, 3), LOGITS), channels=1)
    assert arch.kernel_shapes()["conv1"] == (3, 3, 1, 2)

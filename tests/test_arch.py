"""Architectures: the paper's numbers, what is refused, and what each unit sees."""

import dataclasses
import math

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
    assert (ZFNET.name, ZFNET.input_hw, ZFNET.channels) == ("zfnet", (224, 224), 3)
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


def test_alexnet_is_the_papers_single_tower():
    names = "conv1 norm1 pool1 conv2 norm2 pool2".split()
    assert [layer.name for layer in ALEXNET.layers[:6]] == names
    maps = [ALEXNET.shapes()[name] for name in ("conv1", "pool1", "pool2", "pool5")]
    assert maps == [(55, 55, 96), (27, 27, 96), (13, 13, 256), (6, 6, 256)]
    kernels = ALEXNET.kernel_shapes()
    assert (kernels["conv1"], kernels["conv2"]) == ((11, 11, 3, 96), (5, 5, 96, 256))
    # Above the second pooling the two networks are the same.
    assert ALEXNET.layers[6:] == ZFNET_PLAIN.layers[4:]


def test_heads_and_normalization_have_the_papers_constants():
    for arch in (ZFNET, ALEXNET):
        assert arch.layers[-3:] == (
            Dense("fc6", 4096, relu=True, dropout=0.5),
            Dense("fc7", 4096, relu=True, dropout=0.5),
            Dense("logits", 1000, relu=False, dropout=0.0),
        )
        norms = [layer for layer in arch.layers if isinstance(layer, ContrastNorm)]
        assert norms == [
            ContrastNorm(name, size=5, k=2.0, alpha=1e-4, beta=0.75)
            for name in ("norm1", "norm2")
        ]


def test_the_other_networks_are_of_the_same_family():
    names = [(type(layer), layer.name) for layer in ZFNET_PLAIN.layers]
    assert [(type(layer), layer.name) for layer in ZFNET32.layers] == names


@pytest.mark.parametrize(
    ("name", "parameters", "top"),
    [
        ("zfnet-imagenet", 62_357_608, (6, 6, 256)),
        ("zfnetb-imagenet", 107_627_624, (6, 6, 512)),
        ("alexnet-imagenet", 62_378_344, (6, 6, 256)),
        ("alexnet-torchvision", 61_100_840, (6, 6, 256)),
        ("vgg11", 132_863_336, (7, 7, 512)),
        ("vgg13", 133_047_848, (7, 7, 512)),
        ("vgg16", 138_357_544, (7, 7, 512)),
        ("vgg19", 143_667_240, (7, 7, 512)),
    ],
)
def test_public_networks_have_as_many_parameters_as_published(name, parameters, top):
    arch = ARCHITECTURES[name]
    kernels = arch.kernel_shapes().values()
    assert sum(math.prod(shape) + shape[-1] for shape in kernels) == parameters
    assert (arch.name, arch.input_hw, arch.num_classes) == (name, (224, 224), 1000)
    assert arch.shapes()["pool5"] == top


def test_pytorchcv_normalizes_before_pooling_and_rounds_up():
    arch = ARCHITECTURES["zfnet-imagenet"]
    names = "conv1 norm1 pool1 conv2 norm2 pool2".split()
    assert [layer.name for layer in arch.layers[:6]] == names
    # 110 / 2 = 55 windows of 3 reach one pixel beyond the map.
    assert arch.layer("pool1") == MaxPool("pool1", 3, 2, ((0, 1), (0, 1)), True)
    assert arch.layer("norm1") == ContrastNorm("norm1", 5, 2.0, 2e-5, 0.75)
    maps = [arch.shapes()[name] for name in ("pool1", "conv2", "pool2", "pool5")]
    assert maps == [(55, 55, 96), (26, 26, 256), (13, 13, 256), (6, 6, 256)]
    shapes = ARCHITECTURES["alexnet-imagenet"].shapes()
    maps = [shapes[name] for name in ("conv1", "pool1", "pool2", "pool5")]
    assert maps == [(54, 54, 96), (27, 27, 96), (13, 13, 256), (6, 6, 256)]


def test_architectures_are_values():
    """Equal descriptions are equal and hash alike: jit and nnx compare them."""
    again = ablate(ZFNET)
    assert again is not ZFNET and again == ZFNET and hash(again) == hash(ZFNET)


# --- Table 3 ---


WIDE = {"conv3": 512, "conv4": 1024, "conv5": 512}
# Architecture, layers removed, widths, and the kernels that the row changes.
TABLE3 = [
    (ALEXNET, "fc7", {}, {}),
    (
        ALEXNET,
        "conv3 conv4 fc6 fc7",
        {},
        {"conv5": (3, 3, 256, 256), "logits": (9216, 1000)},
    ),
    (
        ZFNET,
        "",
        {**WIDE, "fc6": 8192},
        {
            "conv3": (3, 3, 256, 512),
            "conv4": (3, 3, 512, 1024),
            "conv5": (3, 3, 1024, 512),
            "fc6": (18432, 8192),
            "fc7": (8192, 4096),
        },
    ),
]


@pytest.mark.parametrize(("base", "remove", "widths", "kernels"), TABLE3)
def test_table_3_is_one_line_per_row(base, remove, widths, kernels):
    arch = ablate(base, remove=remove.split(), widths=widths)
    expected = {**base.kernel_shapes(), **kernels}
    for name in remove.split():
        del expected[name]
    assert arch.kernel_shapes() == expected
    # What a row does not name keeps its windows, padding and dropout.
    for layer in arch.layers:
        original = base.layer(layer.name)
        if isinstance(layer, Conv | Dense) and isinstance(original, Conv | Dense):
            layer = dataclasses.replace(layer, features=original.features)
        assert layer == original


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remove": ("fc8",)}, r"zfnet has no layer 'fc8'.*conv1 pool1 norm1.*logits$"),
        ({"widths": {"pool1": 9}}, "pool1 has no width"),
        ({"remove": ("fc7",), "widths": {"fc7": 9}}, "both removed and resized: fc7"),
        ({"remove": ("logits",)}, "last layer must be .*logits"),
    ],
)
def test_an_impossible_ablation_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ablate(ZFNET, **changes)


# --- sizes ---


def test_rectangles_lopsided_padding_and_groups():
    arch = stack(
        Conv("conv1", 4, kernel=(2, 5), stride=(3, 1), padding=((1, 0), (0, 2))),
        MaxPool("pool1", kernel=(1, 2), stride=(2, 3), padding=((0, 0), (1, 0))),
        Conv("conv2", 6, 1, groups=2),
        hw=(9, 6),
    )
    # Rows: (9 + 1 - 2) // 3 + 1 = 3, (3 - 1) // 2 + 1 = 2.
    # Columns: (6 + 2 - 5) + 1 = 4, (4 + 1 - 2) // 3 + 1 = 2.
    shapes = {"conv1": (3, 4, 4), "pool1": (2, 2, 4), "conv2": (2, 2, 6)}
    assert arch.shapes() == {**shapes, "logits": (2,)}
    assert arch.kernel_shapes()["conv1"] == (2, 5, 3, 4)
    assert arch.kernel_shapes()["conv2"] == (1, 1, 2, 6)
    assert arch.kernel_shapes()["logits"] == (24, 2)


@pytest.mark.parametrize(
    ("extent", "kernel", "stride", "before", "expected", "after"),
    [
        (110, 3, 2, 0, 55, 1),
        (55, 3, 2, 0, 27, 0),
        (2, 3, 2, 0, 1, 1),  # smaller than a window
        (6, 3, 3, 1, 3, 2),  # windows start at -1, 2 and 5
        (3, 2, 2, 1, 2, 0),  # a third window would start at 3, outside the map
        (4, 1, 2, 0, 2, 0),  # and here at 4
        (5, 2, 2, 1, 3, 0),  # windows start at -1, 1 and 3
    ],
)
def test_rounding_up_by_hand(extent, kernel, stride, before, expected, after):
    pool = MaxPool("pool", kernel, stride, before, round_up=True)
    net = stack(pool, hw=(extent, extent))
    assert net.shapes()["pool"] == (expected, expected, 3)
    assert net.layer("pool") == dataclasses.replace(
        pool, padding=((before, after),) * 2
    )


def test_rounding_up_follows_the_size_of_the_map():
    pool = MaxPool("pool", round_up=True)
    small, large = (stack(Conv("conv", 2, 3), pool, hw=hw) for hw in ((8, 9), (9, 8)))
    assert small.layer("pool") == MaxPool("pool", 3, 2, ((0, 1), (0, 0)), True)
    assert small.with_input((9, 8)) == large
    assert ablate(small, widths={"conv": 2}).layers == small.layers
    # Without its convolution the map is two pixels larger.
    bare = ablate(large, remove=("conv",)).layer("pool")
    assert bare == MaxPool("pool", 3, 2, ((0, 0), (0, 1)), True)


# --- what does not fit together ---


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([Conv("a", 1, 11, padding=1)], "a: window 11 .* padded map of 10"),
        ([MaxPool("a", 7), MaxPool("b", 2)], "b: window 2 .* padded map of 1"),
        ([Conv("a", 1, 1), Conv("a", 1, 1)], "layer names repeat: a, a, logits"),
        ([Dense("a", 4), Conv("b", 1, 1)], "b: .* cannot follow a dense one"),
        ([MaxPool("a", (3, 2), padding=((1, 1), (0, 2)))], "fills a whole window"),
        ([Conv("a", 1, 1, stride=0)], "a: windows and strides start at 1"),
        ([Conv("a", 2, 1, groups=2)], "a: 3 input maps do not split in 2"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        stack(*layers)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Conv("a", 3, 1, groups=2), "a: 3 features do not split in 2"),
        (lambda: Conv("a", 0, 1), "a: features must be at least 1, not 0"),
        (lambda: Dense("a", 1, dropout=1.0), r"a: dropout 1.0 is not in \[0, 1\)"),
        (lambda: ZFNET.with_input((0, 8)), "zfnet: height must be at least 1, not 0"),
    ],
)
def test_impossible_layers_and_images_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", ["", "/etc/x", "a/../b", "a/..", "a b", "a\n", "é"])
def test_a_layer_name_cannot_leave_its_folder(name):
    assert stack(Dense("a/block1.conv-2_b..x", 4))
    with pytest.raises(ValueError, match=r"net: .* cannot name a layer"):
        stack(Dense(name, 4))


# --- receptive fields ---


@pytest.mark.parametrize(
    ("arch", "layer", "size", "stride", "start"),
    [
        # Going up, a window of k adds (k - 1) strides to the size, a padding of p takes
        # p strides from the start, and a stride of s multiplies the stride.
        (ZFNET, "conv1", 7, 2, -1),
        (ZFNET, "norm1", 11, 4, -3),  # 7 + 2·2, -1 - 1·2
        (ZFNET, "conv2", 27, 8, -3),  # 11 + 4·4, no padding
        (ZFNET, "pool2", 43, 16, -11),  # 27 + 2·8, -3 - 1·8
        (ZFNET, "conv5", 139, 16, -59),  # 43 + 3·2·16, -11 - 3·16
        (ZFNET, "pool5", 171, 32, -59),  # 139 + 2·16, no padding
        (ALEXNET, "pool5", 195, 32, -66),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_receptive_fields_by_hand(arch, layer, size, stride, start):
    field = receptive_field(arch, layer)
    pairs = (size, size), (stride, stride), (start, start)
    assert (field.size, field.stride, field.start) == pairs


def test_boxes_are_clipped_on_request():
    field = receptive_field(ZFNET, "conv5")
    assert field.box(0, 0) == (0, 0, 80, 80)
    assert field.box(0, 0, clip=False) == (-59, -59, 80, 80)
    assert field.box(6, 6) == field.box(6, 6, clip=False) == (37, 37, 176, 176)
    assert field.box(12, 3) == (133, 0, 224, 128)
    # A unit that sees padding only has an empty box.
    padded = receptive_field(stack(Conv("a", 1, 1, padding=1)), "a")
    assert padded.box(9, 4) == (8, 3, 8, 4)


def test_a_dense_unit_sees_the_whole_image():
    field = receptive_field(ZFNET.with_input((224, 320)), "fc6")
    assert field == ReceptiveField((224, 320), (0, 0), (0, 0), (224, 320))
    assert field.box(0, 0) == field.box(0, 0, clip=False) == (0, 0, 224, 320)


def influence(arch):
    """For each spatial layer, which pixels reach each position: bool [h, w, H, W]."""
    height, width = arch.input_hw
    reach = np.eye(height * width, dtype=bool).reshape(height, width, height, width)
    maps = {}
    for layer, _, out in arch.walk():
        if isinstance(layer, Dense):
            break
        if isinstance(layer, Conv | MaxPool):
            padded = np.pad(reach, (*layer.padding, (0, 0), (0, 0)))
            reach = np.zeros((*out[:2], height, width), bool)
            for i, j in np.ndindex(*out[:2]):
                top, left = i * layer.stride[0], j * layer.stride[1]
                bottom, right = top + layer.kernel[0], left + layer.kernel[1]
                reach[i, j] = padded[top:bottom, left:right].any((0, 1))
        maps[layer.name] = reach
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
                up = draw(st.booleans())
                layers.append(MaxPool(f"pool{index}", kernel, stride, padding, up))
            case "norm":
                layers.append(ContrastNorm(f"norm{index}"))
    return tuple(layers)


def leaves_no_pixel(arch):
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


@settings(max_examples=40)
@given(pairs(5, 16), spatial_layers())
def test_boxes_are_the_pixels_that_matter(hw, layers):
    try:
        arch = stack(*layers, hw=hw)
    except ValueError:
        assume(False)
        raise
    exact = leaves_no_pixel(arch)
    for name, reach in influence(arch).items():
        field = receptive_field(arch, name)
        for position in np.ndindex(*reach.shape[:2]):
            top, left, bottom, right = box = field.box(*position)
            if exact:
                assert box == bounds(reach[position])
            outside = reach[position].copy()
            outside[top:bottom, left:right] = False
            assert not outside.any()

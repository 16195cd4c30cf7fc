"""Projections of a photograph, end to end: what is drawn, recorded and refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from matplotlib.figure import Figure
from PIL import Image

import zfnet_jax as zf
from experiments import project
from experiments.common import main
from experiments.project import RULES, Options, run
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool
from zfnet_jax.data import Preprocessing, load_photograph
from zfnet_jax.weights import Pretrained

pytestmark = pytest.mark.usefixtures("compiled_once")

TINY = Architecture(
    "tiny",
    (12, 12),
    (
        Conv("conv1", 4, kernel=3, padding=1),
        MaxPool("pool1", kernel=2, stride=2),
        Conv("conv2", 6, kernel=3, padding=1),
        Dense("fc3", 8),
        Dense("logits", 3, relu=False),
    ),
)


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth and coloured, the same on no two sides."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def torch_named(arch: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under PyTorch's names."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in arch.kernel_shapes().items():
        name = "fc8" if name == "logits" else name
        axes = (3, 2, 0, 1) if len(shape) == 4 else (1, 0)
        weight = rng.normal(0, 0.05, [shape[axis] for axis in axes])
        state[f"{name}.weight"] = weight.astype(np.float32)
        state[f"{name}.bias"] = rng.normal(0, 0.05, shape[-1]).astype(np.float32)
    return state


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photographs") / "photograph.png"
    photograph(90, 60).save(path)
    return path


@pytest.fixture(scope="module")
def described(tmp_path_factory) -> Path:
    """The weights of a tiny network, as `zf.save` writes them."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    model = zf.ConvNet(TINY, rngs=nnx.Rngs(0))
    mean = np.full((12, 12, 3), 100, np.float32)
    zf.save(
        path,
        model,
        preprocess=Preprocessing(mean, 1 / 64),
        class_names=("a", "b", "c"),
        metadata={},
    )
    return path


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """Weights of ZFNET32 with five classes, and no more."""
    path = tmp_path_factory.mktemp("weights") / "bare.safetensors"
    safetensors.numpy.save_file(torch_named(zf.ZFNET32.with_classes(5)), path)
    return path


@pytest.fixture(scope="module")
def shipped(tmp_path_factory, photo) -> Path:
    """The folder of a run with nothing but a photograph given."""
    out = tmp_path_factory.mktemp("results") / "new" / "folder"
    assert main(run, Options, ["--image", str(photo), "--out", str(out)]) == 0
    return out


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures of a run, in place of their files."""
    figures: list[Figure] = []
    monkeypatch.setattr(
        project.Results, "figure", lambda self, name, figure: figures.append(figure)
    )
    return figures


def metrics_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def refusal(capfd, code: int, *argv: str) -> str:
    """The one line that a wrong run ends with; whatever a decoder writes counts."""
    capfd.readouterr()
    assert main(run, Options, argv) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def seen_by(net: Pretrained, path: Path) -> np.ndarray:
    """The photograph as the network sees it: the middle square, made small."""
    pixels = Image.fromarray(load_photograph(path))
    side = min(pixels.size)
    left, top = ((extent - side) // 2 for extent in pixels.size)
    square = pixels.crop((left, top, left + side, top + side))
    height, width, _ = net.preprocess.mean.shape
    return np.asarray(square.resize((width, height), Image.Resampling.BILINEAR))


def test_the_strongest_units_are_recorded(shipped, photo):
    net = zf.load("zfnet32-cifar10")
    images = net.preprocess(seen_by(net, photo)[None])
    maps = net.model.features(images, until="conv5").features["conv5"][0]
    maps = np.asarray(maps)
    maxima = maps.max((0, 1))
    metrics = metrics_of(shipped)
    assert metrics["layer"] == "conv5" and metrics["architecture"] == "zfnet32"
    assert metrics["photograph_hw"] == [90, 60]
    found = metrics["projections"]
    assert [row["unit"] for row in found] == np.argsort(-maxima)[:9].tolist()
    field = zf.receptive_field(net.model.arch, "conv5")
    for row in found:
        at, unit = tuple(row["position"]), row["unit"]
        assert row["value"] == pytest.approx(maxima[unit], rel=1e-5)
        assert maps[*at, unit] == maxima[unit]
        assert row["box"] == list(field.box(*at, clip=False))


def test_the_scales_are_those_of_the_projections(shipped, photo):
    net = zf.load("zfnet32-cifar10")
    images = net.preprocess(seen_by(net, photo)[None])
    found = metrics_of(shipped)["projections"]
    units = [row["unit"] for row in found]
    for rule in RULES:
        pixels = zf.project(net, images, "conv5", units, rule=rule).pixels
        peaks = np.abs(pixels).reshape(len(units), -1).max(1)
        scales = [row["scales"][rule] for row in found]
        np.testing.assert_allclose(scales, peaks, rtol=1e-4)
    # The three rules are three, not one.
    assert len({tuple(row["scales"].values()) for row in found}) == 9
    assert all(len(set(row["scales"].values())) == 3 for row in found)


def test_the_folder_is_complete(shipped, photo):
    with Image.open(shipped / "projections_conv5.png") as image:
        assert min(image.size) > 500
        colors = np.asarray(image.convert("RGB"))
    assert colors.std() > 1
    config = json.loads((shipped / "config.json").read_text())
    assert config["image"] == str(photo) and config["weights"] == "zfnet32-cifar10"
    manifest = json.loads((shipped / "manifest.json").read_text())
    weights = Path(zf.__file__).parent / "pretrained" / "zfnet32-cifar10.safetensors"
    assert manifest["digests"] == {
        "image": hashlib.sha256(photo.read_bytes()).hexdigest(),
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    assert not list(shipped.rglob(".*"))


def test_the_figure_shows_the_patches_and_projections(described, tmp_path, drawn):
    """Row by row: the patch, then each rule's projection, on the scale recorded."""
    path = tmp_path / "photograph.png"
    photograph(12, 20).save(path)
    out = tmp_path / "out"
    arguments = ["--image", str(path), "--weights", str(described), "--out", str(out)]
    assert main(run, Options, [*arguments, "--layer", "conv2", "--units", "5,0"]) == 0
    (figure,) = drawn
    (ax,) = figure.axes
    picture, *shown = (np.asarray(image.get_array()) for image in ax.images)
    # Of 20 columns the middle 12; nothing is resized.
    expected = load_photograph(path)[:, 4:16]
    np.testing.assert_array_equal(picture, expected)
    found = metrics_of(out)["projections"]
    assert [row["unit"] for row in found] == [5, 0]
    net = zf.load(described)
    images = net.preprocess(expected[None])
    size = zf.receptive_field(TINY, "conv2").size
    padded = np.pad(expected, ((20, 20), (20, 20), (0, 0)), constant_values=128)
    for index, row in enumerate(found):
        patch, *projections = shown[4 * index : 4 * index + 4]
        top, left, bottom, right = (edge + 20 for edge in row["box"])
        assert (bottom - top, right - left) == size
        np.testing.assert_array_equal(patch, padded[top:bottom, left:right])
        for rule, colors in zip(RULES, projections, strict=True):
            pixels = zf.project(
                net, images, "conv2", row["unit"], rule=rule, crop=True
            ).pixels[0]
            peak = np.abs(pixels).max()
            assert row["scales"][rule] == pytest.approx(peak, rel=1e-5)
            if peak:
                np.testing.assert_allclose(colors, 0.5 + pixels / (2 * peak), atol=1e-5)
    texts = [text.get_text() for text in ax.texts]
    assert texts[0] == "conv2 of tiny: units 5,0"
    value, (at_row, at_column) = found[0]["value"], found[0]["position"]
    assert f"unit 5: {value:.3g} at row {at_row}, column {at_column}" in texts


@pytest.mark.parametrize("layer", ["conv1", "pool1", "fc3", "logits"])
def test_every_layer_has_its_figure(described, photo, tmp_path, layer):
    arguments = ["--image", str(photo), "--weights", str(described), "--top", "3"]
    out = ["--layer", layer, "--out", str(tmp_path)]
    assert main(run, Options, [*arguments, *out]) == 0
    with Image.open(tmp_path / f"projections_{layer}.png") as image:
        assert min(image.size) > 100
    found = metrics_of(tmp_path)["projections"]
    assert len(found) == 3
    values = [row["value"] for row in found]
    assert values == sorted(values, reverse=True)
    if layer in ("fc3", "logits"):
        assert all(row["box"] == [0, 0, 12, 12] for row in found)


def test_logits_are_called_by_their_class(described, photo, tmp_path, drawn):
    arguments = ["--image", str(photo), "--weights", str(described)]
    more = ["--layer", "logits", "--units", "1", "--out", str(tmp_path)]
    assert main(run, Options, [*arguments, *more]) == 0
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    # A dense unit has no place.
    assert f"unit 1 (b): {metrics_of(tmp_path)['projections'][0]['value']:.3g}" in texts


def test_a_layer_may_share_one_scale(described, photo, tmp_path):
    arguments = ["--image", str(photo), "--weights", str(described), "--layer", "conv1"]
    for scale, out in (("patch", tmp_path / "patch"), ("layer", tmp_path / "layer")):
        options = ["--scale", scale, "--out", str(out)]
        assert main(run, Options, [*arguments, *options]) == 0
    patch, layer = (metrics_of(tmp_path / name) for name in ("patch", "layer"))
    assert layer["scale"] == "layer"
    # Fewer units than --top: all of them.
    assert len(layer["projections"]) == 4
    for rule in RULES:
        alone = [row["scales"][rule] for row in patch["projections"]]
        shared = {row["scales"][rule] for row in layer["projections"]}
        assert shared == {max(alone)} and len(set(alone)) > 1


def test_the_same_run_writes_the_same_bytes(described, photo, tmp_path):
    folders = [tmp_path / name for name in ("first", "second")]
    for out in folders:
        arguments = ["--image", str(photo), "--weights", str(described)]
        assert (
            main(run, Options, [*arguments, "--layer", "conv2", "--out", str(out)]) == 0
        )
    for name in ("metrics.json", "projections_conv2.png"):
        assert len({(out / name).read_bytes() for out in folders}) == 1


# Bare weights


def test_bare_weights_with_an_architecture(bare, photo, tmp_path):
    arguments = ["--image", str(photo), "--weights", str(bare), "--arch", "zfnet32"]
    more = ["--num-classes", "5", "--layer", "logits", "--out", str(tmp_path)]
    assert main(run, Options, [*arguments, *more]) == 0
    found = metrics_of(tmp_path)["projections"]
    assert len(found) == 5

    # As torchvision: 0 to 1, less the mean, over the deviation, channel by channel.
    model = zf.load_weights(bare, zf.ZFNET32, num_classes=5)
    shipped = zf.load("zfnet32-cifar10")
    pixels = seen_by(shipped, photo)[None].astype(np.float32) / 255
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    deviation = np.array([0.229, 0.224, 0.225], np.float32)
    logits = np.asarray(model((pixels - mean) / deviation))[0]
    assert [row["unit"] for row in found] == np.argsort(-logits).tolist()
    np.testing.assert_allclose(
        [row["value"] for row in found], np.sort(logits)[::-1], rtol=1e-3, atol=1e-5
    )


def test_bare_weights_of_another_shape_are_2(bare, photo, tmp_path, capfd):
    out = ["--image", str(photo), "--out", str(tmp_path), "--weights", str(bare)]
    line = refusal(capfd, 2, *out, "--arch", "zfnet32")
    assert "fc8.weight has shape (5, 256), expected (10, 256)" in line
    line = refusal(capfd, 2, *out, "--arch", "zfnet32", "--num-classes", "0")
    assert "0" in line


def test_bare_weights_need_an_architecture(bare, photo, tmp_path, capfd):
    out = ["--image", str(photo), "--out", str(tmp_path), "--weights", str(bare)]
    assert "name its --arch" in refusal(capfd, 2, *out)
    assert "--arch" in refusal(capfd, 2, *out, "--num-classes", "5")


@pytest.mark.parametrize("named", [True, False])
def test_described_weights_take_no_architecture(
    described, photo, tmp_path, capfd, named
):
    weights = "zfnet32-cifar10" if named else str(described)
    out = ["--image", str(photo), "--out", str(tmp_path), "--weights", weights]
    assert "omit --arch" in refusal(capfd, 2, *out, "--arch", "zfnet32")


# What cannot be


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--layer", "conv9"], ["conv9", "conv1 pool1 conv2"]),
        (
            ["--units", "3,96"],
            ["--units 96", "conv5 of zfnet32", "(0 to 95)"],
        ),
        (["--units", "3,-1"], ["--units 3,-1", "3,17"]),
        (["--units", "cat"], ["--units cat", "3,17"]),
        (["--units", ""], ["--units", "3,17"]),
        (["--units", "3 17"], ["--units 3 17", "3,17"]),
        (["--top", "0"], ["--top must be 1 or more, not 0"]),
        (["--scale", "image"], ["--scale", "patch"]),
        (["--arch", "vgg"], ["--arch", "zfnet"]),
        (["--weights", "zfnet64"], ["zfnet64", "zfnet32-cifar10"]),
    ],
)
def test_a_wrong_command_line_is_2(photo, tmp_path, capfd, argv, parts):
    given = ["--image", str(photo), "--out", str(tmp_path / "out")]
    line = refusal(capfd, 2, *given, *argv)
    for part in parts:
        assert part in line


def test_no_image_is_2(tmp_path, capfd):
    assert "--image" in refusal(capfd, 2, "--out", str(tmp_path))


def test_an_out_that_cannot_be_written_is_2(photo, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "below"
    line = refusal(capfd, 2, "--image", str(photo), "--out", str(out))
    assert f"--out {out} cannot be written" in line


def test_a_bad_photograph_is_3(tmp_path, capfd):
    out = ["--out", str(tmp_path / "out"), "--image"]
    missing = tmp_path / "missing.jpg"
    assert f"no photograph {missing}" in refusal(capfd, 3, *out, str(missing))
    letter = tmp_path / "letter.jpg"
    letter.write_text("dear reader")
    assert f"{letter} is not an image" in refusal(capfd, 3, *out, str(letter))
    for suffix, options in (("jpg", {}), ("tiff", {"compression": "tiff_lzw"})):
        truncated = tmp_path / f"truncated.{suffix}"
        photograph(300, 200).save(truncated, **options)
        whole = truncated.read_bytes()
        truncated.write_bytes(whole[: len(whole) * 2 // 3])
        line = refusal(capfd, 3, *out, str(truncated))
        assert str(truncated) in line and "truncated or damaged" in line


@pytest.mark.parametrize("arch", [[], ["--arch", "zfnet32"]])
def test_missing_weights_are_3(photo, tmp_path, capfd, arch):
    missing = tmp_path / "missing.safetensors"
    out = ["--image", str(photo), "--out", str(tmp_path / "out"), *arch]
    line = refusal(capfd, 3, *out, "--weights", str(missing))
    assert str(missing) in line


@pytest.mark.parametrize("arch", [[], ["--arch", "zfnet32"]])
def test_damaged_weights_are_4(described, photo, tmp_path, capfd, arch):
    damaged = tmp_path / "damaged.safetensors"
    content = described.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    out = ["--image", str(photo), "--out", str(tmp_path / "out"), *arch]
    line = refusal(capfd, 4, *out, "--weights", str(damaged))
    assert str(damaged) in line


def test_a_changed_byte_of_described_weights_is_4(described, photo, tmp_path, capfd):
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray(described.read_bytes())
    content[-20] ^= 1
    damaged.write_bytes(bytes(content))
    out = ["--image", str(photo), "--out", str(tmp_path / "out")]
    assert str(damaged) in refusal(capfd, 4, *out, "--weights", str(damaged))

"""A gallery of a network over shapes, end to end."""

import json
import shutil

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import zfnet_jax as zf
from experiments import gallery as experiment
from experiments.common import main
from experiments.gallery import Options, describe, run
from tests.networks import SMALL, save
from zfnet_jax import viz
from zfnet_jax.analysis.sanity import controls
from zfnet_jax.arch import Architecture
from zfnet_jax.data import Preprocessed, Preprocessing, make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")

# Of shapes, since the network was trained on them.
FEW = ["--limit", "40", "--evolution-limit", "30"]
LAYERS = ["--layers", "conv2,fc3", "--top", "4"]


def build(out, trained, *more: str) -> int:
    argv = [*FEW, *LAYERS, "--run", str(trained), "--out", str(out), *more]
    return main(run, Options, argv)


@pytest.fixture(scope="module")
def finished(compiled_once, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "new"
    assert build(out, trained) == 0
    return out


def record(out, layer: str, name: str = "found/layer.json"):
    return json.loads((out / "layers" / layer / name).read_text())


def test_it_shows_what_was_found(finished, trained):
    """The picture of a unit, again from the network, the images and `project`."""
    net = zf.load(trained / "weights.safetensors")
    dataset = make_shapes(40, seed=1)
    images = Preprocessed(dataset.images, net.preprocess)
    top = zf.top_activations(net, images, "conv2", k=4)["conv2"]
    found = record(finished, "conv2")
    assert [unit["dead"] for unit in found["units"]] == top.dead.tolist()
    assert found["images"] == 40 and found["rules"][0] == "deconvnet"
    unit, cell = 4, zf.receptive_field(net.model.arch, "conv2").size
    assert found["cell"] == list(cell)
    assert found["units"][unit]["images"] == top.images[unit].tolist()
    with Image.open(finished / "layers/conv2/found/large/4.webp") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for rank, image in enumerate(top.images[unit]):
        given = dataset.images[image : image + 1]
        y, x = rank // 2 * cell[0], rank % 2 * cell[1]
        for index, rule in enumerate(found["rules"], 1):
            one = zf.project(
                net,
                np.asarray(net.preprocess(given)),
                "conv2",
                unit,
                top.positions[unit, rank][None],
                rule=rule,
                crop=True,
            )
            shown, scale = viz.display(one.pixels[0])
            outside = viz.outside(one.boxes, (16, 16))[0]
            inside = np.s_[
                outside[0] : cell[0] - outside[2], outside[1] : cell[1] - outside[3]
            ]
            left = x + index * 2 * cell[1]
            got = pixels[y : y + cell[0], left : left + cell[1]][inside]
            assert np.abs(got - 255 * shown[inside]).max() < 1.5
            known = found["units"][unit]["scales"][rule][rank]
            assert known == pytest.approx(scale, rel=1e-4)
            patch = viz.image_patches(net.preprocess.pictures(given), one.boxes)[0]
            got = pixels[y : y + cell[0], x : x + cell[1]][inside]
            np.testing.assert_array_equal(got, patch[inside])


def test_it_has_the_evolution_of_the_run(finished):
    course = record(finished, "fc3", "course/course.json")
    assert course["epochs"] == [1, 2, 5] and "30 images" in course["searched"]
    assert "epoch 5" in (finished / "layers/fc3/0.html").read_text()


def test_it_says_what_it_is_of(finished):
    text = (finished / "index.html").read_text()
    assert "12.50%" in text and "40 images of" in text
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["layers"] == {
        "conv2": {"dead": 1, "units": 6},
        "fc3": {"dead": record_dead(finished), "units": 8},
    }
    for name in ("config.json", "manifest.json"):
        assert json.loads((finished / name).read_text())


def test_it_says_what_the_pictures_tell(finished, trained):
    """The numbers of the first page, again from the network and the images."""
    net = zf.load(trained / "weights.safetensors")
    dataset = make_shapes(40, seed=1).take(np.arange(16))
    images = np.asarray(net.preprocess(dataset.images))
    replaced = controls(net, images, "conv2")
    classes = zf.sanity(net, images, dataset.labels)
    means = {
        name: mean
        for result in (replaced, classes)
        for name, mean in zip(
            result.columns, result.similarity["deconvnet"].signed.mean(0), strict=True
        )
    }
    text = (finished / "index.html").read_text()
    for name in ("random there", "another unit", "another image", "fc3"):
        assert f"{means[name]:z.2f}" in text
    assert (finished / "sanity/index.html").exists()


def test_without_two_images_of_its_classes_it_does_not(untrained, tmp_path, capsys):
    assert build(tmp_path, untrained, "--layers", "conv2") == 0
    assert (tmp_path / "sanity/index.html").exists()
    assert build(tmp_path, untrained, "--layers", "conv2", "--limit", "1") == 0
    assert "two images of the network's own classes" in capsys.readouterr().out
    assert not (tmp_path / "sanity/index.html").exists()
    assert "What they tell" not in (tmp_path / "index.html").read_text()


def record_dead(out) -> int:
    return sum(unit["dead"] for unit in record(out, "fc3")["units"])


def test_a_second_run_computes_only_what_has_changed(
    finished, trained, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    before = {x: x.read_bytes() for x in out.rglob("*.*") if x.suffix != ".json"}
    capsys.readouterr()

    def refuse(*_, **__):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        for name in ("top_activations", "_project", "evolution"):
            patch.setattr(experiment, name, refuse)
        patch.setattr(experiment.sanity, "compare", refuse)
        assert build(out, trained) == 0
    assert "unchanged: 2 of 2 layers" in capsys.readouterr().out
    after = {x: x.read_bytes() for x in out.rglob("*.*") if x.suffix != ".json"}
    assert after == before

    # Another layer: that one alone. One image less: all of it has changed.
    assert build(out, trained, "--layers", "conv1,conv2") == 0
    assert "unchanged: 1 of 2 layers" in capsys.readouterr().out
    assert not list((out / "layers/fc3").glob("*.html"))
    for change in (["--limit", "39"], ["--top", "3"]):
        assert build(out, trained, "--layers", "conv2", *change) == 0
        assert "unchanged" not in capsys.readouterr().out
    assert len(record(out, "conv2")["units"][0]["values"]) <= 3


def test_other_weights_at_the_same_epochs_are_followed_anew(
    finished, trained, tmp_path
):
    out, again = tmp_path / "copy", tmp_path / "again"
    shutil.copytree(finished, out)
    shutil.copytree(trained, again)
    save(again / "epochs" / "epoch_0001.safetensors", 7)
    assert build(out, again) == 0
    before, after = (
        record(x, "conv2", "course/course.json")["units"] for x in (finished, out)
    )
    assert before["0"]["values"][0] != after["0"]["values"][0]
    assert before["0"]["values"][1:] == after["0"]["values"][1:]


def test_epochs_of_another_architecture_than_the_run_are_named(
    trained, tmp_path, refusal
):
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    other = Architecture("another", (16, 16), SMALL.layers[1:])
    for file in (again / "epochs").iterdir():
        save(file, 0, other)
    argv = [*FEW, "--run", str(again), "--out", str(tmp_path / "out")]
    line = refusal(run, Options, 2, *argv)
    assert "another architecture" in line


def test_a_folder_of_other_files_is_2(trained, tmp_path, refusal):
    (tmp_path / "index.html").write_text("mine")
    line = refusal(run, Options, 2, "--run", str(trained), "--out", str(tmp_path))
    assert "index.html" in line and "not a gallery" in line
    assert (tmp_path / "index.html").read_text() == "mine"


def test_without_kept_epochs_there_is_no_evolution(untrained, tmp_path, capsys):
    assert build(tmp_path / "out", untrained, "--layers", "conv2") == 0
    assert "without evolution" in capsys.readouterr().out
    assert not (tmp_path / "out/layers/conv2/course").exists()


def test_layers_are_described():
    arch = zf.ZFNET
    kinds = {layer.name: describe(arch, layer.name) for layer in arch.layers}
    assert kinds["conv1"].kind == "7 × 7 convolution, stride 2, rectified"
    assert kinds["pool1"].kind == "maximum over 3 × 3, stride 2"
    assert "contrast" in kinds["norm1"].kind
    assert kinds["fc7"].kind == "dense layer, rectified"
    assert kinds["logits"].kind == "dense layer"
    assert kinds["fc7"].field == (224, 224) and kinds["conv1"].field == (7, 7)


@pytest.mark.parametrize(
    ("argv", "code", "parts"),
    [
        (["--layers", "conv9"], 2, ["conv9", "conv1 pool1 conv2 fc3 logits"]),
        (["--limit", "0"], 2, ["--limit must be 1 or more, not 0"]),
        (["--evolution-limit", "0"], 2, ["--evolution-limit"]),
        (["--top", "0"], 2, ["--top"]),
        (["--weights", "zfnet32-cifar10"], 2, ["--run", "--weights"]),
        (["--run", "nowhere"], 3, ["nowhere"]),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], 3, ["nowhere"]),
    ],
)
def test_what_cannot_be_is_one_line(argv, code, parts, trained, tmp_path, refusal):
    given = ["--run", str(trained), "--out", str(tmp_path / "out")]
    line = refusal(run, Options, code, *FEW, *given, *argv)
    for part in parts:
        assert part in line


def test_a_folder_that_cannot_be_written_is_2(trained, tmp_path, refusal):
    (tmp_path / "file").write_text("mine")
    out = str(tmp_path / "file")
    line = refusal(run, Options, 2, *FEW, "--run", str(trained), "--out", out)
    assert "cannot be written" in line


def test_weights_of_a_dataset_of_other_images_are_named(tmp_path, refusal):
    file = tmp_path / "weights.safetensors"
    mean = np.zeros((16, 16, 3), np.float32)
    model = zf.ConvNet(SMALL, rngs=nnx.Rngs(0))
    names = make_shapes(1).class_names
    zf.save(
        file,
        model,
        preprocess=Preprocessing(mean),
        class_names=names,
        metadata={"dataset": "shapes"},
    )
    argv = [*FEW, "--weights", str(file), "--out", str(tmp_path / "out")]
    line = refusal(run, Options, 2, *argv)
    assert "32 x 32" in line and "16 x 16" in line

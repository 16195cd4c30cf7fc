"""Pictures of destroyed networks and of other signals, end to end on shapes."""

import json

import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments.common import main
from experiments.sanity import Options, last_convolution, run
from zfnet_jax.analysis.sanity import controls, sanity
from zfnet_jax.arch import Architecture, Dense
from zfnet_jax.data import make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")

COUNT = 12


def measure(out, trained, *more: str) -> int:
    argv = ["--weights", str(trained / "weights.safetensors"), "--out", str(out)]
    return main(run, Options, [*argv, "--images", str(COUNT), *more])


@pytest.fixture(scope="module")
def finished(compiled_once, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "new"
    assert measure(out, trained) == 0
    return out


def test_the_numbers_are_those_of_the_analysis(finished, trained):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert (metrics["images"], metrics["layer"]) == (COUNT, "conv2")
    net = zf.load(trained / "weights.safetensors")
    shapes = make_shapes(2_000, seed=1).take(np.arange(COUNT))
    images = net.preprocess(shapes.images)
    for known, comparison in (
        (metrics["randomisation"], sanity(net, images, shapes.labels)),
        (metrics["controls"], controls(net, images, "conv2")),
    ):
        assert known["columns"] == list(comparison.columns)
        assert list(known["rules"]) == ["deconvnet", "gradient", "guided"]
        for rule, measures in known["rules"].items():
            assert measures["empty"] == comparison.empty[rule].sum(0).tolist()
            for name, values in comparison.similarity[rule]._asdict().items():
                np.testing.assert_allclose(measures[name]["mean"], values.mean(0))
                np.testing.assert_allclose(measures[name]["spread"], values.std(0))
            assert measures["signed"]["mean"][0] <= 1 + 1e-9


def test_figures_are_there(finished):
    for name in ("randomisation", "randomised_pictures", "controls"):
        with Image.open(finished / f"{name}.png") as image:
            assert np.asarray(image.convert("RGB")).std() > 1
    assert (finished / "randomisation.pdf").exists()
    for name in ("config.json", "manifest.json"):
        assert json.loads((finished / name).read_text())


def test_the_same_seed_gives_the_same_bytes(finished, trained, tmp_path, capsys):
    capsys.readouterr()
    assert measure(tmp_path, trained) == 0
    assert "deconvnet, signed" in capsys.readouterr().out
    for file in finished.iterdir():
        if file.name not in ("manifest.json", "config.json"):
            assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_another_layer_and_fewer_images(trained, tmp_path):
    more = ["--layer", "fc3", "--images", "40", "--limit", "12"]
    assert measure(tmp_path, trained, *more) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["images"], metrics["layer"]) == (12, "fc3")
    assert "random everywhere" not in metrics["controls"]["columns"]


def test_the_last_convolution_is_meant():
    assert last_convolution(zf.ZFNET) == "conv5"
    flat = Architecture("flat", (4, 4), (Dense("logits", 2, relu=False),))
    assert last_convolution(flat) == "logits"


@pytest.mark.parametrize(
    ("argv", "code", "parts"),
    [
        (["--layer", "conv9"], 2, ["conv9", "conv1 pool1 conv2 fc3 logits"]),
        (["--images", "3000"], 2, ["--images 3000", "only 2,000"]),
        (["--images", "1"], 2, ["--images must be 2 or more, not 1"]),
        (["--limit", "1"], 2, ["--limit must be 2 or more"]),
        (["--shown", "0"], 2, ["--shown"]),
        (["--seed", "-1"], 2, ["--seed"]),
        (["--weights", "no.safetensors"], 3, ["no.safetensors"]),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], 3, ["nowhere"]),
    ],
)
def test_bad_arguments_fail_in_one_line(argv, code, parts, trained, tmp_path, refusal):
    out = tmp_path / "out"
    given = ["--weights", str(trained / "weights.safetensors"), "--out", str(out)]
    line = refusal(run, Options, code, *given, *argv)
    for part in parts:
        assert part in line
    assert not out.exists() or not list(out.iterdir())

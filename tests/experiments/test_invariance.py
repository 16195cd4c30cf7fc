"""Features of transformed shapes, end to end."""

import json

import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments.common import main
from experiments.invariance import Options, choose_amounts, run
from zfnet_jax.analysis.invariance import invariance, periodicity
from zfnet_jax.data import make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def finished(compiled_once, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "new"
    argv = ["--weights", str(trained / "weights.safetensors"), "--images", "20"]
    assert main(run, Options, [*argv, "--out", str(out)]) == 0
    return out


def test_the_numbers_are_those_of_the_features(finished, trained):
    metrics = json.loads((finished / "metrics.json").read_text())
    net = zf.load(trained / "weights.safetensors")
    shapes = make_shapes(2_000, seed=1).take(np.arange(20))
    images = np.asarray(net.preprocess(shapes.images))
    for transform in ("translate", "scale", "rotate"):
        known = metrics["transforms"][transform]
        result = invariance(net, images, shapes.labels, transform, known["values"])
        assert list(known["layers"]) == ["conv1", "fc3"]
        for layer, curves in result.distances.items():
            np.testing.assert_allclose(
                known["layers"][layer]["distance"], curves.mean(0), rtol=1e-4, atol=1e-5
            )
            for kind, each in (
                ("distance", curves),
                ("relative", result.relative[layer]),
            ):
                np.testing.assert_allclose(
                    known["layers"][layer][f"{kind}_of_each_shown"],
                    each[:5],
                    rtol=1e-4,
                    atol=1e-5,
                )
        np.testing.assert_allclose(
            known["probability"], result.probability.mean(0), rtol=1e-4
        )
        np.testing.assert_allclose(
            known["probability_of_each_shown"], result.probability[:5], rtol=1e-4
        )
        with Image.open(finished / f"invariance_{transform}.png") as image:
            assert np.asarray(image.convert("RGB")).std() > 1
    # The paper's ranges, at the size of the network's images.
    shifts = metrics["transforms"]["translate"]["values"]
    assert shifts == list(range(-4, 5))
    turns = metrics["transforms"]["rotate"]
    assert (turns["values"][0], turns["values"][-1]) == (0, 360)
    assert set(turns["periodicity"]["fc3"]) == {"2", "3", "4", "5"}
    curves = result.distances["fc3"]
    squares = curves[shapes.labels == shapes.class_names.index("square")]
    assert turns["periodicity_by_class"]["square"]["fc3"]["4"] == pytest.approx(
        periodicity(squares[:, :-1].mean(0), 4), abs=1e-3
    )


def test_a_second_run_writes_the_same_bytes(finished, trained, tmp_path):
    argv = ["--weights", str(trained / "weights.safetensors"), "--images", "20"]
    assert main(run, Options, [*argv, "--out", str(tmp_path)]) == 0
    for file in finished.iterdir():
        if file.name not in ("manifest.json", "config.json"):
            assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_values_may_be_given(trained, tmp_path):
    argv = ["--weights", str(trained / "weights.safetensors"), "--images", "3"]
    more = ["--transform", "scale", "--values", "1,1.5", "--layers", "pool1"]
    assert main(run, Options, [*argv, *more, "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["transforms"]["scale"]["values"] == [1, 1.5]
    assert list(metrics["transforms"]["scale"]["layers"]) == ["pool1"]
    assert metrics["transforms"]["scale"]["layers"]["pool1"]["distance"][0] == 0


def test_ranges_are_the_papers():
    assert choose_amounts("scale", None, 32)[[0, -1]].tolist() == pytest.approx(
        [1, 1.8]
    )
    assert choose_amounts("translate", None, 224)[[0, -1]].tolist() == [-60, 60]
    assert choose_amounts("rotate", "0,90", 32).tolist() == [0, 90]


@pytest.mark.parametrize(
    ("argv", "code", "parts"),
    [
        (["--transform", "scale", "--values", "0,1"], 2, ["amount 0:", "0.1 to 10"]),
        (["--transform", "translate", "--values", "17"], 2, ["17", "-16 to 16"]),
        (["--transform", "rotate", "--values", "1e39"], 2, ["1e+39", "3600"]),
        (["--weights", "zfnet32-cifar10", "--dataset", "shapes"], 2, ["other classes"]),
        (["--transform", "rotate", "--values", "a"], 2, ["--values a", "numbers"]),
        (["--values", "1,2"], 2, ["--values", "single --transform"]),
        (["--transform", "shear"], 2, ["shear"]),
        (["--layers", "conv9"], 2, ["conv9", "conv1 pool1 conv2 fc3 logits"]),
        (["--images", "3000"], 2, ["--images 3000", "only 2,000"]),
        (["--images", "9999", "--limit", "3000"], 2, ["--limit 3000", "only 2,000"]),
        (["--images", "0"], 2, ["--images"]),
        (["--weights", "no.safetensors"], 3, ["no.safetensors"]),
    ],
)
def test_bad_arguments_fail_in_one_line(argv, code, parts, trained, tmp_path, refusal):
    given = ["--weights", str(trained / "weights.safetensors")]
    line = refusal(run, Options, code, *given, "--out", str(tmp_path / "out"), *argv)
    for part in parts:
        assert part in line

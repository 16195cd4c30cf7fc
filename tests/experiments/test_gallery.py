"""A gallery of a network over shapes, end to end."""

import json
import zipfile

import equinox as eqx
import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from PIL import Image

import zfnet_jax as zf
from experiments.gallery import gallery, name_weights
from experiments.inputs import SharedRun
from tests.gallery_case import make_network
from zfnet_jax.data import make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")

# Of shapes, since the network was trained on them.
FEW = ["--limit", "40", "--evolution-limit", "30", "--k", "4", "--sanity-images", "3"]


@pytest.fixture(scope="module")
def finished(compiled_once, trained, measure):
    options = "--run", trained, "--layers", "conv2", "logits", "--compare", "1"
    return measure(gallery, *FEW, *options)


def test_metrics_count_units(finished, weights):
    metrics, _ = finished
    net = zf.load(weights)
    images = net.load_images(make_shapes(40, seed=1))
    tops = zf.top_activations(net, images, ["conv2", "logits"])
    assert metrics["images"] == 40 and metrics["network"] == "small"
    assert metrics["layers"] == {
        name: {"units": len(top.dead), "dead": int(top.dead.sum())}
        for name, top in tops.items()
    }


def test_pages_say_what_they_are_of(finished, trained):
    _, out = finished
    text = (out / "index.html").read_text()
    title = f"Units of small ({trained.name})"
    assert title in text and "12.5%" in text and "(40 images)" in text
    assert str(out) not in text
    unit = (out / "pages/layers/conv2/0.html").read_text()
    assert "(30 images)" in unit and "epoch 5" in unit
    assert 'href="../../live/index.html#conv2/0"' in unit
    digests = json.loads((out / "manifest.json").read_text())["digests"]
    assert {"weights", "data", "training data"} <= set(digests)
    assert digests["data"] != digests["training data"]
    assert digests["compared"]["weights"] != digests["weights"]
    text = (out / "pages/compare/index.html").read_text()
    assert f"{title}, compared with epoch 1" in text and "to 40 images" in text
    assert str(out) not in text


def test_a_title_names_the_weights(weights):
    shipped, file = SharedRun(), SharedRun(weights=weights)
    assert name_weights(shipped, None) == "zfnet32-cifar10"
    assert name_weights(file, None) == "small (weights)"


def test_without_kept_epochs_there_is_no_evolution(trained, measure, tmp_path, capsys):
    file = trained / "weights.safetensors"
    (tmp_path / file.name).write_bytes(file.read_bytes())
    _, out = measure(gallery, *FEW, "--run", tmp_path, "--layers", "logits")
    text = capsys.readouterr().out
    assert "without evolution: " in text and f"file://{out}/index.html" in text
    assert "during training" not in (out / "pages/layers/logits/0.html").read_text()


def test_any_model_and_photographs(photographs, measure):
    model = f"{__name__}:load_network"
    argv = ["--model", model, "--image", photographs, "--layers", "conv1", "--k", "9"]
    metrics, out = measure(gallery, *FEW, *argv)
    assert metrics["images"] == 3
    assert "3 photographs of" in (out / "index.html").read_text()
    page = (out / "pages/layers/conv1/0.html").read_text()
    with Image.open(out / "pages/layers/conv1/0.webp") as image:
        # Squares of four for three images: patches, and three rules in two contrasts.
        assert image.size == (7 * 2 * 4, 2 * 4) and "--columns:14;--rows:2" in page


class NnxNet(nnx.Module):
    def __init__(self):
        self.conv1 = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(4, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.fc(nnx.relu(self.conv1(x)).mean((1, 2)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv1")(x))
        return nn.Dense(2, name="fc")(x.mean((1, 2)))


class EquinoxNet(eqx.Module):
    conv1: eqx.nn.Conv2d = eqx.nn.Conv2d(3, 4, 3, padding=1, key=jax.random.key(0))
    fc: eqx.nn.Linear = eqx.nn.Linear(4, 2, key=jax.random.key(1))

    def __call__(self, x):
        return self.fc(jax.nn.relu(self.conv1(x)).mean((1, 2)))


def preprocess(pictures):
    return np.asarray(pictures, np.float32) / 64 - 2


SHAPE = (12, 16, 3)


def load_nnx():
    return zf.network(NnxNet(), SHAPE, preprocess=preprocess)


def load_linen():
    params = LinenNet().init(jax.random.key(0), np.zeros((1, *SHAPE)))
    return zf.network(LinenNet().apply, SHAPE, params=params, preprocess=preprocess)


def load_equinox():
    return zf.network(EquinoxNet(), SHAPE, preprocess=preprocess)


@pytest.mark.parametrize("kind", ["nnx", "linen", "equinox"])
def test_models_of_each_library_and_classes_of_any_name(
    photographs, measure, tmp_path, kind
):
    names = 'a "b" <i>&amp;', "\u202e'; alert(1)<"
    for name, file in zip(names, sorted(photographs.iterdir()), strict=False):
        (tmp_path / name).mkdir()
        (tmp_path / name / '<b>"\u202e.png').write_bytes(file.read_bytes())
    few = "--k 1 --sanity-images 0 --layers conv1 --rules deconvnet --zip".split()
    model = f"{__name__}:load_{kind}"
    metrics, out = measure(gallery, "--model", model, "--image", tmp_path, *few)
    assert metrics["images"] == 2 and metrics["layers"]["conv1"]["units"] == 4
    assert json.loads((out / "gallery.json").read_text())["classes"] == sorted(names)
    text = (out / "pages/layers/conv1/index.html").read_text()
    assert ">a &#34;b&#34; &lt;i&gt;&amp;amp;</option>" in text
    assert ">\ufffd&#39;; alert(1)&lt;</option>" in text and "\u202e" not in text
    with zipfile.ZipFile(out / "gallery.zip") as archive:
        assert "gallery/pages/layers/conv1/units.json" in archive.namelist()


def load_network():
    net = make_network(3)
    net.preprocess = preprocess
    return net


@pytest.mark.parametrize(
    ("code", "argv", "message"),
    [
        (3, ["--run", "nowhere"], "--run nowhere: there is no such folder"),
        (2, ["--weights", "zfnet32-cifar10"], "--run has its own weights"),
        (2, ["--layers", "conv9"], "no layer 'conv9'"),
        (2, ["--compare", "7"], "--compare 7: the kept epochs of --run are 1, 2, 5"),
        (3, ["--compare", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_bad_input_is_one_line(code, argv, message, trained, refuse):
    assert message in refuse(gallery, code, *FEW, "--run", trained, *argv)

"""The network in headless Chromium, against the same network in Python."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains

import zfnet_jax as zf
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.data.preprocessing import Preprocessing, fit_photograph
from zfnet_jax.galleries.live import describe_network
from zfnet_jax.networks import Network
from zfnet_jax.viz.contrast import to_display

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs Chromium: Debian's packages chromium and chromium-driver",
)
pytestmark = pytest.mark.usefixtures("compiled_once")

RULES = ("deconvnet", "guided", "gradient")
HEIGHT, WIDTH = 15, 14
MARKUP = "<img src=x onerror=alert(1)>"
# Every kind of layer, with widths that no tile divides.
ARCH = Architecture(
    "tiny",
    (HEIGHT, WIDTH),
    (
        Conv("conv1", 6, kernel=(3, 5), stride=(2, 1), padding=((1, 0), (2, 1))),
        ContrastNorm("norm1", size=4, k=0.5, alpha=0.2, beta=0.6),
        MaxPool("pool1", kernel=3, stride=(1, 2), padding=1),
        Conv("conv2", 10, kernel=3, padding=1, groups=2),
        MaxPool("pool2", kernel=2, round_up=True),
        Dense("fc3", 7),
        Dense("logits", 5, relu=False),
    ),
)
_rng = np.random.default_rng(0)
PICTURES = _rng.integers(0, 256, (12, HEIGHT, WIDTH, 3), np.uint8)
PICTURES[2] //= 8  # many units are silent
MEAN = _rng.uniform(100, 150, (HEIGHT, WIDTH, 3)).astype(np.float32)


def round_weights(net: Network) -> Network:
    """Round weights as the scripts do."""
    graph, state = nnx.split(net.model)
    state = jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), state)
    model = nnx.merge(graph, state)
    return zf.network(model, preprocess=net.preprocess, class_names=net.class_names)


def make_network() -> Network:
    model = zf.ConvNet(ARCH, rngs=nnx.Rngs(1))
    model.conv1.bias[...] = jnp.linspace(-1, 1, 6)
    names = ["cat", "dog", MARKUP, "a\u202eb", "ship"]
    preprocess = Preprocessing(MEAN, scale=0.02)
    return zf.network(model, preprocess=preprocess, class_names=names)


NET = make_network()


def preprocess(net: Network, pictures: np.ndarray) -> np.ndarray:
    assert net.preprocess is not None
    return np.asarray(net.preprocess(pictures))


@pytest.fixture(scope="module")
def folder(compiled_once, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    images = preprocess(NET, PICTURES)
    options: dict[str, Any] = {"pictures": PICTURES, "k": 4, "sanity_images": 0}
    zf.gallery(NET, images, folder, layers=["conv2", "logits"], **options)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    devices = "use-fake-device-for-media-stream", "use-fake-ui-for-media-stream"
    for argument in ("headless=new", "no-sandbox", *devices):
        options.add_argument(f"--{argument}")
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as browser:
        browser.set_window_size(1280, 900)
        browser.set_script_timeout(60)
        yield browser


@pytest.fixture
def page(browser, folder):
    """The live page, new, with its first picture computed."""
    browser.get("about:blank")
    browser.get((folder / "pages/live/index.html").as_uri())
    wait(browser)
    return browser


def wait(browser, condition: str = "true") -> None:
    """Wait until all is computed, and a condition holds."""
    script = "const x = live.read(); return x.maps.length && x.projection && !x.isBusy"
    end = time.monotonic() + 60
    while not browser.execute_script(f"{script} && ({condition})"):
        assert time.monotonic() < end, say(browser)
        time.sleep(0.02)


def say(browser) -> list[str]:
    return [browser.find_element("id", name).text for name in ("fault", "status")]


def to_rgba(pixels: np.ndarray) -> list[int]:
    opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    return np.concatenate([pixels, opaque], 2).ravel().tolist()


def run(browser, picture: np.ndarray, points: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Maps of all layers, and projections of some points, as the worker computes."""
    return browser.execute_async_script(
        """
        const [rgba, points, done] = arguments;
        (async () => {
          const maps = await live.ask("look", { pixels: Uint8ClampedArray.from(rgba) });
          const projections = [];
          for (const point of points) projections.push(await live.ask("project", point));
          const plain = ({ pixels, ...rest }) => ({ pixels: [...pixels], ...rest });
          done([maps.map((x) => [...x]), projections.map(plain)]);
        })();
        """,
        to_rgba(picture),
        points,
    )


def assert_close(ours: Any, reference: Any, tolerance: float = 1e-3) -> None:
    reference = np.asarray(reference)
    error = np.abs(np.reshape(ours, reference.shape) - reference).max()
    assert error <= tolerance * np.abs(reference).max()


@needs_browser
@pytest.mark.parametrize("index", [0, 1, 2])
def test_maps_and_projections_equal_those_of_python(page, index):
    net, picture = round_weights(NET), PICTURES[index]
    image = preprocess(net, picture[None])
    points, expected = [], []
    for name, layer in net.layers.items():
        middle = [layer.shape[0] // 2, layer.shape[1] - 1] if layer.receptive_field else [0, 0]
        for rule in RULES:
            for unit, place in ((1, None), (4, middle)):
                points.append(
                    {"name": name, "unit": unit, "position": place, "rule": rule}
                )
                expected.append(
                    zf.project(net, image, name, unit, place, rule=rule)
                )
    maps, projections = run(page, picture, points)
    for ours, reference in zip(maps, net.activations(image).values(), strict=True):
        assert_close(ours, reference)
    for ours, reference in zip(projections, expected, strict=True):
        assert ours["position"] == reference.positions[0].tolist()
        assert_close([ours["activation"]], reference.activations)
        assert_close(ours["pixels"], reference.pixels)
    assert sum(np.abs(x.pixels).max() > 0 for x in expected) > len(expected) / 2

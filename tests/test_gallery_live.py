"""The network in headless Chromium, against the same network in Python."""

import base64
import io
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from matplotlib import colormaps
from PIL import Image
from selenium.webdriver import ActionChains

import zfnet_jax as zf
from tests import reference_deconvnet as reference
from tests.browser import (
    find_faults,
    forget,
    list_requests,
    needs_browser,
    prefer,
    resize,
)
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.data import load_dataset
from zfnet_jax.data.preprocessing import TORCHVISION, Preprocessing, fit_photograph
from zfnet_jax.galleries.live import describe_network, write_live
from zfnet_jax.galleries.sources import Search, open_source
from zfnet_jax.networks import Network
from zfnet_jax.viz.contrast import to_display

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
    """Round kernels as the scripts do: to 16 bits, from the largest of each unit."""

    def round_kernel(path: Any, x: jax.Array) -> jax.Array:
        if "kernel" not in jax.tree_util.keystr(path):
            return x
        scale = jnp.abs(x).max(tuple(range(x.ndim - 1))) / 32767
        return jnp.rint(x / scale) * scale

    graph, state = nnx.split(net.model)
    state = jax.tree_util.tree_map_with_path(round_kernel, state)
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
    zf.gallery(NET, images, folder, layers="conv2", **options)
    return folder


@pytest.fixture
def page(browser, folder):
    """The live page, new, with its first picture computed."""
    resize(browser, 1280)
    prefer(browser, "light")
    open_page(browser, folder)
    return browser


def open_page(browser, folder: Path, address: str = "") -> None:
    browser.get("about:blank")
    browser.get((folder / "pages/live/index.html").as_uri() + address)
    wait(browser)


def wait(browser, condition: str = "true") -> None:
    """Wait until all is computed, and a condition holds."""
    script = "const x = live.read(); return x.maps.length && x.projection && !x.isBusy"
    end = time.monotonic() + 20
    while not browser.execute_script(f"{script} && ({condition})"):
        assert time.monotonic() < end, say(browser)
        time.sleep(0.02)


def say(browser) -> list[str]:
    return [browser.find_element("id", name).text for name in ("fault", "times")]


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
          const project = async (point) => {
            const { pixels, ...rest } = await live.ask("project", point);
            return { pixels: [...pixels], ...rest };
          };
          done([maps.map((x) => [...x]), await Promise.all(points.map(project))]);
        })();
        """,
        to_rgba(picture),
        points,
    )


def assert_close(ours: Any, reference: Any, tolerance: float = 1e-3) -> None:
    reference = np.asarray(reference)
    error = np.abs(np.reshape(ours, reference.shape) - reference).max()
    assert error <= tolerance * np.abs(reference).max()


def project(model, image, name, unit, position, rule) -> np.ndarray:
    """Project one activation, by the definition."""
    weights = reference.weights_of(model)
    steps = reference.forward(model.arch, weights, image, name)
    signal = reference.keep(steps[-1].out, unit, position)
    norm = "backprop" if rule == "gradient" else "skip"
    return reference.descend(steps, weights, signal, rule, norm=norm)


@needs_browser
@pytest.mark.parametrize("index", [0, 1, 2])
def test_maps_and_projections_equal_the_definition(page, index):
    model, picture = round_weights(NET).model, PICTURES[index]
    image = preprocess(NET, picture[None])[0]
    steps = reference.forward(ARCH, reference.weights_of(model), image, "logits")
    points, expected = [], []
    for step in steps:
        name = step.layer.name
        middle = tuple(x // 2 for x in step.out.shape[:-1]) or (0, 0)
        strongest = reference.strongest(step.out, 1)
        for rule in RULES:
            for unit, place, chosen in ((1, strongest, None), (4, middle, middle)):
                values = {"name": name, "unit": unit, "position": chosen, "rule": rule}
                points.append(values)
                expected.append((place, project(model, image, name, unit, place, rule)))
    maps, projections = run(page, picture, points)
    for ours, step in zip(maps, steps, strict=True):
        assert_close(ours, step.out)
    for ours, (place, pixels) in zip(projections, expected, strict=True):
        assert ours["position"] == list(place)
        assert_close(ours["pixels"], pixels)
    assert sum(pixels.any() for _, pixels in expected) > len(expected) / 2


@needs_browser
def test_the_shipped_network_computes_what_python_does(browser, tmp_path):
    net = zf.load("zfnet32-cifar10")
    pictures = load_dataset("shapes", "test", limit=2).images
    images = preprocess(net, pictures)
    source = open_source(net, images, pictures=pictures)
    search = Search(net, source, 9, RULES, {}, source, "shipped")
    home = tmp_path / "pages" / "live"
    home.mkdir(parents=True)
    write_live(home, search, describe_network(net) or {})
    (home.parent / "layers.js").write_text("const LAYERS = [];")
    open_page(browser, tmp_path)
    weights, image = reference.weights_of(net.model), images[1]
    steps = reference.forward(net.model.arch, weights, image, "logits")
    (top,) = (step.out for step in steps if step.layer.name == "conv5")
    row, column, unit = map(int, np.unravel_index(top.argmax(), top.shape))
    points = [
        {"name": "conv5", "unit": unit, "position": [row, column], "rule": rule}
        for rule in RULES
    ]
    maps, projections = run(browser, pictures[1], points)
    for ours, step in zip(maps, steps, strict=True):
        assert_close(ours, step.out)
    assert_close(maps[-1], net(images)[1])
    for point, ours in zip(points, projections, strict=True):
        same, true = (
            project(x.model, image, *point.values()) for x in (round_weights(net), net)
        )
        assert_close(ours["pixels"], same)
        # A rounded weight may choose another switch.
        assert np.corrcoef(ours["pixels"], true.ravel())[0, 1] > 0.999


def drop(browser, name: str, content: bytes) -> None:
    """Drop a file on the page."""
    browser.execute_script(
        """
        const [name, text] = arguments;
        const bytes = Uint8Array.from(atob(text), (x) => x.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], name));
        const options = { dataTransfer, bubbles: true, cancelable: true };
        document.querySelector("main").dispatchEvent(new DragEvent("drop", options));
        """,
        name,
        base64.b64encode(content).decode(),
    )


def encode(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def read_canvas(browser, name: str) -> np.ndarray:
    height, width, pixels = browser.execute_script(
        """
        const canvas = document.getElementById(arguments[0]);
        const { height, width } = canvas;
        const image = canvas.getContext("2d").getImageData(0, 0, width, height);
        return [height, width, [...image.data]];
        """,
        name,
    )
    return np.reshape(pixels, (height, width, 4))[..., :3]


def wait_for(browser, name: str, text: str) -> str:
    """Wait until an element's text holds another."""
    end = time.monotonic() + 20
    while text not in (shown := browser.find_element("id", name).text):
        assert time.monotonic() < end, shown
        time.sleep(0.02)
    wait(browser)
    return shown


def take(browser, name: str, content: bytes) -> None:
    drop(browser, name, content)
    wait_for(browser, "status", f"{name} is shown.")


@needs_browser
def test_a_dropped_picture_becomes_what_python_makes_of_it(page):
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
    large = np.asarray(Image.fromarray(coarse).resize((301, 200)))
    expected = fit_photograph(large, (HEIGHT, WIDTH))
    for name, pixels, shown in (
        ("exact.png", PICTURES[5], PICTURES[5]),
        ("large.png", large, expected),
    ):
        take(page, name, encode(pixels))
        np.testing.assert_array_equal(read_canvas(page, "picture"), shown)
        maps = page.execute_script("return live.read().maps.map((x) => [...x])")
        net = round_weights(NET)
        assert_close(maps[-1], net(preprocess(net, shown[None]))[0])
        assert page.find_element("id", "fault").text == ""


@needs_browser
def test_a_click_projects_the_unit_at_that_place(page):
    height, width, units = NET.layer("conv2").shape
    sheet = page.find_elements("css selector", ".sheet-layer > .framed")[3]
    columns = page.execute_script(
        "return arguments[0].querySelector('canvas').width", sheet
    ) // (width + 1)
    size, (unit, row, column) = sheet.size, (7, 2, 1)
    assert unit < units and row < height and column < width
    x = (unit % columns * (width + 1) + column + 0.5) / (columns * (width + 1))
    rows = -(-units // columns) * (height + 1)
    y = (unit // columns * (height + 1) + row + 0.5) / rows
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", sheet)
    corner = (
        x * size["width"] - size["width"] / 2,
        y * size["height"] - size["height"] / 2,
    )
    mouse = ActionChains(page).move_to_element_with_offset(sheet, *map(round, corner))
    mouse.click().perform()
    wait(page, "x.projection.unit == 7")
    shown = page.execute_script("return live.read().projection")
    assert (shown["name"], shown["position"]) == ("conv2", [row, column])
    assert f"conv2, unit 7 at row {row}, column {column}" in page.page_source
    net = round_weights(NET)
    first = preprocess(net, PICTURES[:1])
    for rule in ("deconvnet", "gradient"):
        choose(page, "rule", rule)
        wait(page, f"x.projection.rule == '{rule}'")
        one = zf.project(net, first, "conv2", 7, (row, column), rule=rule, crop=True)
        pixels = np.rint(255 * to_display(one.pixels[0]))
        assert np.abs(read_canvas(page, "projection") - pixels).max() <= 1
    assert page.current_url.endswith("#conv2/7")
    link = page.find_element("css selector", "#tops a").get_attribute("href")
    assert link.endswith("/pages/layers/conv2/7.html")


@needs_browser
def test_each_map_has_a_scale_of_its_own_unless_told_otherwise(page):
    net = round_weights(NET)
    image = preprocess(net, PICTURES[:1])[0]
    steps = reference.forward(ARCH, reference.weights_of(net.model), image, "conv1")
    height, width, units = steps[0].out.shape
    peaks = steps[0].out.max((0, 1))
    assert (peaks > 0).sum() > 1
    inferno = np.rint(255 * colormaps["inferno"](np.arange(256))[:, :3])
    page.execute_script("document.querySelector('.sheet-layer canvas').id = 'sheet'")
    for value, scales in (("map", peaks), ("layer", np.full(units, peaks.max()))):
        page.execute_script(
            "scales.value = arguments[0]; scales.dispatchEvent(new Event('input'))",
            value,
        )
        sheet = read_canvas(page, "sheet")
        columns = sheet.shape[1] // (width + 1)
        for unit in range(units):
            row, column = divmod(unit, columns)
            top, left = row * (height + 1), column * (width + 1)
            shown = sheet[top : top + height, left : left + width]
            shares = steps[0].out[..., unit] / (scales[unit] or 1)
            difference = shown - inferno[np.rint(255 * shares).astype(int)]
            assert np.abs(difference).max() <= 8  # the next color of the map
    label = page.find_element("css selector", ".sheet-layer p").text
    assert label == f"{units} maps of {height} × {width} · 0 to {peaks.max():.3g}"


@needs_browser
def test_a_place_is_large_enough_to_tap_on_a_phone(page):
    resize(page, 390)
    choose(page, "layer", "conv1")
    wait(page, "x.projection.name === 'conv1'")
    height, width, _ = NET.layer("conv1").shape
    chosen, large = page.find_element("id", "range"), page.find_element("id", "large")
    assert chosen.text.startswith("conv1, unit ")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", large)
    step = large.size["width"] / width
    assert step >= 24 and large.size["height"] / height >= 24
    x, y = (3.5 - width / 2) * step, (6.5 - height / 2) * step
    ActionChains(page).move_to_element_with_offset(
        large, round(x), round(y)
    ).click().perform()
    wait(page, "x.projection.position.join() === '6,3'")
    unit = page.execute_script("return live.read().projection.unit")
    assert chosen.text.startswith(f"conv1, unit {unit}: 0 to ")


@needs_browser
@pytest.mark.parametrize(
    "address, message",
    [
        ("conv2", ""),
        ("conv2/10", "#conv2/10: conv2 has units 0 to 9. "),
        ("conv2/x", "#conv2/x: conv2 has units 0 to 9. "),
        ("conv9/1", "#conv9/1: the network has no such layer. "),
    ],
)
def test_the_strongest_unit_replaces_one_that_is_missing(
    browser, folder, address, message
):
    open_page(browser, folder, f"#{address}")
    image = preprocess(NET, PICTURES[:1])[0]
    weights = reference.weights_of(round_weights(NET).model)
    (top,) = (
        step.out
        for step in reference.forward(ARCH, weights, image, "conv2")
        if step.layer.name == "conv2"
    )
    unit = np.unravel_index(top.argmax(), top.shape)[-1]
    assert browser.current_url.endswith(f"#conv2/{unit}")
    ending = "The strongest unit of conv2 is shown."
    shown = browser.find_element("id", "rejection").text
    assert shown == (message and message + ending)


def choose(browser, name: str, value: str) -> None:
    browser.execute_script(
        "const c = document.getElementById('choice').elements[arguments[0]];"
        "c.value = arguments[1];"
        "c.dispatchEvent(new Event('input', {bubbles: true}));",
        name,
        value,
    )


@needs_browser
def test_reasons_are_activation_times_gradient(page):
    page.find_element("css selector", "#why summary").click()
    page.execute_script(
        "const c = document.getElementById('label'); c.value = 3;"
        "c.dispatchEvent(new Event('input'));"
    )
    wait(page, "document.querySelectorAll('.reasons button').length")
    net = round_weights(NET)
    image = preprocess(net, PICTURES[:1])[0]
    weights = reference.weights_of(net.model)
    steps = reference.forward(ARCH, weights, image, "logits")
    names = [step.layer.name for step in steps]
    for name in ("conv1", "conv2", "fc3"):
        depth = names.index(name) + 1
        signal = np.zeros(5)
        signal[3] = 1
        for end in range(len(steps), depth, -1):
            part = [steps[end - 1]]
            signal = reference.descend(
                part, weights, signal, "gradient", norm="backprop"
            )
        products = (signal * steps[depth - 1].out).reshape(-1, signal.shape[-1])
        sums = products.sum(0)
        best = [unit for unit in np.argsort(-sums)[:6] if sums[unit] > 0]
        expected = [f"{name}, unit {x}, relevance {sums[x]:.3g}" for x in best]
        buttons = page.find_elements("css selector", f"[aria-label^='{name}, ']")
        assert [x.get_attribute("aria-label") for x in buttons] == expected
    buttons[0].click()
    wait(page, f"x.projection.name == 'fc3' && x.projection.unit == {best[0]}")


@needs_browser
def test_drawing_and_the_camera_change_the_maps_at_once(page):
    picture = page.find_element("id", "picture")
    page.find_element("id", "blank").click()
    wait(page)
    before = page.execute_script("return [...live.read().maps.at(-1)]")
    pen = ActionChains(page).move_to_element(picture).click_and_hold()
    pen.move_by_offset(40, 30).release().perform()
    wait(page)
    shown = read_canvas(page, "picture")
    assert (shown == 255).mean() > 0.5 and shown.min() < 60
    after = page.execute_script("return [...live.read().maps.at(-1)]")
    net = round_weights(NET)
    assert_close(after, net(preprocess(net, shown[None].astype(np.uint8)))[0])
    page.find_element("id", "undo").click()
    wait(page)
    assert page.execute_script("return [...live.read().maps.at(-1)]") == before
    page.find_element("id", "camera").click()
    end = time.monotonic() + 30
    while (read_canvas(page, "picture") == 255).all():
        assert time.monotonic() < end, say(page)
    page.find_element("id", "camera").click()
    wait(page)


@needs_browser
def test_the_newest_picture_is_shown(page):
    content = io.BytesIO()
    Image.new("1", (7000, 7000), 1).save(content, "PNG")
    drop(page, "slow.png", content.getvalue())
    page.find_elements("css selector", "#examples button")[2].click()
    wait(page)
    np.testing.assert_array_equal(read_canvas(page, "picture"), PICTURES[2])
    assert page.find_element("id", "status").text == ""


def stub_camera(browser, script: str) -> None:
    """Keep all streams of the camera, after what a script does."""
    browser.execute_script(
        f"""
        const media = navigator.mediaDevices;
        const open = media.getUserMedia.bind(media);
        window.streams = [];
        media.getUserMedia = async (options) => {{
          {script}
          streams.push(await open(options));
          return streams.at(-1);
        }};
        """
    )


def list_active(browser) -> list[bool]:
    return browser.execute_script("return streams.map((x) => x.active)")


@needs_browser
def test_a_camera_no_longer_wanted_is_switched_off(page):
    forget(page)
    stub_camera(page, "await new Promise((resolve) => (window.allow = resolve));")
    camera = page.find_element("id", "camera")
    end_wait = "allow(); return new Promise((resolve) => setTimeout(resolve, 500))"
    camera.click()
    camera.click()
    page.execute_script(end_wait)
    assert list_active(page) == [False]
    camera.click()
    take(page, "newer.png", encode(PICTURES[5]))
    page.execute_script(end_wait)
    assert list_active(page) == [False, False]
    assert camera.get_attribute("aria-pressed") == "false"
    np.testing.assert_array_equal(read_canvas(page, "picture"), PICTURES[5])
    page.execute_script(  # another click before the first frame
        "video.play = function () {"
        "const playing = HTMLVideoElement.prototype.play.call(this);"
        "byId('camera').click(); return playing; }"
    )
    camera.click()
    page.execute_script(end_wait)
    assert not any(list_active(page))
    assert say(page)[0] == "" and page.get_log("browser") == []
    page.execute_script("Object.defineProperty(navigator, 'mediaDevices', {})")
    camera.click()
    wait_for(page, "fault", "open this page by https or as a file")


@needs_browser
def test_anything_dropped_is_shown_or_refused_in_one_line(page):
    take(page, "before.png", encode(PICTURES[4]))
    kept = read_canvas(page, "picture")
    for name, content in {
        f"{MARKUP}.png": b"no picture",
        "notes\u202e.txt": b"text",
        "empty.jpg": b"",
        "cut.png": encode(PICTURES[0])[:80],
    }.items():
        drop(page, name, content)
        shown = name.replace("\u202e", "\ufffd")
        message = wait_for(page, "fault", shown)
        assert message.startswith(f"“{shown}” cannot be read as a picture")
        assert "choose a JPEG, PNG, GIF or WebP" in message and "\n" not in message
        np.testing.assert_array_equal(read_canvas(page, "picture"), kept)
    page.execute_script(
        "const clipboardData = new DataTransfer();"
        "clipboardData.setData('text/plain', 'text');"
        "document.body.dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData, bubbles: true}))"
    )
    wait_for(page, "fault", "No picture file in the clipboard")
    red, blue = np.zeros((2, 20, 30, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    frames = [Image.fromarray(blue)]
    take(page, "moving.gif", encode(red, "GIF", save_all=True, append_images=frames))
    np.testing.assert_array_equal(read_canvas(page, "picture")[0, 0], [255, 0, 0])
    assert page.find_element("id", "fault").text == ""
    choose(page, "unit", "99")
    wait_for(page, "rejection", "unit 99: conv2 has units 0 to 9")
    choose(page, "unit", "9")
    choose(page, "row", "1")
    wait_for(page, "rejection", "column is missing: conv2 has columns 0 to 6")
    choose(page, "column", "2")
    wait(page, "x.projection.position[0] === 1 && x.projection.position[1] === 2")
    assert page.find_element("id", "rejection").text == ""


@needs_browser
def test_a_photograph_of_100_megapixels_does_not_freeze_the_page(page):
    content = io.BytesIO()
    Image.new("1", (10_000, 10_000), 1).save(content, "PNG")
    page.execute_script(
        """
        window.longest = 0;
        let last = performance.now();
        setInterval(() => {
          window.longest = Math.max(window.longest, performance.now() - last);
          last = performance.now();
        }, 20);
        """
    )
    drop(page, "huge.png", content.getvalue())
    end = time.monotonic() + 20
    while (read_canvas(page, "picture") != 255).any():
        assert time.monotonic() < end, say(page)
        time.sleep(0.1)
    wait(page)
    assert page.execute_script("return window.longest") < 1000


@needs_browser
def test_the_page_asks_for_nothing_else_and_reports_no_error(browser, folder):
    forget(browser)
    open_page(browser, folder)
    for layer in ("conv1", "conv2", "logits"):
        choose(browser, "layer", layer)
        wait(browser, f"x.projection.name == '{layer}'")
    assert browser.get_log("browser") == []
    asked = list_requests(browser)
    allowed = f"{folder.as_uri()}/", "data:", "blob:", "about:"
    assert len(asked) > 8 and all(url.startswith(allowed) for url in asked)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, scheme):
    prefer(page, scheme)
    page.find_element("css selector", "#why summary").click()
    wait(page, "document.querySelector('.reasons')")
    assert not find_faults(page)


def test_only_chains_of_known_layers_and_preprocessing_run_in_a_browser():
    program = describe_network(NET)
    assert program is not None and len(program["layers"]) == len(ARCH.layers)
    for preprocess, is_line in (
        (None, False),
        (TORCHVISION, True),
        (lambda x: x / np.float32(255) - 0.5, True),
        (lambda x: np.sqrt(x.astype(np.float32)), False),
        (Preprocessing(MEAN[:8, :7], 0.1, size=(HEIGHT, WIDTH)), True),
    ):
        net = zf.network(NET.model, preprocess=preprocess)
        assert (describe_network(net) is not None) == is_line

    def function(x):
        return jax.nn.relu(x.mean((1, 2)) @ jnp.ones((3, 4)))

    net = zf.network(function, (HEIGHT, WIDTH, 3), preprocess=TORCHVISION)
    assert describe_network(net) is None

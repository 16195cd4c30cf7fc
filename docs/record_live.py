"""Record the live page of a gallery as a GIF of 20 seconds.

    python docs/record_live.py results/gallery docs/figures/live.gif

The folder is that of a gallery, written by `python -m experiments.gallery`. It needs
Chromium and selenium.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains

# Milliseconds of a frame; size in CSS pixels, and screen pixels to one of these.
_FRAME, _SIZE, _DOTS, _COLORS = 250, (1200, 900), 0.56, 64
# Where in the maps of a layer the strongest place of a unit is: of the units in the
# first two rows, the one with the strongest map but for some.
_PLACE = """
const [index, skipped] = arguments;
const sheet = document.querySelectorAll(".sheet-layer > .framed")[index];
const [height, width, units] = NETWORK.layers[index].shape;
const map = live.read().maps[index];
const canvas = sheet.querySelector("canvas");
const columns = Math.floor(canvas.width / (width + 1));
const peaks = [...Array(Math.min(units, 2 * columns)).keys()].map((unit) => {
  let best = unit;
  for (let at = unit; at < map.length; at += units) if (map[at] > map[best]) best = at;
  return best;
});
const at = peaks.sort((a, b) => map[b] - map[a])[skipped];
const unit = at % units, place = (at - unit) / units;
const x = (unit % columns) * (width + 1) + (place % width) + 0.5;
const row = Math.floor(place / width), above = Math.floor(unit / columns);
const y = above * (height + 1) + row + 0.5;
sheet.scrollIntoView({block: "start", behavior: "instant"});
return [sheet, x / canvas.width - 0.5, y / canvas.height - 0.5];
"""


def record(folder: Path, target: Path) -> None:
    """Play the scenes in headless Chromium, and save a frame after each step."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("headless=new", "no-sandbox", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    frames: list[Image.Image] = []
    lengths: list[int] = []
    with webdriver.Chrome(options, service) as browser:
        width, height = _SIZE
        size = {"width": width, "height": height, "deviceScaleFactor": _DOTS}
        metrics = {**size, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get((folder / "pages/live/index.html").resolve().as_uri())
        for count in play(browser):
            wait(browser)
            frames.append(Image.open(io.BytesIO(browser.get_screenshot_as_png())))
            lengths.append(count * _FRAME)
    frames = [frame.convert("RGB") for frame in frames]
    palette = Image.fromarray(
        np.concatenate([np.asarray(x) for x in frames[::4]])
    ).quantize(_COLORS)
    still = Image.Dither.NONE
    images = [frame.quantize(palette=palette, dither=still) for frame in frames]
    images[0].save(
        target, save_all=True, append_images=images[1:], duration=lengths, loop=0
    )
    print(f"{target}: {sum(lengths) / 1000:g} s, {target.stat().st_size:,} bytes")


def play(browser: webdriver.Chrome) -> Iterator[int]:
    """Play the scenes; yield after each step how many frames it is shown."""
    examples = browser.find_elements("css selector", "#examples button")
    names = browser.execute_script("return NETWORK.layers.map((x) => x.name)")
    scroll(browser, browser.find_element("id", "projection"))
    yield 6
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        for skipped in (0, 5):
            click(browser, names.index(layer), skipped)
            yield 4
    for rule in ("guided", "gradient", "deconvnet"):
        choose(browser, "rule", rule)
        yield 3
    for example, layer in zip(examples[1:4], ("conv3", "conv4", "conv5"), strict=True):
        example.click()
        yield 2
        choose(browser, "layer", layer)
        yield 2
    yield from draw(browser)
    scroll(browser, browser.find_element("id", "why"))
    browser.find_element("css selector", "#why summary").click()
    while not browser.find_elements("css selector", "#reasons *"):
        time.sleep(0.02)
    yield 8


def wait(browser: webdriver.Chrome) -> None:
    """Wait until all that is shown belongs to the picture, and check that it shows."""
    script = "const x = live.read(); return !x.isBusy && x.projection"
    while not (projection := browser.execute_script(script)):
        time.sleep(0.02)
    assert projection["activation"] > 0, projection


def click(browser: webdriver.Chrome, layer: int, skipped: int) -> None:
    """Click the strongest place of a unit in the maps of a layer."""
    sheet, x, y = browser.execute_script(_PLACE, layer, skipped)
    offset = round(x * sheet.size["width"]), round(y * sheet.size["height"])
    ActionChains(browser).move_to_element_with_offset(sheet, *offset).click().perform()


def scroll(browser: webdriver.Chrome, element) -> None:
    """Bring an element to the middle of the window."""
    script = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
    browser.execute_script(script, element)


def choose(browser: webdriver.Chrome, name: str, value: str) -> None:
    """Choose a layer, whose strongest unit is shown then, or a backward rule."""
    browser.execute_script(
        "const c = document.getElementById('choice')[arguments[0]];"
        "c.value = arguments[1]; c.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )


def draw(browser: webdriver.Chrome) -> Iterator[int]:
    """Draw a line across the picture."""
    picture = browser.find_element("id", "picture")
    start = ActionChains(browser, 0).move_to_element_with_offset(picture, -80, -60)
    start.click_and_hold().perform()
    for _ in range(8):
        ActionChains(browser, 0).move_by_offset(20, 14).perform()
        yield 1
    ActionChains(browser).release().perform()
    yield 3


if __name__ == "__main__":
    record(Path(sys.argv[1]), Path(sys.argv[2]))

"""Windows against whole maps: the planner, the engine, and Winograd's products."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zfnet_jax as zf
from tests.comparison import AS_USERS, cut, distance
from tests.networks import MIXED, ODD, random_model
from tests.test_deconvnet import build, draw_images, signals_of, with_dtype
from zfnet_jax import cpu, ops, windows
from zfnet_jax.arch import Conv, MaxPool, receptive_field
from zfnet_jax.deconvnet import backproject
from zfnet_jax.projections import project
from zfnet_jax.windows import Windows, plan_occlusion, recompute


def test_cut_and_paste_by_hand():
    maps = jnp.arange(12.0).reshape(1, 3, 4, 1)
    corners = np.array([(-1, 2), (1, 3)], np.int32)
    windows = Windows(corners, (2, 2), (3, 4), ((-1, 1), (2, 3)))
    images = jnp.zeros(2, jnp.int32)
    patches = windows.cut(maps, images, -1.0)
    expected = [[[-1, -1], [2, 3]], [[7, -1], [11, -1]]]
    np.testing.assert_array_equal(patches[..., 0], expected)
    cleared = windows.clear_outside(patches)
    np.testing.assert_array_equal(cleared[..., 0], np.maximum(expected, 0))
    pasted = np.zeros((2, 3, 4))
    pasted[0, 0, 2:], pasted[1, 1:, 3] = [2, 3], [7, 11]
    np.testing.assert_array_equal(windows.paste(patches)[..., 0], pasted)


@pytest.mark.parametrize("arch", [ODD, zf.ZFNET], ids=lambda x: x.name)
def test_the_windows_of_one_activation_are_its_receptive_field(arch):
    walked = [x for x in arch.walk() if isinstance(x[0], Conv | MaxPool)]
    for top, (layer, _, (rows, columns, _)) in enumerate(walked):
        positions = np.array([(0, 0), (rows - 1, columns - 1)], np.int32)
        bounds = (0, rows - 1), (0, columns - 1)
        windows = Windows(positions, (1, 1), (rows, columns), bounds)
        for spec, inputs, _ in walked[top::-1]:
            windows = windows.see(spec, inputs[:2])
        field = receptive_field(arch, layer.name)
        assert windows.size == field.size
        for position, corner in zip(positions, windows.corners, strict=True):
            assert tuple(corner) == field.box(*position.tolist(), clip=False)[:2]
        assert windows.bounds == tuple(zip(*windows.corners.tolist(), strict=True))


@pytest.mark.parametrize(
    ("arch", "layer", "rule"),
    [(ODD, "norm3", "guided"), (zf.ZFNET32, "conv5", "deconvnet")],
    ids=lambda value: getattr(value, "name", None),
)
def test_windows_equal_the_page_at_every_position(arch, layer, rule):
    """Borders, corners and all, where windows reach outside the image."""
    check_every_position(arch, layer, rule)


def test_winograd_windows_equal_the_page_at_every_position(monkeypatch):
    monkeypatch.setattr(cpu.conv, "_WIDE", 1)
    monkeypatch.setattr(windows, "_WINOGRAD_PIXELS", 1)
    # Under another name it is compiled anew.
    arch = dataclasses.replace(zf.ZFNET32, name="winograd")
    check_every_position(arch, "conv5", "guided")


def check_every_position(arch, layer, rule):
    model, images = build(arch), draw_images(arch, 1)
    places = np.array([*np.ndindex(arch.shapes()[layer][:2])])[None]
    units = np.arange(places.shape[1]) % 6
    whole, crops = (
        project(model, images, layer, units, places, rule=rule, crop=crop)
        for crop in (False, True)
    )
    signals = signals_of(whole, arch.shapes()[layer])
    images = images[np.zeros(len(whole), int)]
    page = np.asarray(backproject(model, images, layer, signals, rule=rule))
    for pixels, crop, box, expected in zip(
        whole.pixels, crops.pixels, whole.boxes, page, strict=True
    ):
        assert distance(pixels, expected) < 1e-5
        assert distance(crop, cut(expected, box)) < 1e-5


@pytest.mark.parametrize("arch", [ODD, MIXED], ids=lambda arch: arch.name)
def test_recomputed_windows_equal_the_pass_over_the_changed_image(arch):
    """Any change inside boxes, in corners and in the middle; and nothing else."""
    model = with_dtype("float64", random_model(arch))
    image, other = draw_images(arch, 2, seed=1).astype(np.float64)
    size, (height, width) = (5, 4), arch.input_hw
    corners = [(0, 0), (height // 2, 3), (height - 5, width - 4)]
    boxes = [(slice(top, top + 5), slice(left, left + 4)) for top, left in corners]
    with jax.enable_x64(True):
        stages = plan_occlusion(arch, np.array(corners), np.array(corners) + size)
        clean = {"image": image[None], **model.features(image[None]).features}
        changed = np.repeat(image[None], 3, 0)
        for picture, box in zip(changed, boxes, strict=True):
            picture[box] = other[box]
        expected = model.features(changed).features
        patches = jnp.stack([other[box] for box in boxes])
        for stage in stages:
            patches = recompute(model, stage, clean, patches, np.arange(3))
            if stage.layer is None:
                break
            name = stage.layer.name
            for n, (top, left) in enumerate(stage.out.corners.tolist()):
                rows, columns = stage.out.size
                whole = np.array(clean[name][0])
                whole[top : top + rows, left : left + columns] = patches[n]
                np.testing.assert_allclose(whole, expected[name][n], atol=1e-10)
        logits = np.asarray(model.classify(patches))
        np.testing.assert_allclose(logits, expected["logits"], atol=1e-10)


@pytest.mark.parametrize(
    ("spec", "batch"),
    [
        (Conv("conv1", 8, kernel=3, padding=1), 300),
        (Conv("conv1", 8, kernel=5, stride=2), 7),
        (Conv("conv1", 8, kernel=(7, 2), stride=(3, 1)), 4),
    ],
    ids=str,
)
@pytest.mark.usefixtures("compiled_well")
def test_small_maps_are_convolved_exactly(spec, batch, monkeypatch):
    monkeypatch.setattr(cpu.conv, "_TILE_BYTES", 1 << 20)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, 11, 13, 16)), jnp.float32)
    shape = (*spec.kernel, 16 // spec.groups, spec.features)
    kernel = jnp.asarray(rng.normal(size=shape), jnp.float32)
    convolve = jax.jit(
        cpu.conv.conv_windows, static_argnums=2, compiler_options=AS_USERS
    )
    actual = convolve(x, kernel, spec)
    assert distance(actual, ops.conv(x, kernel, spec)) < 1e-5

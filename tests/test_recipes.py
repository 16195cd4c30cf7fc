"""Recipes: the paper's annealing rule and limit, and random views of images."""

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

from zfnet_jax import files
from zfnet_jax.arch import Architecture, Conv, Dense
from zfnet_jax.model import ConvNet
from zfnet_jax.recipes import FAST, PAPER, Augmentation, Plateau, limit_kernel_rms
from zfnet_jax.training import augment, cut_out


@pytest.mark.parametrize("seed", range(3))
def test_the_plateau_rule_is_that_of_optax(seed):
    rng = np.random.default_rng(seed)
    # Falling errors with noise, exact ties, and improvements below the tolerance.
    errors = 0.9 * 0.97 ** np.arange(60) + rng.normal(0, 0.02, 60)
    errors[20:] = np.round(errors[20:], 1) - 1e-6 * (np.arange(40) % 2)
    rule = optax.contrib.reduce_on_plateau(factor=0.1, patience=5, min_scale=1e-3)
    params = {"w": jnp.ones(1)}
    update = jax.jit(rule.update)
    _, state = update(params, rule.init(params), value=jnp.float32(1.0))
    plateau, scales = Plateau(), set()
    for error in errors.astype(np.float32):
        updates, state = update(params, state, value=jnp.asarray(error))
        plateau.update(float(error))
        np.testing.assert_allclose(plateau.scale, updates["w"][0], rtol=1e-6)
        scales.add(f"{plateau.scale:.0e}")
    assert len(scales) == 4
    # Written to a checkpoint and back, the rule continues where it was.
    assert Plateau(**json.loads(files.to_json(plateau))) == plateau


def test_filters_past_the_limit_are_scaled_back_and_nothing_else_changes():
    rng = np.random.default_rng(0)
    weights = {
        "conv": rng.normal(0, rng.uniform(0.01, 0.3, 24), (3, 5, 4, 24)),
        "dense": np.array([[3.0, 4.0]]),
        "bias": np.array([5.0]),
    }
    updates = {name: rng.normal(0, 0.05, x.shape) for name, x in weights.items()}
    weights, updates = jax.tree.map(np.float32, (weights, updates))
    limit = limit_kernel_rms(0.1)
    changes, _ = jax.jit(limit.update)(updates, limit.init(weights), weights)
    free = (weights["conv"] + updates["conv"]).reshape(-1, 24)
    rms = np.sqrt((free.astype(float) ** 2).mean(0))
    held = (weights["conv"] + changes["conv"]).reshape(-1, 24)
    np.testing.assert_allclose(held, free * np.minimum(1, 0.1 / rms), atol=1e-6)
    # Where nothing is scaled, the update stays as it was, to the bit.
    below = rms < 0.1
    assert 0 < below.sum() < 24
    same = changes["conv"][..., below], updates["conv"][..., below]
    np.testing.assert_array_equal(*same)
    for name in ("dense", "bias"):
        np.testing.assert_array_equal(changes[name], updates[name])


def test_the_recipes_are_those_of_the_paper_and_of_the_documentation():
    assert (PAPER.batch_size, PAPER.epochs, PAPER.dropout) == (128, 70, 0.5)
    assert PAPER.anneals and PAPER.augmentation.corners
    assert PAPER.schedule(70)(60) == 1e-2
    schedule: Any = FAST.schedule(100)
    rates = [float(schedule(step)) for step in range(101)]
    # Up during the first 15 steps, then down in equal steps to nothing.
    assert np.argmax(rates) == 15 and max(rates) == pytest.approx(0.03)
    np.testing.assert_allclose(np.diff(rates)[15:], -0.03 / 85, rtol=1e-4)
    assert rates[-1] == pytest.approx(0, abs=1e-8)


def test_muon_updates_are_orthogonal_and_other_weights_take_sgd():
    rng = np.random.default_rng(0)
    arch = Architecture(
        "two", (4, 4), (Conv("conv1", 8, kernel=3), Dense("logits", 3, relu=False))
    )
    model: Any = ConvNet(arch, rngs=nnx.Rngs(0))
    grads = jax.tree.map(
        lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), model
    )
    optimizer = FAST.optimizer(optax.constant_schedule(1.0))
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(model), model)
    step = np.asarray(updates.conv1.kernel[...] + 0.05 * model.conv1.kernel[...])
    values = np.linalg.svd(step.reshape(-1, 8), compute_uv=False)
    assert values.min() > 0.6 * values.max()
    norm = np.sqrt(
        sum(
            float((g[...] ** 2).sum())
            for g in (grads.conv1.bias, grads.logits.kernel, grads.logits.bias)
        )
    )
    # Nesterov's first step is (1 + 0.9) times the clipped gradient.
    expected = -4 / 3 * 1.9 * grads.logits.kernel[...] * min(1, 2 / norm)
    np.testing.assert_allclose(updates.logits.kernel[...], expected, rtol=1e-5)


# Random views.

jitted_augment = jax.jit(augment, static_argnums=2)
VIEWS = np.random.default_rng(4).integers(0, 256, (600, 6, 9, 3), np.uint8)


def locate_views(how: Augmentation) -> list[tuple[int, int, bool]]:
    """Row, column and flip of each view, in the reflected image."""
    views = np.asarray(jitted_augment(jnp.asarray(VIEWS), jax.random.key(0), how))
    assert (views.dtype, views.shape) == (np.uint8, VIEWS.shape)
    margin, side = how.margin, range(2 * how.margin + 1)
    edges = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = np.pad(VIEWS, edges, mode="reflect")
    matches = [[] for _ in VIEWS]
    for row, column, flip in itertools.product(side, side, (False, True)):
        windows = padded[:, row : row + 6, column : column + 9]
        windows = windows[:, :, ::-1] if flip else windows
        for index in np.flatnonzero((views == windows).all((1, 2, 3))):
            matches[index].append((row, column, flip))
    assert all(len(match) == 1 for match in matches)
    return [match[0] for match in matches]


ALL = [*itertools.product(range(5), range(5))]


@pytest.mark.parametrize(
    ("how", "windows"),
    [
        (Augmentation(margin=2), ALL),
        # As in the paper: the corners and the center.
        (
            Augmentation(margin=2, corners=True),
            [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)],
        ),
        (Augmentation(margin=0), [(0, 0)]),
    ],
)
def test_views_are_windows_of_the_reflected_image_and_their_mirrors(how, windows):
    places = locate_views(how)
    assert set(places) == {(*place, flip) for place in windows for flip in (0, 1)}
    # 600 tosses of a fair coin: 300, with a standard deviation of 12.
    assert 250 < sum(flip for *_, flip in places) < 350


def test_cut_out_removes_its_share_anywhere_inside_the_image():
    inputs = np.random.default_rng(0).normal(size=(600, 6, 9, 3)).astype(np.float32)
    views = np.asarray(cut_out(jnp.asarray(inputs), jax.random.key(0), 1 / 3))
    corners = set()
    for image, view in zip(inputs, views, strict=True):
        rows, columns, _ = np.nonzero(view == 0)
        top, left = int(rows.min()), int(columns.min())
        corners.add((top, left))
        expected = image.copy()
        expected[top : top + 2, left : left + 3] = 0
        np.testing.assert_array_equal(view, expected)
    assert corners == set(itertools.product(range(5), range(7)))

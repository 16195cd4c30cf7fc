"""Recipes: the paper's annealing rule and limit, schedules and optimizers."""

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
from zfnet_jax.recipes import FAST, MODERN, PAPER, Plateau, limit_kernel_rms


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
    assert PAPER.schedule(PAPER.rate, 70)(60) == 1e-2
    schedule: Any = FAST.schedule(FAST.rate, 100)
    rates = [float(schedule(step)) for step in range(101)]
    # Up during the first 15 steps, then down in equal steps to nothing.
    assert np.argmax(rates) == 15 and max(rates) == pytest.approx(0.03)
    np.testing.assert_allclose(np.diff(rates)[15:], -0.03 / 85, rtol=1e-4)
    assert rates[-1] == pytest.approx(0, abs=1e-8)


def test_the_modern_recipe_is_that_of_its_sources():
    schedule: Any = MODERN.schedule(MODERN.rate, 1000)
    rates = [float(schedule(step)) for step in (0, 25, 50, 525, 1000)]
    # Up during 5% of the steps, half way down the cosine in the middle of the rest.
    expected = [0.02 / 50, 0.01 + 0.0002, 0.02, 0.01, 0.0]
    np.testing.assert_allclose(rates, expected, atol=1e-7)
    weights = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0])}
    grads = jax.tree.map(jnp.ones_like, weights)
    optimizer = MODERN.optimizer(optax.constant_schedule(0.1))
    updates: Any = optimizer.update(grads, optimizer.init(weights), weights)[0]
    # Nesterov's first step is 1.9 times the gradient, with the decay of the kernel.
    assert float(updates["kernel"][0, 0]) == pytest.approx(-0.19 * (1 + 2 * 5e-4))
    assert float(updates["bias"][0]) == pytest.approx(-0.19)


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

"""Training: what a step computes, what a recipe does, and runs that are killed."""

import dataclasses
import io
import itertools
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

from zfnet_jax import checkpoint, training
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool
from zfnet_jax.data import Dataset, Preprocessing
from zfnet_jax.files import DamagedFileError
from zfnet_jax.model import ConvNet
from zfnet_jax.training import (
    FAST,
    PAPER,
    Augmentation,
    NonFiniteLossError,
    Recipe,
    TrainResult,
    augment,
    class_probabilities,
    cut_out,
    evaluate,
    limit_kernel_rms,
    loss_and_accuracy,
    split_validation,
)

pytestmark = pytest.mark.usefixtures("compiled_once")

ROOT = Path(__file__).parents[1]

TINY = Architecture(
    "tiny",
    (8, 8),
    (
        Conv("conv1", 4, kernel=3, padding=1),
        MaxPool("pool1", kernel=2, stride=2),
        Conv("conv2", 8, kernel=3, padding=1),
        Dense("fc3", 16),
        Dense("logits", 10, relu=False),
    ),
)
EPOCHS, BATCH = 5, 16


def colours(count: int, seed: int, side: int = 8) -> Dataset:
    """Noise that is brighter in red, in green, in blue, or in none of them."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 4
    images = rng.integers(0, 128, (count, side, side, 3))
    images += 100 * (np.arange(3) == labels[:, None])[:, None, None, :]
    names = ("red", "green", "blue", "grey")
    return Dataset(images.astype(np.uint8), labels, names, "colours")


DATA, VALIDATION = colours(4 * BATCH, seed=0), colours(32, seed=1)


def decaying_on_plateau(total: int, steps_per_epoch: int) -> Any:
    return optax.chain(
        optax.sgd(optax.linear_schedule(0.1, 0.0, total), momentum=0.9),
        optax.contrib.reduce_on_plateau(
            factor=0.5, patience=1, accumulation_size=steps_per_epoch
        ),
    )


# A bit of all that a recipe can ask for, so that all of it must be kept and restored.
RECIPE = Recipe(
    name="test",
    epochs=EPOCHS,
    batch_size=BATCH,
    validation=0,
    scale=1 / 64,
    init=FAST.init,
    dropout=0.2,
    label_smoothing=0.05,
    augmentation=Augmentation(margin=2, cutout=1 / 4),
    average=0.5,
    optimizer=decaying_on_plateau,
    learning_rate=lambda step, state, total: (
        optax.tree.get(state, "scale") * (1 - step / total)
    ),
)


def fit(**changes: Any) -> TrainResult:
    arguments: dict[str, Any] = {
        "recipe": RECIPE,
        "seed": 3,
        "validation": VALIDATION,
        "on_damaged": pytest.fail,
    }
    arguments |= changes
    dataset = arguments.pop("dataset", DATA)
    return training.train(TINY, dataset, **arguments)


def idle(explode_at: int = 2**31 - 1, **changes: Any) -> Recipe:
    """The paper's recipe, but its weights stay as they are, until they explode."""

    def init(params: Any) -> jax.Array:
        # The step is part of the state, so that one program serves all of them.
        return jnp.array([0, explode_at])

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rate = jnp.where(state[0] < state[1], 0.0, jnp.inf)
        updates = jax.tree.map(lambda x: jnp.where(rate > 0, x * rate, 0.0), updates)
        return updates, state + jnp.array([1, 0])

    optimizer = optax.with_extra_args_support(
        optax.GradientTransformation(init, update)
    )
    return dataclasses.replace(
        PAPER,
        batch_size=BATCH,
        validation=0,
        optimizer=lambda total, steps_per_epoch: optimizer,
        learning_rate=lambda step, state, total: jnp.zeros(()),
        **changes,
    )


def weights(model: ConvNet) -> dict[str, np.ndarray]:
    return {
        f"{layer}.{kind}": np.array(getattr(getattr(model, layer), kind)[...])
        for layer in model.arch.kernel_shapes()
        for kind in ("kernel", "bias")
    }


def kept_state(folder: Path, result: TrainResult) -> tuple[int, list[np.ndarray]]:
    """Number and leaves of the newest good checkpoint."""
    model: Any = result.model
    template = training.TrainState(
        model=model,
        average=model,
        opt_state=RECIPE.optimizer(1, 1).init(model),
        step=jnp.zeros((), jnp.int32),
        key=jnp.zeros(2, jnp.uint32),
        validation_error=jnp.zeros(()),
    )
    restored = checkpoint.restore_latest(folder, template)
    return restored.step, [np.asarray(leaf) for leaf in jax.tree.leaves(restored.state)]


def assert_same(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].tobytes() == two[name].tobytes(), name


def assert_same_run(
    one: TrainResult, folder: Path, other: TrainResult, other_folder: Path
) -> None:
    """Bit for bit: weights, history, and momentum, schedule and key of the state."""
    assert_same(weights(one.model), weights(other.model))
    assert one.history == other.history
    step, leaves = kept_state(folder, one)
    other_step, other_leaves = kept_state(other_folder, other)
    assert step == other_step
    for leaf, other_leaf in zip(leaves, other_leaves, strict=True):
        assert leaf.dtype == other_leaf.dtype
        assert leaf.tobytes() == other_leaf.tobytes()


@dataclasses.dataclass
class Whole:
    """A run that nothing interrupted."""

    result: TrainResult
    folder: Path
    progress: list[tuple[float, dict[str, float]]]


@pytest.fixture(scope="module")
def whole(compiled_once, tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    progress = []
    result = fit(
        checkpoints=folder,
        on_progress=lambda done, values: progress.append((done, dict(values))),
    )
    return Whole(result, folder, progress)


# The paper's recipe.


Arrays = dict[str, np.ndarray]


def limited(updates: Arrays, params: Arrays, *limit: float) -> tuple[Arrays, Arrays]:
    """The update that is left of an update, and the weights after it."""
    transformation = limit_kernel_rms(*limit)
    weights, changes = jax.tree.map(jnp.float32, (params, updates))
    changes, _ = transformation.update(changes, transformation.init(weights), weights)
    after: Any = optax.apply_updates(weights, changes)
    return jax.tree.map(np.asarray, (changes, after))


def test_a_filter_past_the_limit_is_scaled_back_and_no_other_is_touched():
    params = {
        # Two filters of two weights; the RMS of (0.3, 0.4) is the root of 0.125.
        "conv": np.array([[[[0.2, 0.01]], [[0.5, -0.02]]]]),
        "dense": np.array([[3.0, 4.0]]),
        "bias": np.array([5.0]),
    }
    updates = {
        "conv": np.array([[[[0.1, 1 / 30]], [[-0.1, 1e-9]]]]),
        "dense": np.array([[1 / 3, 1.0]]),
        "bias": np.array([1 / 3]),
    }
    changes, after = limited(updates, params, 0.1)
    expected = np.array([0.3, 0.4]) * 0.1 / math.sqrt(0.125)
    np.testing.assert_allclose(after["conv"][0, :, 0, 0], expected, rtol=1e-5)
    # Under the limit, and where there is no filter, the update is what it was.
    for tree in (changes, updates):
        tree["conv"] = tree["conv"][..., 1]
    assert_same(changes, jax.tree.map(np.float32, updates))


def test_no_filter_passes_the_limit_and_none_turns():
    rng = np.random.default_rng(0)
    shape = (3, 5, 4, 24)
    params = {"conv": rng.normal(0, rng.uniform(0.01, 0.3, 24), shape)}
    updates = {"conv": rng.normal(0, 0.05, shape)}
    free = (params["conv"] + updates["conv"]).reshape(-1, 24)
    held = limited(updates, params)[1]["conv"].reshape(-1, 24)
    before, after = (np.sqrt((x.astype(float) ** 2).mean(0)) for x in (free, held))
    assert (before > 0.1).any() and (before < 0.1).any()
    np.testing.assert_allclose(after, np.minimum(before, 0.1), rtol=1e-5)
    cosine = (free * held).sum(0) / np.sqrt((free**2).sum(0) * (held**2).sum(0))
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)


def test_the_limit_needs_the_weights():
    limit = limit_kernel_rms()
    with pytest.raises(ValueError, match="needs the parameters"):
        limit.update({}, limit.init({}))


def test_the_paper_divides_its_rate_by_10_when_the_error_stalls():
    steps_per_epoch = 3
    optimizer = PAPER.optimizer(99, steps_per_epoch)
    params = {"bias": jnp.zeros(1)}
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    # An error that improves, then stalls for five epochs; thrice over, and then on.
    errors = [1.0, 0.5, *[0.5] * 5, 0.4, *[0.45, 0.4] * 2, 0.41, *[0.4] * 15]
    stalled = {6: 1e-3, 12: 1e-4, 17: 1e-5}
    rate, momentum = 1e-2, 0.0
    for epoch, error in enumerate(errors):
        for step in range(steps_per_epoch):
            updates, state = update(
                {"bias": jnp.ones(1)}, state, params, value=jnp.float32(error)
            )
            if step == steps_per_epoch - 1:
                rate = stalled.get(epoch, rate)
            momentum = 0.9 * momentum + 1
            np.testing.assert_allclose(updates["bias"], -rate * momentum, rtol=1e-5)
        shown = PAPER.learning_rate(jnp.int32(0), state, 99)
        np.testing.assert_allclose(shown, rate, rtol=1e-5)


def test_a_run_of_the_paper_lowers_its_rate_on_a_plateau():
    # No training image has the class of the only validation image.
    never = Dataset(
        DATA.images[:1], np.array([4], np.int32), (*DATA.class_names, "x"), "never"
    )
    dataset = dataclasses.replace(DATA, class_names=never.class_names)
    result = fit(
        dataset=dataset, validation=never, recipe=PAPER, epochs=7, batch_size=BATCH
    )
    assert [record["validation_accuracy"] for record in result.history] == [0.0] * 7
    rates = [record["learning_rate"] for record in result.history]
    # An error of 1 is where the first epoch starts from; five more and it has stalled.
    np.testing.assert_allclose(rates, [1e-2] * 5 + [1e-3] * 2, rtol=1e-5)


@pytest.fixture(scope="module")
def untrained(compiled_once) -> TrainResult:
    return fit(recipe=idle(), epochs=1, validation=None)


def test_the_paper_starts_from_normal_weights_and_zero_biases(untrained):
    for name, values in weights(untrained.model).items():
        if name.endswith("bias"):
            assert not values.any(), name
    kernel = weights(untrained.model)["fc3.kernel"]
    assert kernel.size == 2048
    assert abs(kernel.mean()) < 1e-3
    assert kernel.std() == pytest.approx(1e-2, rel=0.06)
    # Beyond two standard deviations: 4.6% of a normal, none of one that is cut there.
    assert 0.02 < (abs(kernel) > 2e-2).mean() < 0.08


def test_the_paper_drops_half_of_each_hidden_dense_layer(untrained):
    arch = untrained.model.arch
    dropped = {x.name: x.dropout for x in arch.layers if isinstance(x, Dense)}
    assert dropped == {"fc3": 0.5, "logits": 0.0}
    assert (PAPER.batch_size, PAPER.augmentation.corners) == (128, True)


def mirrored(dataset: Dataset) -> Dataset:
    """Images that a flip does not change."""
    half = dataset.images[:, :, :4]
    images = np.concatenate([half, half[:, :, ::-1]], axis=2)
    return dataclasses.replace(dataset, images=images)


def test_each_epoch_takes_every_image_once_in_a_new_order():
    dataset = mirrored(DATA)
    recipe = idle(
        init=nnx.initializers.normal(0.15),
        dropout=0.0,
        augmentation=Augmentation(margin=0),
    )
    first_batches = []
    result = fit(
        dataset=dataset,
        validation=None,
        recipe=recipe,
        epochs=3,
        on_progress=lambda done, values: (
            first_batches.append(values["train_loss"]) if done % 1 == 0.25 else None
        ),
    )
    logits = evaluate(result.model, result.preprocess, dataset.images)
    loss, accuracy = loss_and_accuracy(logits, dataset.labels)
    for record in result.history:
        assert record["train_loss"] == pytest.approx(loss, rel=1e-5)
        assert record["train_accuracy"] == pytest.approx(accuracy)
    assert len(set(np.round(first_batches, 3))) == 3


def test_a_step_is_that_of_a_plain_loop():
    # With all images in one batch their order changes nothing either.
    dataset = mirrored(DATA.take(np.arange(BATCH)))
    images = dataset.images
    recipe = dataclasses.replace(
        PAPER,
        validation=0,
        scale=0.01,
        init=nnx.initializers.normal(0.15),
        dropout=0.0,
        label_smoothing=0.1,
        augmentation=Augmentation(margin=0),
        average=0.4,
    )
    run = {"dataset": dataset, "epochs": 4, "batch_size": BATCH, "validation": None}
    result = fit(recipe=recipe, **run)
    # The seed alone decides where a run starts, not the data.
    start = fit(recipe=idle(init=recipe.init), epochs=1, validation=None).model

    inputs = jnp.asarray((images - images.mean(axis=0)) * 0.01, jnp.float32)
    targets = np.full((BATCH, 4), 0.1 / 4) + 0.9 * np.eye(4)[dataset.labels]

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(model):
        return -(targets * jax.nn.log_softmax(model(inputs))).sum() / BATCH

    model = average = start
    momentum = jax.tree.map(np.zeros_like, model)
    clipped = 0
    for step in range(4):
        loss, grads = value_and_grad(model)
        assert result.history[step]["train_loss"] == pytest.approx(float(loss), 1e-5)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        model = jax.tree.map(lambda w, m: w - 1e-2 * m, model, momentum)
        for layer in (model.conv1, model.conv2):
            kernel = np.array(layer.kernel[...])
            rms = np.sqrt((kernel**2).mean((0, 1, 2)))
            clipped += (rms > 0.1).sum()
            layer.kernel[...] = kernel * np.minimum(1, 0.1 / rms)
        decay = min(0.4, (1 + step) / (10 + step))
        average = jax.tree.map(
            lambda a, w, d=decay: d * a + (1 - d) * w, average, model
        )
    assert clipped
    expected = weights(average)
    for name, values in weights(result.model).items():
        np.testing.assert_allclose(
            values, expected[name], rtol=1e-4, atol=1e-6, err_msg=name
        )
        assert not np.allclose(values, weights(start)[name], rtol=1e-3, atol=1e-6)


# Random views.

jitted_augment = jax.jit(augment, static_argnums=2)
VIEWS = np.random.default_rng(4).integers(0, 256, (600, 6, 9, 3), np.uint8)


def places(how: Augmentation) -> list[tuple[int, int, bool]]:
    """Row, column and flip of each view, in the reflected image."""
    views = jitted_augment(jnp.asarray(VIEWS), jax.random.key(0), how)
    assert (views.dtype, views.shape) == (jnp.uint8, VIEWS.shape)
    edges = [(how.margin, how.margin)] * 2
    found = []
    for image, view in zip(VIEWS, np.asarray(views), strict=True):
        padded = np.pad(image, [*edges, (0, 0)], mode="reflect")
        matches = []
        for row, column in itertools.product(range(2 * how.margin + 1), repeat=2):
            window = padded[row : row + 6, column : column + 9]
            for flip in (False, True):
                if (view == (window[:, ::-1] if flip else window)).all():
                    matches.append((row, column, flip))
        assert len(matches) == 1
        found += matches
    return found


def test_views_are_all_windows_of_the_reflected_image_and_their_mirrors():
    found = places(Augmentation(margin=2))
    assert set(found) == set(itertools.product(range(5), range(5), (False, True)))
    # 600 tosses of a fair coin: 300, with a standard deviation of 12.
    assert 250 < sum(flip for *_, flip in found) < 350


def test_the_paper_takes_the_corners_and_the_centre_only():
    found = places(Augmentation(margin=3, corners=True))
    corners = [(0, 0), (0, 6), (6, 0), (6, 6), (3, 3)]
    assert set(found) == {(*place, flip) for place in corners for flip in (False, True)}


def test_without_a_margin_there_are_only_flips():
    found = places(Augmentation(margin=0))
    assert set(found) == {(0, 0, False), (0, 0, True)}


def test_cut_out_is_a_part_of_its_share_inside_the_image():
    inputs = np.random.default_rng(0).normal(size=(600, 6, 9, 3)).astype(np.float32)
    views = np.asarray(cut_out(jnp.asarray(inputs), jax.random.key(0), 1 / 3))
    corners = set()
    for image, cut in zip(inputs, views, strict=True):
        rows, columns, _ = np.nonzero(cut == 0)
        top, left = int(rows.min()), int(columns.min())
        corners.add((top, left))
        expected = image.copy()
        expected[top : top + 2, left : left + 3] = 0
        np.testing.assert_array_equal(cut, expected)
    assert corners == set(itertools.product(range(5), range(7)))


@pytest.mark.parametrize(
    "view",
    [
        lambda key: jitted_augment(jnp.asarray(VIEWS), key, Augmentation(margin=1)),
        lambda key: cut_out(jnp.asarray(VIEWS, jnp.float32), key, 0.5),
    ],
    ids=["augment", "cut_out"],
)
def test_views_depend_on_the_key_alone(view):
    one, again, other = (np.asarray(view(jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


# Validation and evaluation.


def numbered(count: int) -> Dataset:
    images = np.empty((count, 8, 8, 3), np.uint8)
    images[:] = np.arange(count)[:, None, None, None]
    masks = images[..., 0] > 0
    labels = np.arange(count, dtype=np.int32) % 10
    return Dataset(images, labels, tuple("0123456789"), "numbered", masks)


def numbers(dataset: Dataset | None) -> list[int]:
    assert dataset is not None and dataset.masks is not None
    found = dataset.images[:, 0, 0, 0]
    np.testing.assert_array_equal(dataset.labels, found % 10)
    np.testing.assert_array_equal(dataset.masks[:, 0, 0], found > 0)
    return found.tolist()


def test_the_split_is_disjoint_complete_and_fixed_by_the_seed():
    dataset = numbered(100)
    train, validation = split_validation(dataset, 30, seed=5)
    kept, apart = numbers(train), numbers(validation)
    assert (len(kept), len(apart)) == (70, 30)
    assert sorted(kept + apart) == list(range(100))
    # Random, not one end of the data.
    assert 20 < np.mean(apart) < 80 and np.ptp(apart) > 60
    again = split_validation(dataset, 30, seed=5)
    assert (numbers(again[0]), numbers(again[1])) == (kept, apart)
    assert numbers(split_validation(dataset, 30, seed=6)[1]) != apart


def test_a_split_of_nothing_leaves_the_data_alone():
    dataset = numbered(10)
    train, validation = split_validation(dataset, 0, seed=5)
    assert numbers(train) == list(range(10))
    assert validation is None


@pytest.mark.parametrize("count", [10, 11, -1])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(count):
    with pytest.raises(ValueError, match=f"cannot set {count} of 10 training images"):
        split_validation(numbered(10), count, seed=0)


def test_evaluation_does_not_depend_on_the_batch_and_drops_nothing(whole):
    model, preprocess = whole.result.model, whole.result.preprocess
    assert model.arch.layer("fc3").dropout == 0.2
    images = VALIDATION.images[:21]
    expected = model(jnp.asarray(preprocess(images)))
    for batch_size in (1, 8, 500):
        logits = evaluate(model, preprocess, images, batch_size)
        assert (logits.dtype, logits.shape) == (np.float32, (21, 4))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_loss_and_accuracy_by_hand():
    logits = np.log(np.array([[1, 1, 2], [3, 1, 0.5], [1, 7, 2]], np.float32))
    labels = np.array([2, 1, 1], np.int32)
    # The probabilities of the labels are 2/4, 1/4.5 and 7/10.
    loss, accuracy = loss_and_accuracy(logits, labels)
    assert loss == pytest.approx(np.log([2, 4.5, 10 / 7]).mean(), rel=1e-6)
    assert accuracy == pytest.approx(2 / 3)


# Probabilities by one view and by ten, of a network whose images are not square.

Net = tuple[ConvNet, Preprocessing]
WIDE = Architecture(
    "wide",
    (6, 9),
    (Conv("conv1", 3, kernel=3, padding=1), Dense("logits", 5, relu=False)),
)


@pytest.fixture(scope="module")
def wide(compiled_once) -> Net:
    mean = np.random.default_rng(0).uniform(0, 255, (6, 9, 3)).astype(np.float32)
    return ConvNet(WIDE, rngs=nnx.Rngs(0)), Preprocessing(mean, 1 / 64)


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def by_ten(wide: Net, images: np.ndarray, batch_size: int = 50) -> np.ndarray:
    found = class_probabilities(*wide, images, ten_crops=True, batch_size=batch_size)
    return np.stack([*found])


def test_ten_crops_are_a_plain_loop(wide: Net):
    model, preprocess = wide
    images = random_images(7, 10, 12, 3)
    logits = jax.jit(lambda x: model(x))
    total = np.zeros((7, 5))
    for row, column in ((0, 0), (0, 3), (4, 0), (4, 3), (2, 1)):
        for turn in (1, -1):
            crops = images[:, row : row + 6, column : column + 9][:, :, ::turn]
            powers = np.exp(np.asarray(logits((crops - preprocess.mean) / 64), float))
            total += powers / powers.sum(1, keepdims=True)
    for batch_size in (3, 7, 50):
        found = by_ten(wide, images, batch_size)
        assert (found.dtype, found.shape) == (np.float32, (7, 5))
        np.testing.assert_allclose(found, total / 10, rtol=1e-4)


def test_one_view_is_the_softmax_of_the_logits(wide: Net):
    images = random_images(7, 6, 9, 3)
    powers = np.exp(evaluate(*wide, images))
    found = np.stack([*class_probabilities(*wide, images, batch_size=3)])
    np.testing.assert_allclose(found, powers / powers.sum(1, keepdims=True), rtol=1e-4)
    assert np.ptp(found, 0).min() > 1e-3


def test_ten_crops_of_a_constant_image_are_one_view(wide: Net):
    levels = random_images(4, 1, 1, 3)
    one = [*class_probabilities(*wide, levels.repeat(6, 1).repeat(9, 2))]
    ten = by_ten(wide, levels.repeat(8, 1).repeat(12, 2))
    np.testing.assert_allclose(ten, one, rtol=1e-5)


def test_ten_crops_do_not_see_a_mirror(wide: Net):
    images = random_images(4, 8, 11, 3)
    ours, mirrored = by_ten(wide, images), by_ten(wide, images[:, :, ::-1])
    np.testing.assert_allclose(ours, mirrored, rtol=1e-5)
    assert not np.allclose(ours, by_ten(wide, images[:, ::-1]), rtol=1e-3)


def test_images_are_read_a_batch_at_a_time_for_one_program(wide: Net, monkeypatch):
    model, preprocess = wide
    read, traced = [], []
    call = Preprocessing.__call__
    monkeypatch.setattr(
        Preprocessing, "__call__", lambda *a: traced.append(a[1].shape) or call(*a)
    )
    images = random_images(8, 6, 9, 3)
    found = class_probabilities(
        model, preprocess, (read.append(x) or x for x in images), batch_size=3
    )
    assert read == []
    for _ in range(3):
        next(found)
    assert len(read) == 3
    assert len([*found]) == 5 and len(read) == 8
    assert traced == [(3, 6, 9, 3)]


def test_no_images_have_no_probabilities(wide: Net):
    assert [*class_probabilities(*wide, [])] == []


def test_what_has_no_probabilities_is_named(wide: Net):
    images = random_images(2, 6, 9, 3)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 0"):
        next(class_probabilities(*wide, images, batch_size=0))
    with pytest.raises(
        ValueError, match="7 x 9 x 3 do not fit the mean image of 6 x 9"
    ):
        next(class_probabilities(*wide, random_images(2, 7, 9, 3)))
    with pytest.raises(ValueError, match="crop of 6 x 9 from an image of 5 x 9"):
        next(class_probabilities(*wide, random_images(2, 5, 9, 3), ten_crops=True))


# Whole runs.


def test_the_history_says_what_each_epoch_reached(whole):
    result = whole.result
    assert [record["epoch"] for record in result.history] == [1, 2, 3, 4, 5]
    for record in result.history:
        assert record.keys() == {
            "epoch",
            "train_loss",
            "train_accuracy",
            "learning_rate",
            "validation_loss",
            "validation_accuracy",
        }
        assert all(math.isfinite(value) for value in record.values())
    logits = evaluate(result.model, result.preprocess, VALIDATION.images)
    last = result.history[-1]
    assert loss_and_accuracy(logits, VALIDATION.labels) == pytest.approx(
        (last["validation_loss"], last["validation_accuracy"]), rel=1e-5
    )
    assert min(result.train_seconds, result.compile_seconds) > 0
    assert result.images_per_second == pytest.approx(
        EPOCHS * len(DATA) / result.train_seconds
    )


def test_progress_runs_to_the_end_and_shows_each_record(whole):
    done = [step for step, _ in whole.progress]
    assert done == sorted(done) and done[-1] == EPOCHS
    assert done[0] == 0.25
    shown = {step: values for step, values in whole.progress}
    assert [shown[epoch + 1.0] for epoch in range(EPOCHS)] == whole.result.history
    # Whoever shows the first values of an epoch that is over shows its record.
    first = {step: values for step, values in reversed(whole.progress)}
    assert [first[epoch + 1.0] for epoch in range(EPOCHS)] == whole.result.history


def test_a_run_without_validation_has_no_such_values(untrained):
    (record,) = untrained.history
    assert record.keys() == {"epoch", "train_loss", "train_accuracy", "learning_rate"}
    # Weights close to zero say nothing: each of the four classes is as likely.
    assert record["train_loss"] == pytest.approx(math.log(4), rel=1e-2)


def test_it_learns(whole):
    first, last = whole.result.history[0], whole.result.history[-1]
    assert last["train_loss"] < first["train_loss"]
    assert last["validation_accuracy"] > 0.8


def test_the_fast_recipe_learns():
    result = fit(recipe=FAST, epochs=6, batch_size=BATCH, validation=None)
    logits = evaluate(result.model, result.preprocess, VALIDATION.images)
    assert loss_and_accuracy(logits, VALIDATION.labels)[1] > 0.8
    rates = [record["learning_rate"] for record in result.history]
    # Warmed up in the first epoch, then down in equal steps to almost nothing.
    assert rates[0] < rates[1]
    assert rates[-1] < 0.1 * rates[1]
    fall = (rates[-1] - rates[1]) / 4
    np.testing.assert_allclose(np.diff(rates[1:]), fall, rtol=1e-3)


def test_the_seed_decides_everything(whole, tmp_path):
    again = fit(checkpoints=tmp_path)
    assert_same_run(again, tmp_path, whole.result, whole.folder)
    other = fit(seed=4)
    assert other.history != whole.result.history
    for name, values in weights(other.model).items():
        assert (values != weights(whole.result.model)[name]).any(), name


def test_images_of_another_size_are_resized(compiled_once):
    dataset = colours(BATCH, seed=0, side=12)
    result = fit(dataset=dataset, validation=None, epochs=1)
    assert result.model.arch.input_hw == (8, 8)
    assert result.preprocess(dataset.images).shape == (BATCH, 8, 8, 3)
    assert evaluate(result.model, result.preprocess, dataset.images).shape == (BATCH, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "0 epochs of 64 images in batches of 16 hold no step"),
        ({"batch_size": 65}, "batches of 65 hold no step"),
        ({"batch_size": 0}, "batches of 0 hold no step"),
        ({"validation": None, "target_accuracy": 0.5}, "needs validation images"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        fit(**changes)


def test_a_target_ends_the_run_and_resuming_without_it_goes_on(whole, tmp_path):
    reached = fit(target_accuracy=0.0, checkpoints=tmp_path)
    assert reached.history == whole.result.history[:1]
    again = fit(target_accuracy=0.0, checkpoints=tmp_path, resume=True)
    assert again.history == reached.history
    assert_same(weights(again.model), weights(reached.model))
    result = fit(target_accuracy=1.1, checkpoints=tmp_path, resume=True)
    assert_same_run(result, tmp_path, whole.result, whole.folder)


# Runs that stop.


class Interruption(Exception):
    pass


def interrupt_after(moment: float):
    def on_progress(done: float, values: Mapping[str, float]) -> None:
        if done > moment:
            raise Interruption

    return on_progress


@pytest.fixture(scope="module")
def interrupted(compiled_once, tmp_path_factory) -> Path:
    """Checkpoints of epochs 2 and 3, left by a run that stopped within the fourth."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Interruption):
        fit(checkpoints=folder, on_progress=interrupt_after(3.3))
    assert checkpoint.steps(folder) == [2, 3]
    return folder


def flip_a_byte(step: Path) -> None:
    largest = max(step.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    whole, interrupted, tmp_path
):
    folder = shutil.copytree(interrupted, tmp_path / "copy")
    done = []
    result = fit(
        checkpoints=folder, resume=True, on_progress=lambda step, _: done.append(step)
    )
    # It goes on after the third epoch: nothing is trained twice.
    assert done[0] == 3.25
    assert_same_run(result, folder, whole.result, whole.folder)


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    whole, interrupted, tmp_path
):
    folder = shutil.copytree(interrupted, tmp_path / "copy")
    flip_a_byte(folder / "step_00000003")
    seen = []
    result = fit(
        checkpoints=folder,
        resume=True,
        on_damaged=seen.append,
        on_progress=lambda step, _: seen.append(step),
    )
    # It is said before the training that follows.
    line, first = seen[:2]
    assert first == 2.25
    assert line.startswith("step 3 is damaged") and "\n" not in line
    assert_same_run(result, folder, whole.result, whole.folder)


def test_when_every_checkpoint_is_damaged_the_run_says_so(interrupted, tmp_path):
    folder = shutil.copytree(interrupted, tmp_path / "copy")
    for step in folder.iterdir():
        flip_a_byte(step)
    with pytest.raises(DamagedFileError, match="every checkpoint in") as error:
        fit(checkpoints=folder, resume=True)
    assert "\n" not in str(error.value)
    assert checkpoint.steps(folder) == [2, 3]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 4}, "seed was 3, now 4$"),
        ({"batch_size": 32}, "batch_size was 16, now 32$"),
        ({"epochs": 9}, "epochs was 5, now 9$"),
        ({"dtype": jnp.bfloat16}, "dtype was float32, now bfloat16$"),
        ({"dataset": colours(64, seed=9)}, "data was "),
        # Another state altogether, as its optimizer has another.
        ({"recipe": FAST, "epochs": 5, "batch_size": 16}, "recipe was test, now fast"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changes, named, interrupted):
    with pytest.raises(ValueError, match=named) as error:
        fit(checkpoints=interrupted, resume=True, **changes)
    assert "\n" not in str(error.value)
    assert checkpoint.steps(interrupted) == [2, 3]


def test_resuming_where_there_is_nothing_starts_a_run(whole, tmp_path):
    result = fit(checkpoints=tmp_path / "new", resume=True)
    assert_same_run(result, tmp_path / "new", whole.result, whole.folder)


def child(script: str, *argv: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


TO_BE_KILLED = """
import sys
from pathlib import Path
from tests.test_training import fit
fit(
    checkpoints=Path(sys.argv[1]),
    resume=True,
    on_progress=lambda done, values: print(done, flush=True),
)
"""


def test_a_killed_run_resumes_bit_for_bit(whole, tmp_path):
    moments = random.Random(7)
    for epochs in (1, 2):
        with child(TO_BE_KILLED, str(tmp_path)) as process:
            try:
                assert process.stdout is not None
                log = io.StringIO()
                # A moment after this one: within a step, an evaluation, or a save.
                for line in process.stdout:
                    log.write(line)
                    if line.strip() == f"{epochs + 0.25}":
                        break
                else:
                    pytest.fail(log.getvalue())
                time.sleep(moments.uniform(0, 0.3))
            finally:
                process.kill()
    result = fit(checkpoints=tmp_path, resume=True)
    assert_same_run(result, tmp_path, whole.result, whole.folder)


def test_an_exploding_run_stops_and_keeps_its_good_checkpoint(tmp_path):
    run: dict[str, Any] = {"recipe": idle(5), "epochs": 3, "checkpoints": tmp_path}
    with pytest.raises(NonFiniteLossError, match=r"not finite in epoch 2, step 2") as e:
        fit(**run)
    assert "\n" not in str(e.value)
    assert checkpoint.steps(tmp_path) == [1]
    # It is whole, and from it the run ends as before.
    done = []
    with pytest.raises(NonFiniteLossError, match="not finite in epoch 2, step 2"):
        fit(**run, resume=True, on_progress=lambda step, _: done.append(step))
    assert done == [1.25]


def test_weights_that_explode_in_the_last_step_are_not_kept(tmp_path):
    with pytest.raises(NonFiniteLossError, match="not finite"):
        fit(recipe=idle(7), epochs=2, validation=None, checkpoints=tmp_path)
    assert checkpoint.steps(tmp_path) == [1]


# Many devices.

ON_DEVICES = """
import sys
import jax
import numpy as np
from tests.test_training import fit, weights
result = fit(target_accuracy=0.0)
np.savez(
    sys.argv[1],
    devices=jax.local_device_count(),
    loss=result.history[0]["validation_loss"],
    **weights(result.model),
)
try:
    fit(batch_size=6)
except ValueError as error:
    print(error)
"""


def test_many_devices_train_as_one(tmp_path):
    runs, outputs = [], []
    for count, flags in ((1, ""), (4, "--xla_force_host_platform_device_count=4")):
        path = tmp_path / f"{count}.npz"
        process = child(ON_DEVICES, str(path), XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        outputs.append(output)
        with np.load(path) as arrays:
            runs.append(dict(arrays))
    one, four = runs
    assert (one.pop("devices"), four.pop("devices")) == (1, 4)
    for name in one:
        difference = abs(four[name] - one[name]).max() / abs(one[name]).max()
        assert difference < 1e-5, name
    assert outputs == ["", "batch size 6 does not split over 4 devices\n"]

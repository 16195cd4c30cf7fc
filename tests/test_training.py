"""Training: what a step computes, and runs that stop, are killed and go on."""

import dataclasses
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from zfnet_jax import checkpoint, training
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool
from zfnet_jax.augmentation import Augmentation
from zfnet_jax.data import Dataset, Preprocessing
from zfnet_jax.inference import evaluate, loss_and_accuracy
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import network
from zfnet_jax.recipes import FAST, PAPER, Plateau, Recipe
from zfnet_jax.train_step import TrainStep
from zfnet_jax.training import Epoch, NonFiniteLossError, split_validation

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
EPOCHS, BATCH = 4, 16


def make_colors(count: int, seed: int) -> Dataset:
    """Noise that is brighter in red, in green, in blue, or in none of them."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 4
    images = rng.integers(0, 128, (count, 8, 8, 3))
    images += 100 * (np.arange(3) == labels[:, None])[:, None, None, :]
    names = ("red", "green", "blue", "gray")
    return Dataset(images.astype(np.uint8), labels, names, "colors")


DATA, VALIDATION = make_colors(4 * BATCH, seed=0), make_colors(32, seed=1)

# A bit of everything a recipe can ask for, so that all of it must be saved.
RECIPE = Recipe(
    name="test",
    epochs=EPOCHS,
    batch_size=BATCH,
    scale=1 / 64,
    init=FAST.init,
    dropout=0.2,
    label_smoothing=0.05,
    augmentation=Augmentation(margin=2, cutout=1 / 4),
    average=0.5,
    normalize=True,
    rate=0.1,
    schedule=lambda rate, total: optax.linear_schedule(rate, 0.0, total),
    optimizer=lambda rate: optax.sgd(rate, momentum=0.9),
    anneals=True,
)
# No error is better than 0, so the rate halves after every epoch.
HALVING = {"factor": 0.5, "patience": 1, "best": 0.0}


def start_idle(explode_at: int, **changes: Any) -> Recipe:
    """The paper's recipe with weights that stay as they are, until they explode."""

    def init(params: Any) -> jax.Array:
        # The step is part of the state, so that one program serves all of them.
        return jnp.array([0, explode_at])

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rate = jnp.where(state[0] < state[1], 0.0, jnp.inf)
        updates = jax.tree.map(lambda x: jnp.where(rate > 0, x * rate, 0.0), updates)
        return updates, state + jnp.array([1, 0])

    transformation = optax.GradientTransformation(init, update)
    return dataclasses.replace(
        PAPER, batch_size=BATCH, optimizer=lambda rate: transformation, **changes
    )


def run(dataset: Dataset = DATA, arch: Architecture = TINY, **changes: Any):
    arguments: dict[str, Any] = {"recipe": RECIPE, "seed": 3} | changes
    return training.train(arch, dataset, **arguments)


def train_saving(
    folder: Path,
    resume: bool = False,
    **changes: Any,
) -> tuple[Epoch, list[dict[str, Any]]]:
    """Train as a command does: evaluate, anneal and save each epoch, then go on."""
    saved = checkpoint.restore(folder) if resume else None
    metadata = saved.metadata if saved else {"history": [], "plateau": HALVING}
    history, plateau = metadata["history"], Plateau(**metadata["plateau"])
    epoch = None
    for epoch in run(plateau=plateau, resume=saved and saved.state, **changes):
        if epoch.number > len(history):
            net = network(epoch.model, preprocess=epoch.preprocess)
            logits = evaluate(net, VALIDATION.images)
            accuracy = loss_and_accuracy(logits, VALIDATION.labels)[1]
            plateau.update(1 - accuracy)
            history.append({**epoch.record, "validation_accuracy": accuracy})
            metadata = {"history": history, "plateau": plateau}
            checkpoint.save(folder, epoch.number, epoch.state, metadata)
    assert epoch is not None
    return epoch, history


def weights(model: ConvNet) -> dict[str, np.ndarray]:
    return {
        f"{layer}.{kind}": np.array(getattr(getattr(model, layer), kind)[...])
        for layer in model.arch.kernel_shapes()
        for kind in ("kernel", "bias")
    }


def assert_same_run(one, other) -> None:
    """Bit for bit: history, averaged weights, and all of the state."""
    (one, history), (other, other_history) = one, other
    assert history == other_history
    pairs = zip(
        jax.tree.leaves((one.model, one.state)),
        jax.tree.leaves((other.model, other.state)),
        strict=True,
    )
    for leaf, other_leaf in pairs:
        assert leaf.dtype == other_leaf.dtype
        assert np.asarray(leaf).tobytes() == np.asarray(other_leaf).tobytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts: its last epoch and its history."""
    return train_saving(tmp_path_factory.mktemp("whole"))


# A step.


def mirror(dataset: Dataset) -> Dataset:
    """Images that a flip does not change."""
    half = dataset.images[:, :, :4]
    images = np.concatenate([half, half[:, :, ::-1]], axis=2)
    return dataclasses.replace(dataset, images=images)


def test_a_step_is_that_of_a_plain_loop():
    # With all images in one batch, their order does not matter.
    dataset = mirror(DATA.take(np.arange(BATCH)))
    recipe = dataclasses.replace(
        PAPER,
        scale=0.01,
        init=nnx.initializers.normal(0.15),
        dropout=0.0,
        label_smoothing=0.1,
        augmentation=Augmentation(margin=0),
        average=0.4,
    )
    arguments = {"dataset": dataset, "batch_size": BATCH, "recipe": recipe}
    plateau, records, result = Plateau(), [], None
    for result in run(epochs=4, plateau=plateau, **arguments):
        records.append(result.record)
        plateau.scale = 0.5  # from the second epoch on
    assert result is not None
    # The seed alone decides where a run starts.
    idle = start_idle(99, init=recipe.init)
    model: Any = next(run(dataset=DATA, recipe=idle, epochs=1)).model
    start = weights(model)

    images = dataset.images
    inputs = jnp.asarray((images - images.mean(axis=0)) * 0.01, jnp.float32)
    targets = np.full((BATCH, 4), 0.1 / 4) + 0.9 * np.eye(4)[dataset.labels]

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(model):
        return -(targets * jax.nn.log_softmax(model(inputs))).sum() / BATCH

    average = model
    momentum = jax.tree.map(np.zeros_like, model)
    scaled_back = 0
    for step in range(4):
        rate = 1e-2 if step == 0 else 5e-3
        loss, grads = value_and_grad(model)
        assert records[step]["train_loss"] == pytest.approx(float(loss), 1e-5)
        assert records[step]["learning_rate"] == pytest.approx(rate)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, grads)
        model = jax.tree.map(lambda w, m, r=rate: w - r * m, model, momentum)
        for layer in (model.conv1, model.conv2):
            kernel = np.array(layer.kernel[...])
            rms = np.sqrt((kernel**2).mean((0, 1, 2)))
            scaled_back += (rms > 0.1).sum()
            layer.kernel[...] = kernel * np.minimum(1, 0.1 / rms)
        decay = min(0.4, step / (10 + step))
        average = jax.tree.map(
            lambda a, w, d=decay: d * a + (1 - d) * w, average, model
        )
    assert scaled_back
    for name, values in weights(result.model).items():
        known = weights(average)[name]
        np.testing.assert_allclose(values, known, rtol=1e-4, atol=1e-6, err_msg=name)
        assert not np.allclose(values, start[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("average", [0.0, 0.1])
def test_a_step_normalizes_convolutions_and_the_result_has_that_folded(average):
    recipe = dataclasses.replace(
        RECIPE, dropout=0.0, augmentation=Augmentation(margin=0), average=average
    )
    dataset = mirror(DATA)
    preprocess = Preprocessing.fit(dataset.images, recipe.scale)
    images, labels = (
        preprocess(jnp.asarray(dataset.images)),
        jnp.asarray(dataset.labels),
    )
    arch = TINY.with_classes(4)
    model = ConvNet(arch, init=recipe.init, rngs=nnx.Rngs(0))
    step = TrainStep(recipe, preprocess, len(dataset), total=100)
    state = step.start(model, seed=0)

    @jax.jit
    def loss(model):
        moments = {}

        def standardize(name, x):
            moments[name] = jnp.stack([x.mean((0, 1, 2)), x.var((0, 1, 2))])
            return jax.nn.standardize(x, axis=(0, 1, 2))

        logits = model(images, normalize=standardize)
        targets = 0.05 / 4 + 0.95 * jax.nn.one_hot(labels, 4)
        loss = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
        return loss, (logits, moments)

    value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (expected, (logits, moments)), grads = value_and_grad(model)
    batch = jnp.asarray(dataset.images), labels, jnp.float32(1)
    advance = jax.jit(step)
    state, (value, accuracy) = advance(state, *batch)
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert accuracy == (logits.argmax(-1) == labels).mean()
    after = jax.tree.map(lambda w, g: w - 0.1 * g, model, grads)
    for name, values in weights(cast(Any, state.model)).items():
        np.testing.assert_allclose(values, weights(after)[name], rtol=1e-4, atol=1e-6)
    # The statistics are those of the weights before the step.
    folded = step.finish(state._replace(model=model, average=None))
    np.testing.assert_allclose(folded(images), logits, rtol=1e-5, atol=1e-5)
    # Those of later steps are added to a running average.
    expected = moments
    for number in (1, 2):
        (_, (_, moments)), _ = value_and_grad(state.model)
        state, _ = advance(state, *batch)
        decay = min(average or 0.99, number / (10 + number))
        for name, values in moments.items():
            expected[name] = decay * expected[name] + (1 - decay) * values
            known = state.statistics[name]
            np.testing.assert_allclose(known, expected[name], rtol=1e-4, atol=1e-6)
            assert abs(known - values).max() > 5e-4 * abs(values).max()


def test_each_epoch_takes_every_image_once_in_a_new_order():
    dataset = mirror(DATA)
    recipe = start_idle(
        99,
        init=nnx.initializers.normal(0.15),
        dropout=0.0,
        augmentation=Augmentation(margin=0),
    )
    epochs = list(run(dataset, recipe=recipe, epochs=3))
    net = network(epochs[-1].model, preprocess=epochs[-1].preprocess)
    loss, accuracy = loss_and_accuracy(evaluate(net, dataset.images), dataset.labels)
    for number, epoch in enumerate(epochs, 1):
        assert epoch.number == epoch.record["epoch"] == number
        assert epoch.record["train_loss"] == pytest.approx(loss, rel=1e-5)
        assert epoch.record["train_accuracy"] == pytest.approx(accuracy)
        # Four steps: the curve has the loss of each.
        assert epoch.record["steps"] == [4 * number - 3 + step for step in range(4)]
        assert np.mean(epoch.record["loss_curve"]) == pytest.approx(loss, rel=1e-5)
    curves = np.array([epoch.record["loss_curve"] for epoch in epochs])
    assert len(set(np.round(curves[:, 0], 3))) == 3


def test_the_paper_starts_from_normal_weights_zero_biases_and_half_dropout():
    epoch = next(run(recipe=start_idle(99), epochs=1))
    arch = epoch.model.arch
    rates = {x.name: x.dropout for x in arch.layers if isinstance(x, Dense)}
    assert rates == {"fc3": 0.5, "logits": 0.0}
    values = weights(epoch.model)
    assert not any(values[name].any() for name in values if name.endswith("bias"))
    kernel = values["fc3.kernel"]
    assert abs(kernel.mean()) < 1e-3
    assert kernel.std() == pytest.approx(1e-2, rel=0.06)
    # Beyond two standard deviations: 4.6% of a normal, none of one that is cut there.
    assert 0.02 < (abs(kernel) > 2e-2).mean() < 0.08


# Whole runs.


def test_a_run_learns_anneals_and_reports_its_progress(whole):
    moments = []
    *_, last = run(
        epochs=2, progress=lambda *done, **values: moments.append((done, values))
    )
    assert [done for done, _ in moments] == [(x / 4, 2) for x in range(1, 9)]
    assert moments[-1][1] == {
        "train_loss": last.record["train_loss"],
        "train_accuracy": last.record["train_accuracy"],
    }
    epoch, history = whole
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["validation_accuracy"] > 0.8
    # Down to 0 in 16 steps, and halved after every epoch.
    rates = [record["learning_rate"] for record in history]
    expected = [0.1 * (1 - (4 * e + 3) / 16) * 0.5**e for e in range(EPOCHS)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert min(epoch.train_seconds, epoch.compile_seconds) > 0


def test_the_fast_recipe_learns():
    *_, last = run(recipe=FAST, batch_size=BATCH)
    net = network(last.model, preprocess=last.preprocess)
    logits = evaluate(net, VALIDATION.images)
    assert loss_and_accuracy(logits, VALIDATION.labels)[1] > 0.8


def test_the_seed_decides_everything(whole, tmp_path):
    assert_same_run(train_saving(tmp_path), whole)
    other, _ = train_saving(tmp_path, seed=4)
    for name, values in weights(other.model).items():
        assert (values != weights(whole[0].model)[name]).any(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "0 epochs of 64 images in batches of 16 hold no step"),
        ({"batch_size": 65}, "batches of 65 hold no step"),
        ({"resume": [np.zeros(3)]}, "the state is of another architecture or recipe"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        next(run(**changes))


def test_the_split_is_disjoint_complete_and_fixed_by_the_seed():
    images = np.empty((100, 8, 8, 3), np.uint8)
    images[:] = np.arange(100)[:, None, None, None]
    labels = np.arange(100, dtype=np.int32) % 10
    dataset = Dataset(images, labels, tuple("0123456789"), "numbers")

    def split(seed: int) -> list[list[int]]:
        parts = split_validation(dataset, 30, seed)
        numbers = [x.images[:, 0, 0, 0].tolist() for x in parts if x]
        assert [x.labels.tolist() for x in parts if x] == [
            [number % 10 for number in part] for part in numbers
        ]
        return numbers

    train, validation = split(5)
    assert (len(train), len(validation)) == (70, 30)
    assert sorted(train + validation) == list(range(100))
    # Random, not one end of the data.
    assert 20 < np.mean(validation) < 80 and np.ptp(validation) > 60
    assert split(5) == [train, validation] != split(6)
    assert split_validation(dataset, 0, seed=5) == (dataset, None)
    with pytest.raises(ValueError, match="cannot set 100 of 100 training images"):
        split_validation(dataset, 100, seed=0)


# Runs that stop.


def start_child(script: str, *argv: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


TO_BE_KILLED = """
import sys, time
from pathlib import Path
from tests.test_training import train_saving

def report(done, total, **values):
    print(done, flush=True)
    time.sleep(0.05)  # long enough to be killed between any two reports

train_saving(Path(sys.argv[1]), resume=True, progress=report)
"""


def test_resume_after_kill_gives_the_same_weights(whole, tmp_path):
    moments = random.Random(7)
    for reports in (6, 2):  # in the second epoch, and soon after it is resumed
        with start_child(TO_BE_KILLED, str(tmp_path)) as process:
            assert process.stdout is not None
            try:
                lines = [process.stdout.readline() for _ in range(reports)]
                assert all(float(line) < 4 for line in lines)
                # Within a step, an evaluation or a save.
                time.sleep(moments.uniform(0, 0.2))
            finally:
                process.kill()
    assert_same_run(train_saving(tmp_path, resume=True), whole)


@pytest.mark.parametrize(("explode_at", "step"), [(5, 2), (7, 4)])
def test_an_exploding_run_stops_before_its_epoch_is_saved(explode_at, step, tmp_path):
    # In the last step of an epoch its loss is still finite, and its weights are not.
    with pytest.raises(NonFiniteLossError, match=f"epoch 2, step {step} to") as error:
        train_saving(tmp_path, recipe=start_idle(explode_at), epochs=3)
    assert "\n" not in str(error.value)
    assert checkpoint.steps(tmp_path) == [1]


# Batches that are read as they are needed.

# Eight of its ten rows and columns are seen; the mean is of all.
LARGE = np.pad(DATA.images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
MIXUP = dataclasses.replace(RECIPE, mixup=0.4)
STEPS, SAVE_EVERY = 4, 3


def read_part(start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of this process of each batch."""
    size = BATCH // jax.process_count()
    rows = slice(jax.process_index() * size, (jax.process_index() + 1) * size)
    for step in range(start, stop):
        batch = np.random.default_rng(step).permutation(len(DATA))[:BATCH][rows]
        yield LARGE[batch], DATA.labels[batch]


def run_batches(**changes: Any):
    arguments: dict[str, Any] = {
        "preprocess": dataclasses.replace(Preprocessing.fit(LARGE, 1 / 64), crop=0.8),
        "class_count": 4,
        "steps": STEPS,
        "recipe": MIXUP,
        "epochs": 2,
        "seed": 3,
    } | changes
    return training.train_batches(TINY, read_part, **arguments)


def stream_saving(folder: Path, **changes: Any) -> tuple[Epoch, list[dict[str, Any]]]:
    """Train from the newest checkpoint, or from scratch; save within epochs too."""
    saved = checkpoint.restore(folder)
    history = saved.metadata["history"] if saved else []
    epoch, state = None, saved and saved.state
    for epoch in run_batches(resume=state, save_every=SAVE_EVERY, **changes):
        if epoch.record:
            history.append(epoch.record)
        step = int(epoch.state.step)
        checkpoint.save(folder, step, epoch.state, {"history": history})
    assert epoch is not None
    return epoch, history


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return stream_saving(tmp_path_factory.mktemp("stream"))


STREAM_TO_BE_KILLED = TO_BE_KILLED.replace(
    "train_saving(Path(sys.argv[1]), resume=True", "stream_saving(Path(sys.argv[1])"
).replace("train_saving", "stream_saving")


def test_a_stream_that_is_killed_within_an_epoch_goes_on_with_the_next_batch(
    stream, tmp_path
):
    with start_child(STREAM_TO_BE_KILLED, str(tmp_path)) as process:
        assert process.stdout is not None
        try:
            while SAVE_EVERY not in checkpoint.steps(tmp_path):
                assert process.stdout.readline()
        finally:
            process.kill()
    assert checkpoint.steps(tmp_path)[-1] % STEPS
    assert_same_run(stream_saving(tmp_path), stream)


def test_a_stream_records_what_its_steps_are(stream):
    epoch, history = stream
    assert [record["steps"] for record in history] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    # No step forgets the losses of those before it.
    assert min(loss for record in history for loss in record["loss_curve"]) > 0.1
    saves = [(x.number, int(x.state.step)) for x in run_batches(save_every=SAVE_EVERY)]
    assert saves == [(1, 3), (1, 4), (2, 6), (2, 8)]
    # More saves change nothing.
    *_, plain = run_batches()
    assert plain.record == history[-1]
    for name, values in weights(plain.model).items():
        np.testing.assert_array_equal(values, weights(epoch.model)[name])
    # A finished run is there at once.
    (again,) = run_batches(resume=epoch.state)
    assert again.number == 2 and not again.record
    with pytest.raises(ValueError, match="is in epoch 2 already, of 1: give more"):
        next(run_batches(resume=epoch.state, epochs=1))


def test_mixup_by_hand(monkeypatch):
    # Linear, so that the gradient is known.
    arch = Architecture("linear", (8, 8), (Dense("logits", 4, relu=False),))
    monkeypatch.setattr(jax.random, "beta", lambda key, a, b: jnp.float32(0.7))
    recipe = dataclasses.replace(
        MIXUP, normalize=False, average=0.0, augmentation=Augmentation(margin=0)
    )
    dataset = mirror(DATA.take(np.arange(4)))
    preprocess = Preprocessing.fit(dataset.images, 1 / 64)
    model = ConvNet(arch, init=recipe.init, rngs=nnx.Rngs(0))
    step = TrainStep(recipe, preprocess, 4, total=100)
    state, values = jax.jit(step)(
        step.start(model, seed=0),
        jnp.asarray(dataset.images),
        jnp.asarray(dataset.labels),
        jnp.float32(1),
    )
    inputs, classes = preprocess(dataset.images).reshape(4, -1), np.eye(4)
    inputs = np.stack([0.7 * inputs[i] + 0.3 * inputs[i ^ 1] for i in range(4)])
    targets = np.stack([0.7 * classes[i] + 0.3 * classes[i ^ 1] for i in range(4)])
    targets = 0.95 * targets + 0.05 / 4
    kernel = np.asarray(model.logits.kernel[...])
    chances = np.asarray(jax.nn.softmax(inputs @ kernel))
    assert values[0] == pytest.approx(-(targets * np.log(chances)).sum() / 4, rel=1e-5)
    assert values[1] == (chances.argmax(1) == np.arange(4)).mean()
    gradient = inputs.T @ (chances - targets) / 4
    after = np.asarray(cast(Any, state.model).logits.kernel[...])
    np.testing.assert_allclose(after, kernel - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="batch_size 5: mixup needs pairs"):
        TrainStep(recipe, preprocess, 5, total=100)


def test_the_mean_image_is_subtracted_before_crops_are_cut():
    images = jnp.asarray(LARGE)
    preprocess = dataclasses.replace(Preprocessing.fit(LARGE, 1 / 64), crop=0.8)
    step = TrainStep(PAPER, preprocess, len(LARGE), total=1)
    views = jax.jit(step._cut_views, static_argnums=2)(
        images, jax.random.key(0), (8, 8)
    )
    inputs = (LARGE - preprocess.mean) / 64
    windows = [
        inputs[:, row : row + 8, column : column + 8][:, :, ::turn]
        for row, column in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))
        for turn in (1, -1)
    ]
    errors = [abs(views - window).max((1, 2, 3)) for window in windows]
    assert (np.min(errors, axis=0) < 1e-5).all()
    assert len({*np.argmin(errors, axis=0).tolist()}) == 10


# Many devices.

# As `make_mesh` takes the first of the devices, eight can stand for fewer.
ON_DEVICES = """
import sys
import jax
import numpy as np
from tests.test_training import run, run_batches, weights

def save(name, epochs):
    *_, last = epochs
    loss = last.record["train_loss"]
    np.savez(f"{sys.argv[1]}/{name}.npz", loss=loss, **weights(last.model))

for devices in (1, 2, 8):
    jax.device_count = lambda: devices
    save(f"batches-{devices}", run_batches())
    if devices in (1, 8):
        save(f"arrays-{devices}", run(epochs=1))
try:
    next(run(batch_size=12))
except ValueError as error:
    print(error)
"""


def test_many_devices_train_as_one(tmp_path):
    environment = {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    process = start_child(ON_DEVICES, str(tmp_path), **environment)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert output.startswith("batch_size 12: it does not split over 8 devices")
    for name in ("batches", "arrays"):
        one, *others = (dict(np.load(x)) for x in sorted(tmp_path.glob(f"{name}-*")))
        assert len(others) == {"batches": 2, "arrays": 1}[name]
        for other, (key, values) in itertools.product(others, one.items()):
            assert abs(other[key] - values).max() < 1e-5 * abs(values).max(), key

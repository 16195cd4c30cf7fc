"""Training: generators that run one compiled program and yield after every epoch.

Images are uint8, and stay on the devices (`train`) or arrive in batches
(`train_batches`). Augmentation, the forward and backward pass and the update are one
program, split over all devices along the batch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree, UInt8

from zfnet_jax.arch import Architecture, Dense
from zfnet_jax.data import Dataset, Preprocessing
from zfnet_jax.model import ConvNet
from zfnet_jax.recipes import FAST, MODERN, Plateau, Recipe
from zfnet_jax.train_step import PARTS, TrainState, TrainStep


class NonFiniteLossError(Exception):
    """The loss became infinite or not a number."""


@dataclasses.dataclass(frozen=True, eq=False)
class Epoch:
    """A network after an epoch of its training, or within one.

    Attributes:
        number: Number of the epoch, from 1.
        model: The network to evaluate and to keep.
        preprocess: Its preprocessing.
        record: `epoch`, `train_loss`, `train_accuracy` (0 to 1) and `learning_rate`;
            `steps` are numbers of steps since the start of the run, and `loss_curve`,
            `accuracy_curve` and `rate_curve` the means up to each from the one before
            and the learning rate at each. Empty within an epoch, and for an epoch that
            is resumed.
        state: State of the run, to save and to resume from.
        train_seconds: Time in training steps since `train` was called.
        compile_seconds: Time to compile them.
    """

    number: int
    model: ConvNet = dataclasses.field(repr=False)
    preprocess: Preprocessing = dataclasses.field(repr=False)
    record: dict[str, Any]
    state: TrainState = dataclasses.field(repr=False)
    train_seconds: float
    compile_seconds: float


def split_validation(
    dataset: Dataset, count: int, seed: int
) -> tuple[Dataset, Dataset | None]:
    """Set `count` random images apart for validation; the same for the same seed.

    Raises:
        ValueError: No image would be left to train on.
    """
    if not 0 <= count < len(dataset):
        raise ValueError(
            f"cannot set {count} of {len(dataset)} training images apart for validation"
        )
    if count == 0:
        return dataset, None
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.take(np.sort(order[count:])), dataset.take(np.sort(order[:count]))


def train(
    arch: Architecture,
    dataset: Dataset,
    *,
    recipe: Recipe = FAST,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    plateau: Plateau | None = None,
    resume: PyTree | None = None,
    progress: Callable[..., object] | None = None,
) -> Iterator[Epoch]:
    """Train a network and yield it after every epoch.

    The caller evaluates the network, saves the state, and stops when it likes.

    Args:
        arch: The architecture. Its classifier gets the number of classes of the
            dataset, and images of another size are resized on the device.
        dataset: Training images.
        recipe: The recipe.
        epochs: Passes over the data, if not the recipe's number.
        batch_size: Images per step, if not the recipe's number. Images that don't fill
            a last batch are left out of that epoch.
        seed: Determines weights, data order, augmentation and dropout.
        dtype: Type of the computation, float32 or bfloat16.
        plateau: Scales the learning rate of each epoch. Update it with the validation
            error after each epoch for recipes that anneal.
        resume: The `state` of an epoch or of a `checkpoint.Restored`. Its epoch is
            yielded first, with an empty record; then the run goes on as if it had never
            stopped.
        progress: Called at most ten times per epoch with the epochs done, which may be
            a fraction, their total, and running values as keywords.

    Raises:
        ValueError: The arguments don't fit each other.
        NonFiniteLossError: The loss is not finite.

    Example:
        >>> import zfnet_jax as zf
        >>> from zfnet_jax.data import make_shapes
        >>> arch = zf.ablate(zf.ZFNET32, remove=("conv3", "conv4", "conv5", "fc7"))
        >>> for epoch in zf.train(arch, make_shapes(64), epochs=2, batch_size=32):
        ...     print(epoch.number, epoch.record["steps"])
        1 [1, 2]
        2 [3, 4]
    """
    epochs = recipe.epochs if epochs is None else epochs
    batch_size = recipe.batch_size if batch_size is None else batch_size
    steps = len(dataset) // batch_size if batch_size > 0 else 0
    if epochs < 1 or steps < 1:
        raise ValueError(
            f"{epochs} epochs of {len(dataset)} images in batches of {batch_size} hold "
            "no step"
        )
    preprocess = Preprocessing.fit(dataset.images, recipe.scale, arch.input_hw)
    step = TrainStep(recipe, preprocess, batch_size, steps * epochs)
    program = _Program(step, steps)
    state = _start(step, arch, len(dataset.class_names), dtype, seed, resume)

    def prepare() -> tuple[_Advance, float]:
        data = step.replicate((dataset.images, dataset.labels))
        example = state, *data, np.float32(1), np.int32(0)
        run, seconds = _compile(program.run, *example)
        return lambda state, scale, count: run(state, *data, scale, count), seconds

    yield from _run_epochs(program, state, prepare, plateau, progress)


def train_batches(
    arch: Architecture,
    read: Callable[[int, int], Iterator[tuple[np.ndarray, np.ndarray]]],
    *,
    preprocess: Preprocessing,
    class_count: int,
    steps: int,
    recipe: Recipe = MODERN,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    plateau: Plateau | None = None,
    resume: PyTree | None = None,
    progress: Callable[..., object] | None = None,
    save_every: int | None = None,
) -> Iterator[Epoch]:
    """Train a network on batches that are read as they are needed.

    It is `train` for images that don't fit in memory, on the devices of one process or
    of several (`jax.distributed`). The next batch is read while the devices work.

    Args:
        arch: The architecture.
        read: From a range of steps to their batches: uint8 pixels [b, h, w, c] and
            int32 labels [b]. Each of several processes reads its rows of the batch, in
            the order of the processes.
        preprocess: Preprocessing of the images. If it crops, random views are cut from
            the larger images.
        class_count: Number of classes.
        steps: Steps per epoch.
        recipe: The recipe.
        epochs: Number of epochs, if not the recipe's number.
        batch_size: Images per step over all processes, if not the recipe's number.
        seed: Determines weights, augmentation and dropout.
        dtype: Type of the computation, float32 or bfloat16.
        plateau: As for `train`.
        resume: As for `train`; it may be a state within an epoch.
        progress: As for `train`.
        save_every: Also yield after every `save_every` steps of the run, with an empty
            record.

    Raises:
        ValueError: The arguments don't fit each other.
        NonFiniteLossError: The loss is not finite.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> from zfnet_jax.data import Preprocessing
        >>> arch = zf.Architecture("tiny", (7, 7), (zf.Dense("logits", 2, relu=False),))
        >>> mean = np.full((8, 8, 3), 128, np.float32)
        >>> def read(start, stop):
        ...     for step in range(start, stop):
        ...         rng = np.random.default_rng(step)
        ...         labels = rng.integers(0, 2, 16, np.int32)
        ...         yield np.full((16, 8, 8, 3), 255, np.uint8), labels
        >>> for epoch in train_batches(
        ...     arch,
        ...     read,
        ...     preprocess=Preprocessing(mean, crop=7 / 8),
        ...     class_count=2,
        ...     steps=4,
        ...     epochs=1,
        ...     batch_size=16,
        ...     save_every=3,
        ... ):
        ...     print(epoch.number, int(epoch.state.step), bool(epoch.record))
        1 3 False
        1 4 True
    """
    epochs = recipe.epochs if epochs is None else epochs
    batch_size = recipe.batch_size if batch_size is None else batch_size
    if min(epochs, steps, batch_size) < 1:
        raise ValueError(
            f"{epochs} epochs of {steps} steps of {batch_size} images hold no step"
        )
    step = TrainStep(recipe, preprocess, batch_size, steps * epochs)
    program = _Program(step, steps)
    state = _start(step, arch, class_count, dtype, seed, resume)

    def prepare() -> tuple[_Advance, float]:
        local = batch_size // jax.process_count()
        images = np.zeros((local, *preprocess.mean.shape), np.uint8)
        batch = step.split((images, np.zeros(local, np.int32)))
        advance, seconds = _compile(program.advance, state, *batch, np.float32(1))
        batches = read(int(state.step), step.total)

        def run(state: TrainState, scale: np.float32, count: np.int32) -> TrainState:
            last = state.step
            for _ in range(count):
                batch = step.split(next(batches))
                # Batches that no device can take yet would fill its memory.
                last.block_until_ready()
                last = state.step
                state = advance(state, *batch, scale)
            return state

        return run, seconds

    yield from _run_epochs(program, state, prepare, plateau, progress, save_every)


# From a state, a factor of the learning rate and a number of steps to the state then.
_Advance = Callable[[TrainState, np.float32, np.int32], TrainState]


def _start(
    step: TrainStep,
    arch: Architecture,
    class_count: int,
    dtype: DTypeLike,
    seed: int,
    resume: PyTree | None,
) -> TrainState:
    arch = _with_dropout(arch, step.recipe.dropout).with_classes(class_count)
    model = ConvNet(arch, dtype=dtype, init=step.recipe.init, rngs=nnx.Rngs(seed))
    state = step.start(model, seed)
    return state if resume is None else step.replicate(_fill(state, resume))


def _compile(function: Callable[..., TrainState], *example: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*example).compile()
    return compiled, time.perf_counter() - began


def _run_epochs(
    program: _Program,
    state: TrainState,
    prepare: Callable[[], tuple[_Advance, float]],
    plateau: Plateau | None,
    progress: Callable[..., object] | None,
    save_every: int | None = None,
) -> Iterator[Epoch]:
    """Run the epochs that remain from a state."""
    step, steps, done = program.step, program.steps, int(state.step)
    if done > step.total:
        raise ValueError(
            f"the run to resume is in epoch {-(-done // steps)} already, of "
            f"{step.total // steps}: give more epochs"
        )
    if done and done % steps == 0:
        model, preprocess = step.finish(state), step.preprocess
        yield Epoch(done // steps, model, preprocess, {}, state, 0.0, 0.0)
    if done == step.total:
        return
    run, compile_seconds = prepare()
    train_seconds = 0.0
    while done < step.total:
        epoch, place = divmod(done, steps)
        stop = program.next_stop(done, save_every)
        scale = 1.0 if plateau is None else plateau.scale
        began = time.perf_counter()
        state = run(state, np.float32(scale), np.int32(stop - done))
        sums = np.asarray(_read_sums(state))[: len(program.ends)]
        train_seconds += time.perf_counter() - began
        done, end = stop, stop - epoch * steps
        if not np.isfinite(sums).all():
            raise NonFiniteLossError(
                f"the loss is not finite in epoch {epoch + 1}, step {place + 1} to "
                f"{end}: try a smaller learning rate or another seed"
            )
        if progress is not None:
            loss, accuracy = (sums.sum(0) / end).tolist()
            total = step.total // steps
            progress(done / steps, total, train_loss=loss, train_accuracy=accuracy)
        if end == steps or (save_every and done % save_every == 0):
            yield Epoch(
                number=epoch + 1,
                model=step.finish(state),
                preprocess=step.preprocess,
                record=program.record(epoch + 1, sums, scale) if end == steps else {},
                state=state,
                train_seconds=train_seconds,
                compile_seconds=compile_seconds,
            )


@jax.jit
def _read_sums(state: TrainState) -> Float[Array, "parts 2"]:
    """Get the sums of a state; they are NaN if its weights are not finite."""
    weights = jax.tree.leaves((state.model, state.average))
    finite = jnp.stack([jnp.isfinite(weight).all() for weight in weights]).all()
    return jnp.where(finite, state.sums, jnp.nan)


def _fill(state: TrainState, saved: PyTree) -> TrainState:
    """Put saved arrays into a state."""
    leaves, structure = jax.tree.flatten(state)
    values = jax.tree.leaves(saved)
    kinds = [[(x.shape, x.dtype) for x in side] for side in (leaves, values)]
    if kinds[0] != kinds[1]:
        raise ValueError("resume: the state is of another architecture or recipe")
    return jax.tree.unflatten(structure, values)


def _with_dropout(arch: Architecture, rate: float) -> Architecture:
    layers = tuple(
        dataclasses.replace(layer, dropout=rate)
        if isinstance(layer, Dense) and layer.relu
        else layer
        for layer in arch.layers
    )
    return dataclasses.replace(arch, layers=layers)


@dataclasses.dataclass(frozen=True)
class _Program:
    """The steps of an epoch."""

    step: TrainStep
    steps: int  # per epoch

    def advance(
        self,
        state: TrainState,
        images: UInt8[Array, "b h w c"],
        labels: Int[Array, " b"],
        scale: Float[Array, ""],
    ) -> TrainState:
        """Take a step, and add its loss and accuracy to the sums of its part."""
        place = state.step % self.steps
        sums = jnp.where(place == 0, 0.0, state.sums)
        state, values = self.step(state, images, labels, scale)
        return state._replace(sums=sums.at[place // self._part].add(values))

    def run(
        self,
        state: TrainState,
        images: UInt8[Array, "n h w c"],
        labels: Int[Array, " n"],
        scale: Float[Array, ""],
        count: Int[Array, ""],
    ) -> TrainState:
        """Take `count` steps within an epoch of images that stay on the device."""
        key = jax.random.wrap_key_data(state.key)
        key = jax.random.fold_in(key, state.step // self.steps)
        order = jax.random.permutation(key, len(images))
        order = order[: self.steps * self.step.batch_size].reshape(self.steps, -1)

        def body(_: Array, state: TrainState) -> TrainState:
            batch = order[state.step % self.steps]
            return self.advance(state, images[batch], labels[batch], scale)

        return jax.lax.fori_loop(0, count, body, state)

    @property
    def _part(self) -> int:
        return -(-self.steps // PARTS)

    @property
    def ends(self) -> list[int]:
        """Steps of an epoch after which the loss is read."""
        return [*range(self._part, self.steps, self._part), self.steps]

    def next_stop(self, done: int, save_every: int | None) -> int:
        """Number of steps of the run after which the loss is read or a state saved."""
        place = done % self.steps
        stop = done - place + min(end for end in self.ends if end > place)
        return min(stop, done - done % save_every + save_every) if save_every else stop

    def record(self, epoch: int, sums: np.ndarray, scale: float) -> dict[str, Any]:
        """Summarize an epoch from the sums of each of its pieces."""
        first, ends = (epoch - 1) * self.steps, np.array(self.ends)
        rate = self.step.rate(scale)
        rates = [float(np.asarray(rate(first + end - 1))) for end in ends]
        loss, accuracy = (sums.sum(0) / self.steps).tolist()
        losses, accuracies = sums.T / np.diff(ends, prepend=0)
        return {
            "epoch": epoch,
            "train_loss": loss,
            "train_accuracy": accuracy,
            "learning_rate": rates[-1],
            "steps": (first + ends).tolist(),
            "loss_curve": losses.tolist(),
            "accuracy_curve": accuracies.tolist(),
            "rate_curve": rates,
        }

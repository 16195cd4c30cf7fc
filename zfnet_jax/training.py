"""Training: a generator that runs one compiled program and yields after every epoch.

Images stay on the device as uint8. Augmentation, the forward and backward pass and the
update are one program, split over all local devices along the batch.
"""

from __future__ import annotations

import dataclasses
import itertools
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
from zfnet_jax.recipes import FAST, Plateau, Recipe
from zfnet_jax.train_step import TrainState, TrainStep

# Number of points of an epoch where progress is reported and the loss recorded.
_POINTS = 10


class NonFiniteLossError(Exception):
    """The loss became infinite or not a number."""


@dataclasses.dataclass(frozen=True, eq=False)
class Epoch:
    """A network after an epoch of its training.

    Attributes:
        number: Number of the epoch, from 1.
        model: The network to evaluate and to keep.
        preprocess: Its preprocessing.
        record: `epoch`, `train_loss`, `train_accuracy` (0 to 1) and `learning_rate`;
            `steps` are numbers of steps since the start of the run, and `loss_curve`,
            `accuracy_curve` and `rate_curve` the means up to each from the one before
            and the learning rate at each.
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
        progress: Called at most ten times per epoch as `progress(done, total,
            **values)` with epochs, of which `done` may be a fraction, and running
            values.

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
    arch = _with_dropout(arch, recipe.dropout).with_classes(len(dataset.class_names))
    model = ConvNet(arch, dtype=dtype, init=recipe.init, rngs=nnx.Rngs(seed))
    preprocess = Preprocessing.fit(dataset.images, recipe.scale, arch.input_hw)
    step = TrainStep(recipe, preprocess, batch_size, steps * epochs)
    state = step.start(model, seed)
    if resume is not None:
        state = step.replicate(_fill(state, resume))
    program = _Program(step, steps)
    yield from _epochs(program, state, dataset, plateau, progress)


def _epochs(
    program: _Program,
    state: TrainState,
    dataset: Dataset,
    plateau: Plateau | None,
    progress: Callable[..., object] | None,
) -> Iterator[Epoch]:
    """Run the epochs that remain from a state."""
    step, preprocess = program.step, program.step.preprocess
    done, total = (int(x) // program.steps for x in (state.step, step.total))
    if done:
        yield Epoch(done, step.finish(state), preprocess, {}, state, 0.0, 0.0)
    data = step.replicate((dataset.images, dataset.labels))
    began = time.perf_counter()
    run = jax.jit(program.run).lower(state, *data, np.float32(1), np.int32(0)).compile()
    compile_seconds, train_seconds = time.perf_counter() - began, 0.0
    for number in range(done + 1, total + 1):
        scale = 1.0 if plateau is None else plateau.scale
        sums = np.zeros((0, 2))
        for start, stop in itertools.pairwise([0, *program.ends]):
            began = time.perf_counter()
            state, totals = run(state, *data, np.float32(scale), np.int32(stop - start))
            sums = np.vstack([sums, np.asarray(totals)])
            train_seconds += time.perf_counter() - began
            if not np.isfinite(sums).all():
                raise NonFiniteLossError(
                    f"the loss is not finite in epoch {number}, step {start + 1} to "
                    f"{stop}: try a smaller learning rate or another seed"
                )
            if progress is not None:
                loss, accuracy = (sums.sum(0) / stop).tolist()
                passes = number - 1 + stop / program.steps
                progress(passes, total, train_loss=loss, train_accuracy=accuracy)
        yield Epoch(
            number=number,
            model=step.finish(state),
            preprocess=preprocess,
            record=program.record(number, sums, scale),
            state=state,
            train_seconds=train_seconds,
            compile_seconds=compile_seconds,
        )


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
    """The steps of an epoch of images that stay on the device."""

    step: TrainStep
    steps: int  # per epoch

    def run(
        self,
        state: TrainState,
        images: UInt8[Array, "n h w c"],
        labels: Int[Array, " n"],
        scale: Float[Array, ""],
        count: Int[Array, ""],
    ) -> tuple[TrainState, Float[Array, " 2"]]:
        """Run `count` steps within an epoch; sum their losses and accuracies.

        The sums are NaN if the weights after the last step are not finite.
        """
        key = jax.random.wrap_key_data(state.key)
        key = jax.random.fold_in(key, state.step // self.steps)
        order = jax.random.permutation(key, len(images))
        order = order[: self.steps * self.step.batch_size].reshape(self.steps, -1)

        def body(_: Array, carry: Any) -> Any:
            state, totals = carry
            batch = order[state.step % self.steps]
            state, values = self.step(state, images[batch], labels[batch], scale)
            return state, totals + values

        state, totals = jax.lax.fori_loop(0, count, body, (state, jnp.zeros(2)))
        weights = jax.tree.leaves((state.model, state.average))
        finite = jnp.stack([jnp.isfinite(weight).all() for weight in weights]).all()
        return state, jnp.where(finite, totals, jnp.nan)

    @property
    def ends(self) -> list[int]:
        """Steps of an epoch after which the loss is read."""
        piece = -(-self.steps // _POINTS)
        return [*range(piece, self.steps, piece), self.steps]

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

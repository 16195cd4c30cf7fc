"""Training: a generator that runs one compiled program and yields after every epoch.

Images stay on the device as uint8. Augmentation, the forward and backward pass and the
update are one program, split over all local devices along the batch.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, UInt8

from zfnet_jax.arch import Architecture, Dense
from zfnet_jax.data import Dataset, Preprocessing
from zfnet_jax.model import ConvNet
from zfnet_jax.recipes import FAST, Augmentation, Plateau, Recipe

# Number of points of an epoch where progress is reported and the loss recorded.
_POINTS = 10


class NonFiniteLossError(Exception):
    """The loss became infinite or not a number."""


class TrainState(NamedTuple):
    """Everything a step reads and writes.

    Attributes:
        model: The `ConvNet` that is trained.
        average: The same with the running average of the weights, or None.
        opt_state: State of the optimizer.
        step: Number of updates so far, int32 [].
        key: Key data from which all randomness of the run is derived, uint32 [2].
    """

    model: PyTree
    average: PyTree
    opt_state: PyTree
    step: Int[Array, ""]
    key: Array


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
    program = _Program(recipe, preprocess, batch_size, steps, epochs)
    state = program.start(model, seed)
    if resume is not None:
        state = program.replicate(_fill(state, resume))
    yield from _epochs(program, state, dataset, plateau, progress)


def _epochs(
    program: _Program,
    state: TrainState,
    dataset: Dataset,
    plateau: Plateau | None,
    progress: Callable[..., object] | None,
) -> Iterator[Epoch]:
    """Run the epochs that remain from a state."""
    preprocess, total = program.preprocess, program.epochs
    done = int(state.step) // program.steps
    if done:
        yield Epoch(done, _fetch(state), preprocess, {}, state, 0.0, 0.0)
    data = program.replicate((dataset.images, dataset.labels))
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
            model=_fetch(state),
            preprocess=preprocess,
            record=program.record(number, sums, scale),
            state=state,
            train_seconds=train_seconds,
            compile_seconds=compile_seconds,
        )


def _fetch(state: TrainState) -> ConvNet:
    """Fetch the network to evaluate and to keep to the default device."""
    model = state.model if state.average is None else state.average
    return jax.tree.map(jnp.asarray, jax.device_get(model))


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


def _data_mesh() -> Mesh:
    return jax.make_mesh(
        (jax.local_device_count(),),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.local_devices(),
    )


@dataclasses.dataclass(frozen=True)
class _Program:
    """The pure functions of one training run."""

    recipe: Recipe
    preprocess: Preprocessing
    batch_size: int
    steps: int  # per epoch
    epochs: int
    mesh: Mesh = dataclasses.field(default_factory=_data_mesh)

    def __post_init__(self) -> None:
        if self.batch_size % self.mesh.size:
            raise ValueError(
                f"batch size {self.batch_size} does not split over {self.mesh.size} "
                "devices"
            )

    def replicate(self, tree: Any) -> Any:
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def rate(self, scale: Any) -> optax.Schedule:
        schedule = self.recipe.schedule(self.steps * self.epochs)
        return lambda step: schedule(step) * scale

    def start(self, model: Any, seed: int) -> TrainState:
        state = TrainState(
            model=model,
            average=jax.tree.map(jnp.copy, model) if self.recipe.average else None,
            opt_state=self.recipe.optimizer(self.rate(1.0)).init(model),
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(jax.random.key(seed)),
        )
        return self.replicate(state)

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
        order = order[: self.steps * self.batch_size].reshape(self.steps, -1)

        def body(_: Array, carry: Any) -> Any:
            state, totals = carry
            batch = order[state.step % self.steps]
            state, values = self.step(state, images[batch], labels[batch], scale)
            return state, totals + values

        state, totals = jax.lax.fori_loop(0, count, body, (state, jnp.zeros(2)))
        weights = jax.tree.leaves((state.model, state.average))
        finite = jnp.stack([jnp.isfinite(weight).all() for weight in weights]).all()
        return state, jnp.where(finite, totals, jnp.nan)

    def step(self, state: TrainState, images: Array, labels: Array, scale: Array):
        run_key = jax.random.wrap_key_data(state.key)
        # Epochs use the same key folded with their number: keep steps apart from them.
        key = jax.random.fold_in(jax.random.fold_in(run_key, 2**31), state.step)
        view_key, hole_key, dropout_key = jax.random.split(key, 3)
        augmentation = self.recipe.augmentation
        inputs = self.preprocess(augment(images, view_key, augmentation))
        if augmentation.cutout:
            inputs = cut_out(inputs, hole_key, augmentation.cutout)
        keys = jax.random.split(dropout_key, self.batch_size)
        (loss, accuracy), grads = self.gradients(state.model, inputs, labels, keys)
        optimizer = self.recipe.optimizer(self.rate(scale))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
        model, average = optax.apply_updates(state.model, updates), state.average
        if average is not None:
            # A short memory at first, so that the starting weights are soon forgotten.
            steps = state.step.astype(jnp.float32)
            decay = jnp.minimum(self.recipe.average, (1 + steps) / (10 + steps))
            average = optax.incremental_update(model, average, 1 - decay)
        state = TrainState(model, average, opt_state, state.step + 1, state.key)
        return state, jnp.stack([loss, accuracy])

    def gradients(self, model: Any, images: Array, labels: Array, keys: Array):
        def local(*batch: Any) -> Any:
            value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
            return jax.lax.pmean(value_and_grad(*batch), "data")

        split, whole = PartitionSpec("data"), PartitionSpec()
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(whole, split, split, split),
            out_specs=whole,
            check_vma=False,
        )(model, images, labels, keys)

    def loss(self, model: ConvNet, images: Array, labels: Array, keys: Array):
        logits = model(images, dropout_keys=keys)
        targets = optax.smooth_labels(
            jax.nn.one_hot(labels, logits.shape[-1]), self.recipe.label_smoothing
        )
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return loss, (logits.argmax(-1) == labels).mean()

    @property
    def ends(self) -> list[int]:
        """Steps of an epoch after which the loss is read."""
        piece = -(-self.steps // _POINTS)
        return [*range(piece, self.steps, piece), self.steps]

    def record(self, epoch: int, sums: np.ndarray, scale: float) -> dict[str, Any]:
        """Summarize an epoch from the sums of each of its pieces."""
        first, ends = (epoch - 1) * self.steps, np.array(self.ends)
        rates = [float(np.asarray(self.rate(scale)(first + end - 1))) for end in ends]
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


def augment(
    images: UInt8[Array, "b h w c"], key: PRNGKeyArray, how: Augmentation
) -> UInt8[Array, "b h w c"]:
    """Cut and flip each image at random, in the size of the images."""
    margin = how.margin
    edges = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = jnp.pad(images, edges, mode="reflect") if margin else images

    def one(image: Array, key: PRNGKeyArray) -> Array:
        shift_key, flip_key = jax.random.split(key)
        if how.corners:
            places = np.array([(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]) * margin
            shift = jnp.asarray(places)[jax.random.randint(shift_key, (), 0, 5)]
        else:
            shift = jax.random.randint(shift_key, (2,), 0, 2 * margin + 1)
        view = jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), images.shape[1:])
        return jnp.where(jax.random.bernoulli(flip_key), view[:, ::-1], view)

    return jax.vmap(one)(padded, jax.random.split(key, len(images)))


def cut_out(
    inputs: Float[Array, "b h w c"], key: PRNGKeyArray, share: float
) -> Float[Array, "b h w c"]:
    """Set a random part of each preprocessed image to 0, which is the mean.

    Args:
        inputs: Preprocessed images.
        key: Key that decides the position.
        share: Height and width of the part, as a fraction of the image's.
    """
    batch, height, width, _ = inputs.shape

    def inside(key: PRNGKeyArray, extent: int) -> Array:
        side = round(share * extent)
        start = jax.random.randint(key, (batch, 1), 0, extent - side + 1)
        place = jnp.arange(extent)
        return (place >= start) & (place < start + side)

    row_key, column_key = jax.random.split(key)
    rows, columns = inside(row_key, height), inside(column_key, width)
    hole = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(hole, 0, inputs)

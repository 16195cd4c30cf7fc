"""Training: the paper's recipe and a fast one, as one jitted program of many steps.

Images stay on the device as uint8. Augmentation, the forward and backward pass and the
update are one program, split over all local devices along the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray, PyTree, UInt8

from zfnet_jax import checkpoint
from zfnet_jax.arch import Architecture, Dense
from zfnet_jax.data import Dataset, Preprocessing, ten_crop
from zfnet_jax.model import ConvNet, Initializer

# The values of one epoch, by name.
Record = dict[str, int | float]

_MOMENTUM = 0.9
_KERNEL_RMS = 1e-1


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random views of the training images.

    Attributes:
        margin: Largest shift of a crop in pixels. Reflected pixels fill the border.
        corners: Take only the four corners and the center, as in section 3, instead of
            any shift.
        cutout: Height and width of a random part of the network's input that is set to
            the mean, as a fraction of the input's; 0 for none.
    """

    margin: int
    corners: bool = False
    cutout: float = 0.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides how a network is trained.

    Attributes:
        name: Name on the command line.
        epochs: Default number of passes over the training data.
        batch_size: Default number of images per step.
        validation: Default number of images split from the training data.
        scale: Factor of the pixels after the mean is subtracted.
        init: Draws the kernels. Biases start at 0.
        dropout: Probability of dropping a unit of a hidden dense layer.
        label_smoothing: Fraction of the target that is spread over all classes.
        augmentation: Random views of the images.
        average: Decay of the running average of the weights that is evaluated and
            kept; 0 keeps the last weights.
        optimizer: Builds the optax transformation from the total number of steps and
            the steps per epoch. Its update takes the keyword `value`, the last
            validation error between 0 and 1.
        learning_rate: Learning rate from (step, optimizer state, total steps).
    """

    name: str
    epochs: int
    batch_size: int
    validation: int
    scale: float
    init: Initializer
    dropout: float
    label_smoothing: float
    augmentation: Augmentation
    average: float
    optimizer: Callable[[int, int], optax.GradientTransformationExtraArgs]
    learning_rate: Callable[[Array, Any, int], Array]


def limit_kernel_rms(limit: float = _KERNEL_RMS) -> optax.GradientTransformation:
    """Scale convolution filters whose RMS passes `limit` back to it (section 3).

    The last transformation of a chain: it changes the update so that the weights after
    the step obey the limit. A filter is one output channel of an HWIO kernel.

    Args:
        limit: Largest root mean square of a filter.
    """

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: PyTree, state: optax.OptState, params: PyTree | None = None):
        if params is None:
            raise ValueError("limit_kernel_rms needs the parameters")

        def limited(change: Array, weight: Array) -> Array:
            if weight.ndim != 4:
                return change
            after = weight + change
            rms = jnp.sqrt(jnp.mean(jnp.square(after), axis=(0, 1, 2)))
            factor = limit / jnp.maximum(rms, limit)
            # Exact where nothing is scaled: weight + change - weight would round.
            return jnp.where(factor < 1, after * factor - weight, change)

        return jax.tree.map(limited, updates, params), state

    return optax.GradientTransformation(init, update)


def _paper_optimizer(
    total: int, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    del total
    return optax.chain(
        optax.sgd(1e-2, momentum=_MOMENTUM),
        optax.contrib.reduce_on_plateau(
            factor=0.1, patience=5, accumulation_size=steps_per_epoch, min_scale=1e-3
        ),
        optax.with_extra_args_support(limit_kernel_rms()),
    )


def _paper_learning_rate(step: Array, state: Any, total: int) -> Array:
    del step, total
    return 1e-2 * optax.tree.get(state, "scale")


def _warm_up_and_decay(peak: float, total: int) -> optax.Schedule:
    """Linear from 0 to `peak` over 15% of all steps, then linear to 0."""
    warm_up = max(1, round(0.15 * total))
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / warm_up, peak, warm_up),
            optax.linear_schedule(peak, 0.0, max(1, total - warm_up)),
        ],
        [warm_up],
    )


_MUON_RATE = 0.03


def _fast_optimizer(
    total: int, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """Muon (Jordan 2024) for hidden kernels, Nesterov SGD for biases and classifier.

    Orthogonalized updates replace normalization layers: every direction of a kernel is
    learned at the same pace.
    """
    del steps_per_epoch

    def kind(path: tuple[Any, ...], weight: Array) -> str:
        hidden = weight.ndim > 1 and path[0].name != "logits"
        return "muon" if hidden else "sgd"

    def as_matrix(params: PyTree) -> PyTree:
        numbers = optax.contrib.MuonDimensionNumbers
        return jax.tree.map(
            lambda weight: numbers(tuple(range(weight.ndim - 1)), weight.ndim - 1),
            params,
        )

    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=_MOMENTUM, weight_dimension_numbers=as_matrix),
        optax.add_decayed_weights(0.05),
        optax.scale_by_learning_rate(_warm_up_and_decay(_MUON_RATE, total)),
    )
    sgd = optax.chain(
        optax.clip_by_global_norm(2.0),
        optax.sgd(_warm_up_and_decay(0.04, total), _MOMENTUM, nesterov=True),
    )
    return optax.with_extra_args_support(
        optax.partition(
            {"muon": muon, "sgd": sgd},
            lambda params: jax.tree_util.tree_map_with_path(kind, params),
        )
    )


def _fast_learning_rate(step: Array, state: Any, total: int) -> Array:
    del state
    return jnp.asarray(_warm_up_and_decay(_MUON_RATE, total)(step))


PAPER = Recipe(
    name="paper",
    epochs=70,
    batch_size=128,
    validation=5_000,
    scale=1.0,
    init=nnx.initializers.normal(1e-2),
    dropout=0.5,
    label_smoothing=0.0,
    augmentation=Augmentation(margin=2, corners=True),
    average=0.0,
    optimizer=_paper_optimizer,
    learning_rate=_paper_learning_rate,
)

FAST = Recipe(
    name="fast",
    epochs=6,
    batch_size=256,
    validation=0,
    scale=1 / 64,
    init=nnx.initializers.variance_scaling(1.0, "fan_in", "normal"),
    dropout=0.2,
    label_smoothing=0.05,
    augmentation=Augmentation(margin=4, cutout=1 / 4),
    average=0.99,
    optimizer=_fast_optimizer,
    learning_rate=_fast_learning_rate,
)

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in (PAPER, FAST)}


class NonFiniteLossError(Exception):
    """The loss became infinite or not a number; the last checkpoint is still good."""


class TrainState(NamedTuple):
    """Everything a step reads and writes.

    Attributes:
        model: The `ConvNet` that is trained.
        average: The same with the running average of the weights, or None.
        opt_state: Momentum and schedule state.
        step: Number of updates so far, int32 [].
        key: Key data from which all randomness of the run is derived, uint32 [2].
        validation_error: Error on the validation images after the last epoch, 1.0
            before it.
    """

    model: PyTree
    average: PyTree
    opt_state: PyTree
    step: Int[Array, ""]
    key: Array
    validation_error: Float32[Array, ""]

    @property
    def evaluated(self) -> ConvNet:
        """The network to evaluate and to keep."""
        return self.model if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A trained network and the record of its training.

    Attributes:
        model: The network with the weights to keep.
        preprocess: The preprocessing it was trained with.
        history: For each epoch: epoch, train_loss, train_accuracy, learning_rate and,
            with validation images, validation_loss and validation_accuracy.
        train_seconds: Time in training steps, without compilation and evaluation.
        compile_seconds: Time to compile them.
        images_per_second: Training images per second.
    """

    model: ConvNet
    preprocess: Preprocessing
    history: list[Record]
    train_seconds: float
    compile_seconds: float
    images_per_second: float


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


def data_mesh() -> Mesh:
    """All local devices along one axis, `data`."""
    return jax.make_mesh(
        (jax.local_device_count(),),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.local_devices(),
    )


def augment(
    images: UInt8[Array, "b h w c"], key: PRNGKeyArray, how: Augmentation
) -> UInt8[Array, "b h w c"]:
    """A random crop and flip of each image, in the size of the images."""
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


class _Program:
    """The pure functions of one training run, compiled once."""

    def __init__(
        self,
        model: ConvNet,
        recipe: Recipe,
        preprocess: Preprocessing,
        batch_size: int,
        steps_per_epoch: int,
        epochs: int,
    ):
        self.initial: PyTree = model
        self.recipe = recipe
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.total = epochs * steps_per_epoch
        self.optimizer = recipe.optimizer(self.total, steps_per_epoch)
        self.mesh = data_mesh()
        if batch_size % self.mesh.size:
            raise ValueError(
                f"batch size {batch_size} does not split over {self.mesh.size} devices"
            )

    def replicate(self, tree: PyTree) -> PyTree:
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def start(self, seed: int) -> TrainState:
        model = self.initial
        state = TrainState(
            model=model,
            average=jax.tree.map(jnp.copy, model) if self.recipe.average else None,
            opt_state=self.optimizer.init(model),
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(jax.random.key(seed)),
            validation_error=jnp.ones((), jnp.float32),
        )
        return self.replicate(state)

    def fetch(self, state: TrainState) -> ConvNet:
        """Fetch the network to evaluate and to keep to the default device."""
        return jax.tree.map(jnp.asarray, jax.device_get(state.evaluated))

    def order(self, state: TrainState, epoch: int, count: int) -> np.ndarray:
        """The images of each step of an epoch, int32 [steps, batch]."""
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), epoch)
        chosen = np.asarray(jax.random.permutation(key, count))
        chosen = chosen[: self.steps_per_epoch * self.batch_size].astype(np.int32)
        return chosen.reshape(self.steps_per_epoch, self.batch_size)

    def loss(self, model, images, labels, keys):
        logits = model(images, dropout_keys=keys)
        classes = logits.shape[-1]
        targets = optax.smooth_labels(
            jax.nn.one_hot(labels, classes), self.recipe.label_smoothing
        )
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return loss, (logits.argmax(-1) == labels).mean()

    def gradients(self, model, images, labels, keys):
        def local(model, images, labels, keys):
            value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
            return jax.lax.pmean(value_and_grad(model, images, labels, keys), "data")

        split, whole = PartitionSpec("data"), PartitionSpec()
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(whole, split, split, split),
            out_specs=whole,
            check_vma=False,
        )(model, images, labels, keys)

    def step(self, state: TrainState, images: Array, labels: Array):
        run_key = jax.random.wrap_key_data(state.key)
        # Epochs use the same key folded with their number: keep steps apart from them.
        key = jax.random.fold_in(jax.random.fold_in(run_key, 2**31), state.step)
        view_key, hole_key, dropout_key = jax.random.split(key, 3)
        augmentation = self.recipe.augmentation
        inputs = self.preprocess(augment(images, view_key, augmentation))
        if augmentation.cutout:
            inputs = cut_out(inputs, hole_key, augmentation.cutout)
        (loss, accuracy), grads = self.gradients(
            state.model,
            inputs,
            labels,
            jax.random.split(dropout_key, self.batch_size),
        )
        updates, opt_state = self.optimizer.update(
            grads, state.opt_state, state.model, value=state.validation_error
        )
        model = optax.apply_updates(state.model, updates)
        average = state.average
        if average is not None:
            # A short memory at first, so that the starting weights are soon forgotten.
            steps = state.step.astype(jnp.float32)
            decay = jnp.minimum(self.recipe.average, (1 + steps) / (10 + steps))
            average = optax.incremental_update(model, average, 1 - decay)
        state = state._replace(
            model=model, average=average, opt_state=opt_state, step=state.step + 1
        )
        return state, jnp.stack([loss, accuracy])

    def run(
        self,
        state: TrainState,
        images: UInt8[Array, "n h w c"],
        labels: Int[Array, " n"],
        order: Int[Array, "steps batch"],
        start: Int[Array, ""],
        stop: Int[Array, ""],
    ) -> tuple[TrainState, Float[Array, " 2"]]:
        """Run steps `start` to `stop` of an epoch; sum their losses and accuracies.

        The sums are NaN if the weights after the last step are not finite.
        """

        def body(index: Array, carry):
            state, totals = carry
            chosen = order[index]
            state, values = self.step(state, images[chosen], labels[chosen])
            return state, totals + values

        state, totals = jax.lax.fori_loop(start, stop, body, (state, jnp.zeros(2)))
        weights = jax.tree.leaves((state.model, state.average))
        finite = jnp.stack([jnp.isfinite(weight).all() for weight in weights]).all()
        return state, jnp.where(finite, totals, jnp.nan)


def evaluate(
    model: ConvNet,
    preprocess: Preprocessing,
    images: UInt8[np.ndarray, "n h w c"],
    batch_size: int = 500,
) -> Float32[np.ndarray, "n classes"]:
    """Compute logits of one view of each image, with dropout off.

    Args:
        model: The network.
        preprocess: Its preprocessing.
        images: Images of the size that `preprocess` takes.
        batch_size: Images per batch. It doesn't change the result.
    """

    @jax.jit
    def run(model: ConvNet, batch: Array) -> Array:
        return model(preprocess(batch))

    return np.stack([*_batched(functools.partial(run, model), images, batch_size)])


def class_probabilities(
    model: ConvNet,
    preprocess: Preprocessing,
    images: Iterable[UInt8[np.ndarray, "h w c"]],
    *,
    ten_crops: bool = False,
    batch_size: int = 50,
) -> Iterator[Float32[np.ndarray, " classes"]]:
    """Yield softmax probabilities of each image from one view or ten, without dropout.

    Ten views are the corners and the center, each also mirrored. Their probabilities
    are averaged (Krizhevsky et al. 2012, section 4.1). The mean image is subtracted
    from each crop. Images are read when they are needed, at most one batch ahead.

    Args:
        model: The network.
        preprocess: Its preprocessing.
        images: RGB pixels, 0 to 255. One view takes images of the size of `preprocess`;
            ten crops take larger ones, see `ten_crop_size`.
        ten_crops: Average over ten views.
        batch_size: Images per batch, each of which takes the memory of one view. It
            doesn't change the result.

    Raises:
        ValueError: Raised with the first result: `batch_size` is not positive, or the
            images don't fit `preprocess` or each other.
    """

    @jax.jit
    def run(model: ConvNet, batch: Array) -> Array:
        def view(crop: Array) -> Array:
            return jax.nn.softmax(model(preprocess(crop)))

        if not ten_crops:
            return view(batch)
        crops = ten_crop(batch, preprocess.mean.shape[:2])
        return jax.lax.map(view, jnp.moveaxis(crops, 1, 0)).mean(0)

    yield from _batched(functools.partial(run, model), images, batch_size)


def _batched(
    run: Callable[[np.ndarray], Array], images: Iterable[np.ndarray], batch_size: int
) -> Iterator[np.ndarray]:
    """Yield the result of each image; every batch is padded to the first one's size."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    images, size = iter(images), 0
    while batch := list(itertools.islice(images, batch_size)):
        size = size or len(batch)
        padded = np.pad(np.stack(batch), ((0, size - len(batch)), *[(0, 0)] * 3))
        yield from np.asarray(run(padded))[: len(batch)]


def loss_and_accuracy(
    logits: Float32[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the fraction of images classified correctly."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return float(losses.mean()), float((logits.argmax(-1) == labels).mean())


def train(
    arch: Architecture,
    dataset: Dataset,
    validation: Dataset | None = None,
    *,
    recipe: Recipe = FAST,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    target_accuracy: float | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    on_damaged: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[float, Mapping[str, int | float]], None] = lambda *_: None,
    on_epoch: Callable[[int, ConvNet, Preprocessing], None] | None = None,
) -> TrainResult:
    """Train a network from scratch, or resume from its newest good checkpoint.

    Args:
        arch: The architecture. Its classifier gets the number of classes of the
            dataset, and images of another size are resized on the device.
        dataset: Training images.
        validation: Images to evaluate after each epoch, never trained on.
        recipe: The recipe.
        epochs: Passes over the data, if not the recipe's number.
        batch_size: Images per step, if not the recipe's number. Images that don't fill
            a last batch are left out of that epoch.
        seed: Determines weights, data order, augmentation and dropout.
        dtype: Type of the computation, float32 or bfloat16.
        target_accuracy: Stop after the epoch whose validation accuracy reaches this.
        checkpoints: Folder for one checkpoint per epoch; None keeps none.
        resume: Resume from the newest good checkpoint, if there is one.
        on_damaged: Called with one line for each newer checkpoint that is damaged.
        on_progress: Called about ten times per epoch with the number of epochs done and
            the running values.
        on_epoch: Called after each epoch, before the checkpoint, with the number of
            epochs done, the network to keep, and its preprocessing.

    Raises:
        ValueError: The arguments don't fit each other or the checkpoint.
        NonFiniteLossError: The loss is not finite.
        DamagedFileError: Every checkpoint to resume from is damaged.

    Example:
        >>> import zfnet_jax as zf
        >>> from zfnet_jax.data import make_shapes
        >>> arch = zf.ablate(zf.ZFNET32, remove=("conv3", "conv4", "conv5", "fc7"))
        >>> result = zf.train(arch, make_shapes(64), epochs=1, batch_size=32)
        >>> [record["epoch"] for record in result.history]
        [1]
    """
    epochs = recipe.epochs if epochs is None else epochs
    batch_size = recipe.batch_size if batch_size is None else batch_size
    steps_per_epoch = len(dataset) // batch_size if batch_size > 0 else 0
    if epochs < 1 or steps_per_epoch < 1:
        raise ValueError(
            f"{epochs} epochs of {len(dataset)} images in batches of {batch_size} "
            "hold no step"
        )
    if target_accuracy is not None and validation is None:
        raise ValueError("a target accuracy needs validation images")
    arch = _with_dropout(arch, recipe.dropout).with_classes(len(dataset.class_names))
    preprocess = Preprocessing.fit(dataset.images, recipe.scale, arch.input_hw)
    model = ConvNet(arch, dtype=dtype, init=recipe.init, rngs=nnx.Rngs(seed))
    program = _Program(model, recipe, preprocess, batch_size, steps_per_epoch, epochs)
    state = program.start(seed)

    run_is = {
        "arch": repr(arch),
        "recipe": recipe.name,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "dtype": str(jnp.dtype(dtype)),
        "data": dataset.digest(),
    }
    history: list[Record] = []
    train_seconds = 0.0
    if resume and checkpoints is not None and checkpoint.steps(checkpoints):
        restored = checkpoint.restore_latest(
            checkpoints, state, lambda metadata: _same_run(metadata["run"], run_is)
        )
        state = restored.state
        for line in restored.damaged:
            on_damaged(line)
        history = restored.metadata["history"]
        train_seconds = restored.metadata["train_seconds"]

    images = program.replicate(dataset.images)
    labels = program.replicate(dataset.labels)
    order = program.replicate(np.zeros((steps_per_epoch, batch_size), np.int32))
    began = time.perf_counter()
    run = jax.jit(program.run, donate_argnums=0).lower(
        state, images, labels, order, np.int32(0), np.int32(0)
    )
    run = run.compile()
    compile_seconds = time.perf_counter() - began

    for epoch in range(len(history), epochs):
        if _reached(history, target_accuracy):
            break
        order = program.replicate(program.order(state, epoch, len(dataset)))
        totals = np.zeros(2)
        for start in range(0, steps_per_epoch, -(-steps_per_epoch // 10)):
            stop = min(start + -(-steps_per_epoch // 10), steps_per_epoch)
            began = time.perf_counter()
            state, sums = run(
                state, images, labels, order, np.int32(start), np.int32(stop)
            )
            totals += np.asarray(sums)
            train_seconds += time.perf_counter() - began
            if not np.isfinite(totals).all():
                raise NonFiniteLossError(
                    f"the loss is not finite in epoch {epoch + 1}, "
                    f"step {start + 1} to {stop}: a smaller learning rate or another "
                    "seed may help; checkpoints of earlier epochs are kept"
                )
            if stop < steps_per_epoch:
                running = totals / stop
                on_progress(
                    epoch + stop / steps_per_epoch,
                    {"train_loss": running[0], "train_accuracy": running[1]},
                )
        rate = recipe.learning_rate(state.step - 1, state.opt_state, program.total)
        record: Record = {
            "epoch": epoch + 1,
            "train_loss": totals[0] / steps_per_epoch,
            "train_accuracy": totals[1] / steps_per_epoch,
            "learning_rate": float(rate),
        }
        if validation is not None:
            logits = evaluate(program.fetch(state), preprocess, validation.images)
            loss, accuracy = loss_and_accuracy(logits, validation.labels)
            record |= {"validation_loss": loss, "validation_accuracy": accuracy}
            error = program.replicate(np.float32(1 - accuracy))
            state = state._replace(validation_error=error)
        history.append(record)
        on_progress(epoch + 1.0, record)
        if on_epoch is not None:
            on_epoch(epoch + 1, program.fetch(state), preprocess)
        if checkpoints is not None:
            metadata = {
                "run": run_is,
                "history": history,
                "train_seconds": train_seconds,
            }
            checkpoint.save(checkpoints, epoch + 1, state, metadata)

    trained = len(history) * steps_per_epoch * batch_size
    return TrainResult(
        model=program.fetch(state),
        preprocess=preprocess,
        history=history,
        train_seconds=train_seconds,
        compile_seconds=compile_seconds,
        images_per_second=trained / train_seconds if train_seconds else math.nan,
    )


def _with_dropout(arch: Architecture, rate: float) -> Architecture:
    layers = tuple(
        dataclasses.replace(layer, dropout=rate)
        if isinstance(layer, Dense) and layer.relu
        else layer
        for layer in arch.layers
    )
    return dataclasses.replace(arch, layers=layers)


def _reached(history: list[Record], target: float | None) -> bool:
    if target is None or not history:
        return False
    return history[-1]["validation_accuracy"] >= target


def _same_run(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [name for name in wanted if saved.get(name) != wanted[name]]
    if differing:
        raise ValueError(
            "the checkpoint belongs to another run: "
            + ", ".join(f"{n} was {saved.get(n)}, now {wanted[n]}" for n in differing)
        )

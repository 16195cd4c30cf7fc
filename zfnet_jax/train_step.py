"""One update of a training run: random views, gradient, normalization, optimizer.

A step is a pure function of its state and a batch. The batch is split over the devices
of a mesh; a step on many devices equals the step on one to rounding.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, UInt8

from zfnet_jax.augmentation import crop_and_flip, cut_out, mix_neighbors
from zfnet_jax.data import Preprocessing
from zfnet_jax.model import ConvNet
from zfnet_jax.recipes import Recipe

# Added to the variance of an output before the square root is taken.
_EPSILON = 1e-5
# Decay of the running average of the batch statistics where that of weights has none.
_MEMORY = 0.99

# Parts of an epoch whose loss and accuracy are recorded, at most.
PARTS = 10

# Mean and variance of the outputs of each convolution, by layer: float32 [2, features].
Statistics = dict[str, Float[Array, "2 features"]]


class TrainState(NamedTuple):
    """Everything a step reads and writes.

    Attributes:
        model: The `ConvNet` that is trained. If the recipe normalizes, it has to be
            normalized by `statistics` to be used; `TrainStep.finish` does so.
        average: The same with the running average of the weights, or None.
        statistics: Running average of the batch statistics; empty for recipes that
            don't normalize.
        opt_state: State of the optimizer.
        step: Number of updates so far, int32 [].
        key: Key data from which all randomness of the run is derived, uint32 [2].
        sums: Sums of loss and accuracy over the steps of each part of an epoch. The
            caller of a step adds to them.
    """

    model: PyTree
    average: PyTree
    statistics: Statistics
    opt_state: PyTree
    step: Int[Array, ""]
    key: Array
    sums: Float[Array, "parts 2"]


def make_mesh() -> Mesh:
    """Return the mesh of all devices, along which batches are split."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_batch_size(recipe: Recipe, batch_size: int, devices: int) -> None:
    """Refuse a batch that devices or the pairs of mixup do not divide.

    Raises:
        ValueError: They don't; the message says why.
    """
    if batch_size % devices:
        raise ValueError(
            f"batch_size {batch_size}: it does not split over {devices} devices; give "
            "a multiple of their number"
        )
    if recipe.mixup and batch_size % 2:
        raise ValueError(
            f"batch_size {batch_size}: mixup needs pairs of images; give an even number"
        )


def fold(model: ConvNet, statistics: Statistics) -> ConvNet:
    """Fold the normalization of convolutions into their kernels and biases.

    (K x - mean) / deviation + bias is again a convolution: its kernel is K / deviation,
    its bias is bias - mean / deviation.
    """
    folded = jax.tree.map(lambda x: x, model)
    for name, (mean, variance) in statistics.items():
        affine = getattr(folded, name)
        factor = jax.lax.rsqrt(variance + _EPSILON)
        affine.kernel[...] = affine.kernel[...] * factor
        affine.bias[...] = affine.bias[...] - mean * factor
    return folded


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The step of one training run, to call under `jax.jit`.

    Attributes:
        recipe: The recipe.
        preprocess: Preprocessing of the images.
        batch_size: Images per step, over all devices.
        total: Number of steps of the whole run, which the schedule needs.
        mesh: Devices that share a batch.

    Raises:
        ValueError: The devices don't divide the batch, or mixup has no pairs.
    """

    recipe: Recipe
    preprocess: Preprocessing
    batch_size: int
    total: int
    mesh: Mesh = dataclasses.field(default_factory=make_mesh)

    def __post_init__(self) -> None:
        """Check that devices and pairs divide the batch."""
        check_batch_size(self.recipe, self.batch_size, self.mesh.size)

    def replicate(self, tree: Any) -> Any:
        """Copy arrays to every device; they have to be the same in all processes."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.device_put(jax.device_get(tree), whole)

    def split(self, batch: Any) -> Any:
        """Give each device its part of a batch, from the part that a process read."""
        rows = NamedSharding(self.mesh, PartitionSpec("data"))
        return jax.make_array_from_process_local_data(rows, batch)

    def rate(self, scale: Any) -> optax.Schedule:
        """Return the learning rate by step, times a factor."""
        schedule = self.recipe.schedule(self.recipe.rate, self.total)
        return lambda step: schedule(step) * scale

    def start(self, model: Any, seed: int) -> TrainState:
        """Return the state before the first step."""
        statistics = {}
        if self.recipe.normalize:
            statistics = {
                name: jnp.zeros((2, shape[-1]))
                for name, shape in model.arch.kernel_shapes().items()
                if len(shape) == 4
            }
        state = TrainState(
            model=model,
            average=jax.tree.map(jnp.copy, model) if self.recipe.average else None,
            statistics=statistics,
            opt_state=self.recipe.optimizer(self.rate(1.0)).init(model),
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(jax.random.key(seed)),
            sums=jnp.zeros((PARTS, 2)),
        )
        return self.replicate(state)

    def finish(self, state: TrainState) -> ConvNet:
        """Return the network to evaluate and to keep, on the default device."""
        model = state.model if state.average is None else state.average
        values = jax.device_get((model, state.statistics))
        return fold(*jax.tree.map(jnp.asarray, values))

    def __call__(
        self,
        state: TrainState,
        images: UInt8[Array, "b h w c"],
        labels: Int[Array, " b"],
        scale: Float[Array, ""],
    ) -> tuple[TrainState, Float[Array, " 2"]]:
        """Update the state; return it with the loss and accuracy of the batch.

        With mixup, the right class is that of the larger share.

        Args:
            state: The state before the step.
            images: Pixels.
            labels: Class of each image.
            scale: Factor of the learning rate.
        """
        run_key = jax.random.wrap_key_data(state.key)
        # Epochs use the same key folded with their number: keep steps apart from them.
        key = jax.random.fold_in(jax.random.fold_in(run_key, 2**31), state.step)
        view_key, hole_key, dropout_key, mix_key = jax.random.split(key, 4)
        inputs = self._cut_views(images, view_key, state.model.arch.input_hw)
        if cutout := self.recipe.augmentation.cutout:
            inputs = cut_out(inputs, hole_key, cutout)
        targets = optax.smooth_labels(
            jax.nn.one_hot(labels, state.model.arch.num_classes),
            self.recipe.label_smoothing,
        )
        if alpha := self.recipe.mixup:
            share = jax.random.beta(mix_key, alpha, alpha)
            inputs, targets = (mix_neighbors(x, share) for x in (inputs, targets))
        keys = jax.random.split(dropout_key, self.batch_size)
        (loss, (accuracy, statistics)), grads = self._gradients(
            state.model, inputs, targets, keys
        )
        optimizer = self.recipe.optimizer(self.rate(scale))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
        model, average = optax.apply_updates(state.model, updates), state.average
        # A short memory at first, so that the starting weights are soon forgotten.
        steps = state.step.astype(jnp.float32)
        decay = jnp.minimum(self.recipe.average or _MEMORY, steps / (10 + steps))
        if average is not None:
            average = optax.incremental_update(model, average, 1 - decay)
        statistics = jax.tree.map(
            lambda new, old: decay * old + (1 - decay) * new,
            statistics,
            state.statistics,
        )
        state = state._replace(
            model=model,
            average=average,
            statistics=statistics,
            opt_state=opt_state,
            step=state.step + 1,
        )
        return state, jnp.stack([loss, accuracy])

    def _cut_views(self, images: Array, key: Array, size: tuple[int, int]) -> Array:
        views, preprocess = self.recipe.augmentation, self.preprocess
        if preprocess.crop < 1:
            # As in section 3, the mean image is subtracted before crops are cut.
            return crop_and_flip(preprocess.subtract_mean(images), key, views, size)
        return preprocess(crop_and_flip(images, key, views))

    def _gradients(self, model: Any, images: Array, targets: Array, keys: Array):
        def local(*batch: Any) -> Any:
            value_and_grad = jax.value_and_grad(self._loss, has_aux=True)
            return jax.lax.pmean(value_and_grad(*batch), "data")

        split, whole = PartitionSpec("data"), PartitionSpec()
        return jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(whole, split, split, split),
            out_specs=whole,
            check_vma=False,
        )(model, images, targets, keys)

    def _loss(self, model: ConvNet, images: Array, targets: Array, keys: Array):
        statistics: Statistics = {}

        def normalize(name: str, x: Array) -> Array:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            moments = jnp.stack(
                [wide.mean((0, 1, 2)), jnp.square(wide).mean((0, 1, 2))]
            )
            mean, square = jax.lax.pmean(moments, "data")
            variance = jnp.maximum(square - jnp.square(mean), 0)
            statistics[name] = jnp.stack([mean, variance])
            return ((wide - mean) * jax.lax.rsqrt(variance + _EPSILON)).astype(x.dtype)

        logits = model(
            images,
            dropout_keys=keys,
            normalize=normalize if self.recipe.normalize else None,
        )
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        is_right = logits.argmax(-1) == targets.argmax(-1)
        return loss, (is_right.mean(), statistics)

"""What a network makes of an image with a square of it covered (section 4.2, Fig. 7).

A square changes only a part of each map: the places whose receptive fields it touches.
`occlusion` recomputes these alone. The rest of each map is that of the clean image, so
that the result is the one of as many full passes, to rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from zfnet_jax import ops
from zfnet_jax.arch import ContrastNorm, Conv, Dense, Layer, MaxPool
from zfnet_jax.model import ConvNet

Pair = tuple[int, int]

# Squares that go through a convolution together: their windows stay in the cache. The
# dense layers, whose weights do not, take more of them at once.
_TOGETHER, _GROUPS = 48, 16


@dataclasses.dataclass(frozen=True, eq=False)
class Occlusion:
    """What becomes of one image's features and classes as a square slides over it.

    Attributes:
        tops: First covered row of each position of the square, in pixels.
        lefts: First covered column.
        size: Height and width of the square, in pixels.
        logits: For each position.
        probability: Of the target class.
        label: The most probable class.
        activity: Sum of one map of the last convolution, panel (b) of Fig. 7.
        layer: Its layer.
        unit: Which map of it.
        clean_logits: Those of the image without a square.
        clean_activity: The activity without one.
    """

    tops: Int[np.ndarray, " rows"]
    lefts: Int[np.ndarray, " cols"]
    size: int
    logits: Float32[np.ndarray, "rows cols classes"]
    probability: Float32[np.ndarray, "rows cols"]
    label: Int32[np.ndarray, "rows cols"]
    activity: Float32[np.ndarray, "rows cols"]
    layer: str
    unit: int
    clean_logits: Float32[np.ndarray, " classes"]
    clean_activity: float

    @property
    def boxes(self) -> Int[np.ndarray, "rows cols 4"]:
        """Top, left, bottom and right of each square, the last two exclusive."""
        tops, lefts = np.meshgrid(self.tops, self.lefts, indexing="ij")
        return np.stack([tops, lefts, tops + self.size, lefts + self.size], -1)

    def by_pixel(
        self, values: Float[np.ndarray, "rows cols"]
    ) -> Float[np.ndarray, "h w"]:
        """Of each pixel of the image the mean of `values` over squares that cover it.

        0 where none does, which takes a stride above the size.

        Args:
            values: One for each position, such as the drop of a probability.
        """
        down, across = (
            (np.subtract.outer(np.arange(first[-1] + self.size), first) >= 0)
            & (np.subtract.outer(np.arange(first[-1] + self.size), first) < self.size)
            for first in (self.tops, self.lefts)
        )
        counts = np.outer(down.sum(1), across.sum(1)).clip(1)
        return down @ np.asarray(values, np.float64) @ across.T / counts


def occlusion(
    model: ConvNet,
    image: Float[Array | np.ndarray, "h w c"],
    target: int,
    size: int,
    stride: int,
    fill: float | Float[Array | np.ndarray, "*shape"] = 0.0,
    *,
    unit: int | None = None,
) -> Occlusion:
    """Slide a square over an image and record what the network makes of the rest.

    Args:
        model: The network, with one convolution at least.
        image: A preprocessed image of the architecture's size.
        target: The class whose probability is followed.
        size: Height and width of the square, in pixels.
        stride: Pixels from one position to the next; the last square of a row or column
            is moved back to the border, so that up to a stride of `size` every pixel is
            covered by some square.
        fill: What a covered pixel becomes, in the units of `image`: a number, or an
            array that broadcasts to its shape. The 0 of preprocessed images is the mean
            image.
        unit: The map of the last convolution whose activity is summed; if not given,
            the one with the strongest activation in the clean image.

    Raises:
        ValueError: there is no such class or unit, the square does not fit the image,
            the stride is below 1, `fill` does not fit, or the network has no
            convolution.
    """
    arch = model.arch
    height, width = arch.input_hw
    if image.shape != (height, width, arch.channels):
        raise ValueError(
            f"{arch.name} takes an image of shape "
            f"({height}, {width}, {arch.channels}), not {image.shape}"
        )
    if not 0 <= target < arch.num_classes:
        raise ValueError(
            f"target {target} is not one of the classes 0 to {arch.num_classes - 1}"
        )
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"a square of {size} pixels does not fit an image of {height} x {width}"
        )
    if stride < 1:
        raise ValueError(f"stride must be at least 1 pixel, not {stride}")
    try:
        cover = np.broadcast_to(np.asarray(fill, np.float32), image.shape)
    except ValueError:
        raise ValueError(
            f"fill of shape {np.shape(fill)} does not fit an image of {image.shape}"
        ) from None
    convs = [layer for layer in arch.layers if isinstance(layer, Conv)]
    if not convs:
        raise ValueError(f"{arch.name} has no convolution")
    last = convs[-1]
    if unit is not None and not 0 <= unit < last.features:
        raise ValueError(
            f"unit {unit} is not one of {last.name}'s, 0 to {last.features - 1}"
        )

    tops, lefts = (
        np.minimum(np.arange(-(-(extent - size) // stride) + 1) * stride, extent - size)
        for extent in (height, width)
    )
    places = np.stack(np.meshgrid(tops, lefts, indexing="ij"), -1).reshape(-1, 2)
    graph, weights = nnx.split(model)
    clean = _clean(graph, weights, jnp.asarray(image))
    top_map = clean[last.name]
    strongest = int(top_map.max((0, 1)).argmax()) if unit is None else unit

    stages = _plan(model, places, size)
    cover = jnp.asarray(cover, model.dtype)
    groups = -(-len(places) // _TOGETHER)
    order = np.arange(groups * -(-len(places) // groups)).clip(max=len(places) - 1)
    flat, logits, activity = [], [], []
    for chosen in np.split(order, groups):
        seen = _cover(cover, places[chosen], size)
        for stage in stages:
            seen = stage(seen, clean, chosen)
            if stage.layer is last:
                start = stage.starts[chosen]
                activity.append(_activity(top_map, seen, start, strongest))
        flat.append(seen)
        if len(flat) == _GROUPS or len(activity) == groups:
            logits.append(_classified(graph, weights, tuple(flat)))
            flat = []
    shape = len(tops), len(lefts)
    found, total = (
        np.concatenate(parts)[: len(places)].reshape(*shape, *parts[0].shape[1:])
        for parts in (logits, activity)
    )
    return Occlusion(
        tops=tops,
        lefts=lefts,
        size=size,
        logits=found,
        probability=np.asarray(jax.nn.softmax(found))[..., target],
        label=found.argmax(-1).astype(np.int32),
        activity=total,
        layer=last.name,
        unit=strongest,
        clean_logits=np.asarray(clean["logits"]),
        clean_activity=float(top_map[:, :, strongest].astype(jnp.float32).sum()),
    )


def share_on(values: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> float:
    """How much of what is above zero in a map lies on an object.

    Args:
        values: One number for each pixel, such as `Occlusion.by_pixel` of a drop.
        mask: True on the object.

    Returns:
        A share from 0 to 1; NaN where nothing is above zero. A map that is the same
        everywhere has the object's share of the image, which is chance.
    """
    above = np.maximum(values, 0)
    total = above.sum()
    return float(above[mask].sum() / total) if total > 0 else math.nan


@dataclasses.dataclass(frozen=True)
class _Stage:
    """How one layer is recomputed where a square can change it.

    Attributes:
        layer: The layer; None stands for the map that the first dense layer flattens.
        below: Name of the map below; "image" for the image.
        weights: Kernel and bias, if the layer has any.
        starts: First row and column that are recomputed, for each square.
        sizes: Rows and columns of what these see of the padded map below, and of a
            canvas that holds that and all that was recomputed there.
        corners: Of the canvas in the padded map below; in the canvas, of what was
            recomputed below, and of what is seen; for each square.
    """

    layer: Layer | None
    below: str
    weights: tuple[Array, ...]
    starts: Int[np.ndarray, "squares 2"]
    sizes: tuple[Pair, Pair] = ((0, 0), (0, 0))
    corners: Int[np.ndarray, "squares 3 2"] | None = None

    def __call__(
        self,
        changed: Float[Array, "b h w c"],
        clean: dict[str, Array],
        chosen: Int[np.ndarray, " b"],
    ) -> Float[Array, "b ..."]:
        """From what was recomputed of the map below to what is of the layer's own."""
        if isinstance(self.layer, ContrastNorm):
            return _normalised(changed, self.layer)
        assert self.corners is not None
        corners = self.corners[chosen].astype(np.int32)
        below = clean[self.below]
        return _recomputed(
            changed, below, corners, self.weights, self.layer, self.sizes
        )


def _plan(
    model: ConvNet, places: Int[np.ndarray, "squares 2"], size: int
) -> list[_Stage]:
    """The stages from the image to what the first dense layer flattens."""
    stages: list[_Stage] = []
    below = "image"
    # What changes of the map below, and what is recomputed of it, which is of one size
    # for all squares: first rows and columns, and those after the last.
    low, high = places, places + size
    starts, extents = places, np.array((size, size))
    for layer, in_shape, out_shape in model.arch.walk():
        in_hw = np.array(in_shape[:2])
        if isinstance(layer, ContrastNorm):
            stages.append(_Stage(layer, below, (), starts))
            below = layer.name
            continue
        if isinstance(layer, Dense):
            # It flattens the whole map, which is one window of that size.
            spec, out_hw, kernel = None, np.ones(2, int), in_hw
            stride, padding = np.ones(2, int), np.zeros((2, 2), int)
        else:
            spec, out_hw, kernel = layer, np.array(out_shape[:2]), layer.kernel
            stride, padding = np.array(layer.stride), np.array(layer.padding)
        before = padding[:, 0]
        low = (low + before - kernel) // stride + 1
        low = low.clip(0, out_hw - 1)
        high = ((high - 1 + before) // stride + 1).clip(low + 1, out_hw)
        was, was_extents = starts + before, extents
        extents = (high - low).max(0)
        starts = np.minimum(low, out_hw - extents)
        first, patch = starts * stride, (extents - 1) * stride + kernel
        corner = np.minimum(was, first)
        canvas = (np.maximum(was + was_extents, first + patch) - corner).max(0)
        corner = np.minimum(corner, in_hw + padding.sum(1) - canvas)
        weights = ()
        if isinstance(spec, Conv):
            affine = getattr(model, spec.name)
            weights = tuple(
                x[...].astype(model.dtype) for x in (affine.kernel, affine.bias)
            )
        sizes = (int(patch[0]), int(patch[1])), (int(canvas[0]), int(canvas[1]))
        corners = np.stack([corner, was - corner, first - corner], 1)
        stages.append(_Stage(spec, below, weights, starts, sizes, corners))
        if spec is None:
            break
        below = layer.name
    return stages


@functools.partial(jax.jit, static_argnums=0)
def _clean(graph, weights, image: Float[Array, "h w c"]) -> dict[str, Array]:
    """The image and every feature of it."""
    model = nnx.merge(graph, weights)
    found = model.features(image[None])
    features = found.features
    maps = {name: value[0] for name, value in features.items()}
    return {"image": image.astype(model.dtype), **maps}


@functools.partial(jax.jit, static_argnums=2)
def _cover(
    cover: Float[Array, "h w c"], places: Int[Array, "b 2"], size: int
) -> Float[Array, "b s s c"]:
    channels = cover.shape[-1]
    return lax.map(
        lambda place: lax.dynamic_slice(cover, (*place, 0), (size, size, channels)),
        places,
    )


@functools.partial(jax.jit, static_argnums=(4, 5))
def _recomputed(
    changed: Float[Array, "b h w c"],
    below: Float[Array, "H W c"],
    corners: Int[Array, "b 3 2"],
    weights: tuple[Array, ...],
    layer: Layer | None,
    sizes: tuple[Pair, Pair],
) -> Float[Array, "b ..."]:
    """Cut what a layer sees out of the map below, with its changes, and apply it."""
    assert layer is None or isinstance(layer, Conv | MaxPool)
    padding = ((0, 0), (0, 0)) if layer is None else layer.padding
    outside = -jnp.inf if isinstance(layer, MaxPool) else 0
    padded = jnp.pad(below, (*padding, (0, 0)), constant_values=outside)
    (patch, canvas), channels = sizes, below.shape[-1]

    def cut(item: tuple[Array, Array]) -> Array:
        change, (corner, at, first) = item
        around = lax.dynamic_slice(padded, (*corner, 0), (*canvas, channels))
        around = lax.dynamic_update_slice(around, change, (*at, 0))
        return lax.dynamic_slice(around, (*first, 0), (*patch, channels))

    # A loop copies windows; batched gathers and scatters go element by element.
    patches = lax.map(cut, (changed, corners))
    if layer is None:
        return patches.reshape(len(patches), -1)
    if isinstance(layer, MaxPool):
        return ops.max_pool(patches, dataclasses.replace(layer, padding=0))[0]
    kernel, bias = weights
    bare = dataclasses.replace(layer, padding=0)
    return jax.nn.relu(ops.conv(patches, kernel, bare) + bias)


@functools.partial(jax.jit, static_argnums=1)
def _normalised(
    maps: Float[Array, "b h w c"], layer: ContrastNorm
) -> Float[Array, "b h w c"]:
    return ops.contrast_norm(maps, layer)


@jax.jit
def _activity(
    clean: Float[Array, "H W c"],
    changed: Float[Array, "b h w c"],
    starts: Int[Array, "b 2"],
    unit: Int[Array, ""],
) -> Float[Array, " b"]:
    """Sum of one map, with its changes."""

    def total(item: tuple[Array, Array]) -> Array:
        change, start = item
        whole = lax.dynamic_update_slice(clean[..., unit], change, tuple(start))
        return whole.astype(jnp.float32).sum()

    return lax.map(total, (changed[..., unit], starts))


@functools.partial(jax.jit, static_argnums=0)
def _classified(
    graph, weights, flat: tuple[Float[Array, "b n"], ...]
) -> Float[Array, "m classes"]:
    """Logits from what the first dense layer takes."""
    model = nnx.merge(graph, weights)
    return model.classify(jnp.concatenate(flat))

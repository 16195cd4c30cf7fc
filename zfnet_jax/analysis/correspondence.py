"""Whether hiding the same part changes features alike across images (Table 1, Fig. 8).

Section 4.3 of the paper asks whether the network relates parts, such as eyes and noses,
between images of the same kind, though nothing in it says so. One part is masked in
each image. With x_i the features of image i at a layer and x̃_i those of the masked
image, ε_i = x_i - x̃_i, and the paper sums the Hamming distance of their signs:

    Δ = Σ_{i≠j} H(sign ε_i, sign ε_j)

The lower, the more alike. Here Δ is the mean over pairs and dimensions, so that it lies
between 0 and 1 and does not depend on how many images there are. A sign is -1, 0 or 1:
a rectified feature often does not change at all. So a mask that changes nothing has
Δ = 0 as well; the share of the features that change is told beside it.

The paper compares with random boxes. A part can be more alike than these because it is
of the object and they are of the background. Whether it matters which part it is, is
told by a second control, beyond the paper: one of the parts, in each image another.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, Int, Int8, Int64, Shaped

from zfnet_jax.arch import Dense
from zfnet_jax.model import ConvNet

_TOGETHER = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Correspondence:
    """How alike the features of one layer change when a part is hidden.

    Attributes:
        parts: Names of the p parts, in order.
        delta: The paper's Δ, mean over pairs of images and over dimensions, 0 to 1.
        spread: Its standard deviation over the pairs of images.
        changed: Share of the features that change at all, mean over images.
        random: Δ of r draws of random boxes, of each part's size.
        random_changed: `changed` of these, mean over draws.
        mixed: Δ of r draws of any of the parts, one at random in each image.
    """

    parts: tuple[str, ...]
    delta: Float64[np.ndarray, " p"]
    spread: Float64[np.ndarray, " p"]
    changed: Float64[np.ndarray, " p"]
    random: Float64[np.ndarray, "p r"]
    random_changed: Float64[np.ndarray, " p"]
    mixed: Float64[np.ndarray, " r"]

    @property
    def p_random(self) -> Float64[np.ndarray, " p"]:
        """Whether a part is more alike than random boxes are: a permutation test.

        The hypothesis is that a part's boxes are random boxes too. Then they and the r
        draws are r + 1 sets in no order, each as likely as the others to have the k-th
        lowest Δ. The p-value is the part's rank from below, ties counted against it,
        (1 + number of draws with Δ no higher) / (1 + r): one-sided, exact for any
        images and network, never below 1 / (1 + r). It says nothing of other images.
        """
        return self._rank(self.random)

    @property
    def p_mixed(self) -> Float64[np.ndarray, " p"]:
        """The same against `mixed`: the parts of each image exchange their names.

        The hypothesis is that within an image one part is as good as another. Of a
        single part it is 1.
        """
        return self._rank(self.mixed[None])

    def _rank(self, draws: Float64[np.ndarray, "_ r"]) -> Float64[np.ndarray, " p"]:
        # Rounding must not break a tie; steps of Δ are far larger.
        lower = (draws <= self.delta[:, None] + 1e-12).sum(1)
        return (1 + lower) / (1 + draws.shape[1])


def correspondence(
    model: ConvNet,
    images: Float[np.ndarray, "n h w c"],
    boxes: Mapping[str, Int[np.ndarray, "n 4"]],
    layers: Sequence[str] | None = None,
    *,
    draws: int = 200,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Correspondence]:
    """Mask each part in every image and compare how features change (section 4.3).

    Masked pixels become 0: the mean image, after preprocessing. The control are
    `random_boxes` of each part's size.

    Args:
        model: The network.
        images: Preprocessed images of the same kind of object, two at least.
        boxes: By the part's name, where it is in each image: top, left, bottom, right
            in pixels, ends exclusive.
        layers: Which; if not given the paper's layers 5 and 7: the features that the
            first dense layer takes, and the last hidden layer.
        draws: How many sets of random boxes for each part, and of mixed parts.
        seed: Of these.
        progress: Is told how many sets of boxes are done, of parts times (1 + draws).

    Returns:
        By layer, from the image up.

    Raises:
        ValueError: there are fewer than two images, no parts or draws, no such layer,
            or a box is empty, leaves its image or covers it; the message says which.
    """
    arch = model.arch
    count = len(images)
    if count < 2:
        raise ValueError(f"two images at least are compared, not {count}")
    if not boxes:
        raise ValueError("boxes must hold one part at least")
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, not {draws}")
    for part, places in boxes.items():
        if len(places) != count:
            raise ValueError(f"{part}: {len(places)} boxes for {count} images")
        for index, box in enumerate(places.tolist()):
            if fault := box_fault(box, arch.input_hw):
                raise ValueError(f"{part} in image {index}: {fault}")
    if layers is None:
        hidden = arch.layers[:-1]
        spatial = [layer.name for layer in hidden if not isinstance(layer, Dense)]
        layers = (*spatial[-1:], hidden[-1].name)
    wanted = {arch.layer(name).name for name in layers}
    names = tuple(layer.name for layer in arch.layers if layer.name in wanted)

    graph, weights = nnx.split(model)
    # x and x̃ come from one program, an image in the same place of its batch, so that a
    # feature that does not see the mask is the same to the last bit.
    size = min(count, _TOGETHER)
    starts = range(0, count, size)
    padded = np.resize(images, (len(starts) * size, *images.shape[1:]))

    def seen(masks: np.ndarray) -> dict[str, np.ndarray]:
        filled = np.resize(masks, (len(padded), 4))
        parts = [
            _features(graph, weights, padded[i : i + size], filled[i : i + size], names)
            for i in starts
        ]
        return {
            name: np.concatenate([part[name] for part in parts])[:count]
            for name in names
        }

    whole = seen(np.zeros((count, 4), np.int64))
    signs: dict[str, list[np.ndarray]] = {name: [] for name in names}
    control: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for done, places in enumerate(boxes.values()):
        drawn = random_boxes(places, arch.input_hw, draws, seed)
        for step, masks in enumerate((places, *drawn)):
            for name, features in seen(masks).items():
                sign = np.sign(whole[name] - features).astype(np.int8)
                if step == 0:
                    signs[name].append(sign)
                else:
                    mean = sign_distances(sign).mean(), (sign != 0).mean()
                    control[name].append(np.array(mean))
            if progress is not None:
                progress(done * (1 + draws) + step + 1)
    # The same mixtures for all layers.
    chosen = np.random.default_rng((seed, 1)).integers(len(boxes), size=(draws, count))
    found = {}
    for name in names:
        of_parts = np.stack(signs[name])
        distances = np.stack([sign_distances(sign) for sign in of_parts])
        random = np.stack(control[name]).reshape(len(boxes), draws, 2)
        mixtures = (of_parts[parts, np.arange(count)] for parts in chosen)
        found[name] = Correspondence(
            parts=tuple(boxes),
            delta=distances.mean(1),
            spread=distances.std(1),
            changed=(of_parts != 0).mean((1, 2)),
            random=random[..., 0],
            random_changed=random[..., 1].mean(1),
            mixed=np.array([sign_distances(sign).mean() for sign in mixtures]),
        )
    return found


def sign_distances(signs: Int8[np.ndarray, "n d"]) -> Float64[np.ndarray, " pairs"]:
    """Share of the dimensions in which two sign vectors differ, for each pair i < j.

    Args:
        signs: -1, 0 or 1.
    """
    # Sums of ones, exact in float32 up to 2**24 dimensions, by fast products.
    same = sum(
        (are := (signs == value).astype(np.float32)) @ are.T for value in (-1, 0, 1)
    )
    upper = np.triu_indices(len(signs), 1)
    return 1 - np.asarray(same, np.float64)[upper] / signs.shape[1]


def masked(
    images: Shaped[Array | np.ndarray, "n h w c"],
    boxes: Int[Array | np.ndarray, "n 4"],
    fill: float | Shaped[np.ndarray, "h w c"] = 0.0,
) -> Shaped[Array, "n h w c"]:
    """Fill a box in each image; also under jit.

    Args:
        images: [n, h, w, c], of any dtype, which stays.
        boxes: Top, left, bottom, right in pixels, ends exclusive.
        fill: A value, or an image that shows in the box.
    """
    rows = jnp.arange(images.shape[1])[:, None]
    columns = jnp.arange(images.shape[2])
    top, left, bottom, right = (edge[:, None, None] for edge in jnp.asarray(boxes).T)
    inside = (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)
    return jnp.where(inside[..., None], jnp.asarray(fill, images.dtype), images)


def random_boxes(
    boxes: Int[np.ndarray, "n 4"],
    image_hw: tuple[int, int],
    draws: int,
    seed: int = 0,
) -> Int64[np.ndarray, "draws n 4"]:
    """Boxes of the same sizes at random places, the paper's control.

    Every place inside the image is as likely, the part's own included: else no set of
    boxes could be a draw of all others, and the permutation test would not be exact.

    Args:
        boxes: Top, left, bottom, right in pixels, ends exclusive, inside the image.
        image_hw: Rows and columns of the images.
        draws: How many times.
        seed: The same seed gives parts of one size the same places.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    places = np.random.default_rng(seed).random((draws, len(boxes), 2))
    corners = np.floor(places * (np.array(image_hw) - sizes + 1)).astype(np.int64)
    return np.concatenate([corners, corners + sizes], 2)


def box_fault(box: Sequence[int], image_hw: tuple[int, int]) -> str | None:
    """What is wrong with a box for an image of this size; None if nothing is."""
    top, left, bottom, right = box
    named = f"the box {top}, {left}, {bottom}, {right} (top, left, bottom, right)"
    height, width = image_hw
    if bottom <= top or right <= left:
        return f"{named} is empty"
    if top < 0 or left < 0 or bottom > height or right > width:
        return f"{named} leaves the image of {height} x {width}"
    if (bottom - top, right - left) == image_hw:
        return f"{named} covers the whole image"
    return None


@functools.partial(jax.jit, static_argnums=(0, 4))
def _features(
    graph,
    weights,
    images: Array,
    boxes: Array,
    names: tuple[str, ...],
) -> dict[str, Float[Array, "n d"]]:
    """The features of images with a box masked; an empty box masks nothing."""
    model = nnx.merge(graph, weights)
    features = model.features(masked(images, boxes), until=names[-1]).features
    return {name: features[name].reshape(len(images), -1) for name in names}

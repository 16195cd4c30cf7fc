"""Which pixels a class answers to: signed maps, and numbers to judge them by.

A map is what comes down from a logit, or from any other scalar, to the pixels of each
image: by the derivative (`saliency`), or with another backward rule at every ReLU
(`guided_backprop`, `deconvnet`; see `zfnet_jax.relu_rules`). It takes a function and
knows no model.

To judge a map, its pixels are ranked by `importance`. The pointing game asks whether
the first lies on the object; insertion and deletion ask what the function itself makes
of the ranking, with no knowledge of where the object is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from zfnet_jax.relu_rules import with_relu_rule

AnyArray = Array | np.ndarray
Target = int | np.integer | Int[AnyArray, "..."] | None


# Maps.


def saliency(
    fn: Callable[[Array], Array], x: Float[AnyArray, "b h w c"], target: Target
) -> Float[Array, "b h w c"]:
    """The derivative of a logit, or of any scalar, by the pixels.

    Simonyan, Vedaldi & Zisserman 2014 (arXiv 1312.6034), section 3, with its sign; they
    show its magnitude, as `importance` gives it. `fn` may hold any nonlinearity.

    All images go through `fn` together. Their maps are those of each alone, as long as
    `fn` treats each by itself. To do it often, `jax.jit` a function of images and
    targets that calls this one; `fn` is traced anew at each call.

    Args:
        fn: From images to logits, float[b, classes], or to a scalar for each image,
            float[b]; a network with its parameters inside.
        x: Images as `fn` takes them.
        target: Which logit: one for all images, or int[b], one for each. None: `fn`
            gives scalars. Under `jax.jit`, where it cannot be seen, a target that is
            out of range gives zeros.

    Returns:
        Signed maps, in what `fn` gives per unit of `x`.

    Raises:
        ValueError: `x` is not float[b, h, w, c], `fn` gives something else, or there is
            no such logit.
    """
    return _sent_down(fn, x, target)


def guided_backprop(
    fn: Callable[[Array], Array],
    x: Float[AnyArray, "b h w c"],
    target: Target,
    allow: Collection[str] = (),
) -> Float[Array, "b h w c"]:
    """What comes down by guided backpropagation.

    Springenberg et al. 2015 (arXiv 1412.6806), section 3.4: each ReLU passes on what is
    positive, and that only where it was active itself.

    Args:
        fn: As for `saliency`, with one ReLU at least, and otherwise made of what
            `relu_rules.with_relu_rule` has the rule defined for. Of a `ConvNet` see
            `deconvnet`.
        x: Images as `fn` takes them.
        target: As for `saliency`.
        allow: Names of other primitives, to be differentiated as they are.

    Returns:
        Signed maps: the last rectification is above the first layer's kernels.

    Raises:
        ValueError: As for `saliency`, or `fn` has no ReLU, or an operation that the
            rule is not defined for.
    """
    return _sent_down(with_relu_rule(fn, "guided", allow), x, target)


def deconvnet(
    fn: Callable[[Array], Array],
    x: Float[AnyArray, "b h w c"],
    target: Target,
    allow: Collection[str] = (),
) -> Float[Array, "b h w c"]:
    """What comes down by the deconvnet's rule (section 2.1): each ReLU rectifies it.

    What starts down is 1, where `zfnet_jax.deconvnet.project` starts with the
    activation itself: of a positive logit, its maps are these times the logit.

    The rule acts at the ReLUs where they stand. A `ConvNet` called as `model(x)` pools
    before it rectifies, which gives the same logits faster but another map;
    `model` is the network as the paper draws it.

    Args:
        fn: As for `guided_backprop`.
        x: Images as `fn` takes them.
        target: As for `saliency`.
        allow: Names of other primitives, to be differentiated as they are: those of
            contrast normalisation are "square", "pow" and "div".

    Returns:
        Signed maps.

    Raises:
        ValueError: As for `guided_backprop`.
    """
    return _sent_down(with_relu_rule(fn, "deconvnet", allow), x, target)


def _sent_down(
    fn: Callable[[Array], Array], x: Float[AnyArray, "b h w c"], target: Target
) -> Array:
    _check_images(x)
    out, down = jax.vjp(fn, jnp.asarray(x))
    return down(_chosen(out, target, len(x)))[0]


def _chosen(out: Array, target: Target, batch: int) -> Array:
    """One where an output is meant and zero elsewhere, in its shape and dtype."""
    if not isinstance(out, jax.Array) or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"fn must give one array of floats, got {_shown(out)}")
    if target is None:
        if out.shape != (batch,):
            raise ValueError(
                f"with target None fn must give float[{batch}], a scalar for each "
                f"image, got {_shown(out)}"
            )
        return jnp.ones_like(out)
    if out.ndim != 2 or len(out) != batch:
        raise ValueError(
            f"with a target fn must give logits float[{batch}, classes], got "
            f"{_shown(out)}"
        )
    index = target if isinstance(target, Tracer) else np.asarray(target)
    if not jnp.issubdtype(index.dtype, jnp.integer) or index.shape not in (
        (),
        (batch,),
    ):
        raise ValueError(
            f"target must be an int or int[{batch}], one for each image, got "
            f"{_shown(index)}"
        )
    classes = out.shape[1]
    if isinstance(index, np.ndarray):
        if (outside := index[(index < 0) | (index >= classes)]).size:
            raise ValueError(
                f"target {outside.flat[0]} is not one of the logits 0 to {classes - 1}"
            )
    chosen = jax.nn.one_hot(index, classes, dtype=out.dtype)
    return jnp.broadcast_to(chosen, out.shape)


def _check_images(x: AnyArray) -> None:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be float[b, h, w, c], got {_shown(x)}")


def _shown(value: object) -> str:
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    return type(value).__name__


# Numbers.


def importance(maps: Float[AnyArray, "b h w c"]) -> Float[Array, "b h w"]:
    """One number for each pixel: the greatest magnitude among its channels.

    Simonyan et al. 2014, section 3.1. Of a negative value too the magnitude counts: a
    pixel that lowers the logit when it grows raises it when it shrinks.
    """
    return jnp.abs(jnp.asarray(maps)).max(-1)


def pointing_game(
    importances: Float[AnyArray, "b h w"],
    masks: Bool[AnyArray, "b h w"],
    tolerance: float = 0.0,
) -> Float[np.ndarray, " b"]:
    """Whether the most important pixel lies on the object.

    Zhang et al. 2016 (Excitation Backprop, arXiv 1608.00507): the share of images where
    it does is the accuracy of a method. They count a point within 15 pixels of the
    object as well, on images of about 224 pixels.

    Where several pixels share the maximum, one of them is picked at random: the result
    is the expected value of that, and so 1 or 0 only where they agree. A map that is
    the same everywhere gets the share of the image that the object covers.

    Args:
        importances: One number for each pixel, such as `importance` gives.
        masks: True on the object.
        tolerance: Distance in pixels, between the centres of the most important pixel
            and of the nearest one of the object, up to which it is a hit.

    Returns:
        For each image from 0, a miss, to 1, a hit.

    Raises:
        ValueError: The shapes differ, `importances` are not finite, a mask holds no
            object, or `tolerance` is not a number from 0 on.
    """
    values, objects = np.asarray(importances), np.asarray(masks)
    if objects.ndim != 3 or objects.dtype != np.bool_:
        raise ValueError(f"masks must be bool[b, h, w], got {_shown(objects)}")
    _check_importances(values, objects.shape)
    if not 0 <= tolerance < math.inf:
        raise ValueError(
            f"tolerance must be a number of pixels from 0 on, not {tolerance}"
        )
    if (empty := np.flatnonzero(~objects.any((1, 2)))).size:
        raise ValueError(f"masks[{empty[0]}] holds no object to point at")
    peaks = values == values.max((1, 2), keepdims=True)
    hits = [
        (_distances(mask)[peak] <= tolerance).mean()
        for mask, peak in zip(objects, peaks, strict=True)
    ]
    return np.array(hits, np.float64)


def _distances(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """From the centre of each pixel to that of the nearest one in the mask."""
    squared = np.where(mask, 0.0, np.inf)
    # Squares add up, so that one axis can be searched after the other.
    for extent in mask.shape:
        along = np.subtract.outer(np.arange(extent), np.arange(extent)) ** 2
        squared = (squared + along[:, :, None]).min(1).T
    return np.sqrt(squared)


class Curves(NamedTuple):
    """What becomes of a class as pixels change, the most important first.

    Attributes:
        fractions: Share of the pixels that have changed, from 0 to 1.
        values: For each image the probability of the target, or the scalar.
        areas: For each image the area under `values` over `fractions`, by the
            trapezoidal rule.
    """

    fractions: Float[Array, " points"]
    values: Float[Array, "b points"]
    areas: Float[Array, " b"]


def insertion(
    fn: Callable[[Array], Array],
    x: Float[AnyArray, "b h w c"],
    target: Target,
    importances: Float[AnyArray, "b h w"],
    baseline: float | Float[AnyArray, "*shape"] = 0.0,
    steps: int | None = None,
) -> Curves:
    """Put pixels into a baseline, the most important first, and follow a class.

    Petsiuk, Das & Saenko 2018 (RISE, arXiv 1806.07421); a larger area is better. They
    insert into a blurred image. Equal importances go in row-major order.

    One program runs all steps, compiled anew at each call; to do many batches,
    `jax.jit` a function of images, targets and importances that calls this one.

    Args:
        fn: From images to logits, float[b, classes], or to a scalar for each image,
            float[b].
        x: Images as `fn` takes them.
        target: The logit whose probability, by the softmax over all, is followed: one
            for all images, or int[b]. None: the scalars that `fn` gives are followed.
        importances: One number for each pixel, such as `importance` gives.
        baseline: What a pixel is before it is inserted, in the units of `x`: a number,
            or an array that broadcasts to the shape of `x`. The 0 of preprocessed
            images is the mean image.
        steps: In how many steps, of an equal number of pixels but for rounding. None:
            as many as an image has rows, as RISE does.

    Raises:
        ValueError: As for `saliency`, or `importances` or `baseline` do not fit `x`,
            `importances` are not finite, or `steps` is not from 1 to the number of
            pixels.
    """
    return _curves(fn, x, target, importances, baseline, steps, inserted=True)


def deletion(
    fn: Callable[[Array], Array],
    x: Float[AnyArray, "b h w c"],
    target: Target,
    importances: Float[AnyArray, "b h w"],
    baseline: float | Float[AnyArray, "*shape"] = 0.0,
    steps: int | None = None,
) -> Curves:
    """Set pixels to a baseline, the most important first, and follow a class.

    As `insertion`, the other way round; a smaller area is better. RISE sets them to a
    constant.

    Args:
        fn: As for `insertion`.
        x: As for `insertion`.
        target: As for `insertion`.
        importances: As for `insertion`.
        baseline: What a pixel is after it is deleted, as for `insertion`.
        steps: As for `insertion`.

    Raises:
        ValueError: As for `insertion`.
    """
    return _curves(fn, x, target, importances, baseline, steps, inserted=False)


def _curves(
    fn: Callable[[Array], Array],
    x: AnyArray,
    target: Target,
    importances: AnyArray,
    baseline: float | AnyArray,
    steps: int | None,
    inserted: bool,
) -> Curves:
    _check_images(x)
    batch, height, width, _ = x.shape
    _check_importances(importances, (batch, height, width))
    pixels = height * width
    number: int = height if steps is None else steps
    if not 1 <= number <= pixels:
        raise ValueError(
            f"steps must be from 1 to the {pixels} pixels of an image, not {number}"
        )
    whole = jnp.asarray(x)
    blank = jnp.asarray(baseline, whole.dtype)
    extents = zip(blank.shape[::-1], x.shape[::-1], strict=False)
    if blank.ndim > 4 or any(have not in (1, want) for have, want in extents):
        raise ValueError(f"baseline {_shown(blank)} does not fit x {_shown(whole)}")
    start, end = (blank, whole) if inserted else (whole, blank)
    order = jnp.argsort(-jnp.asarray(importances).reshape(batch, -1), axis=1)
    ranks = jnp.argsort(order, axis=1).reshape(batch, height, width, 1)
    counts = np.arange(number + 1, dtype=np.int32) * pixels // number

    def followed(count: Array) -> Array:
        out = fn(jnp.where(ranks < count, end, start))
        chosen = _chosen(out, target, batch)
        return out if target is None else (jax.nn.softmax(out) * chosen).sum(-1)

    values = lax.map(followed, counts).T
    fractions = jnp.asarray(counts / pixels, values.dtype)
    return Curves(fractions, values, jnp.trapezoid(values, fractions))


def _check_importances(importances: AnyArray, shape: tuple[int, ...]) -> None:
    floats = jnp.issubdtype(importances.dtype, jnp.floating)
    if importances.shape != shape or not floats:
        raise ValueError(
            f"importances must be float[{', '.join(map(str, shape))}], one for each "
            f"pixel, got {_shown(importances)}"
        )
    if not isinstance(importances, Tracer) and not np.isfinite(importances).all():
        raise ValueError("importances hold values that are not finite")

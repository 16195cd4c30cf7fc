"""Which pixels a class responds to: signed maps by three backward rules.

The derivative of a class's logit is due to Simonyan, Vedaldi & Zisserman 2014 (arXiv
1312.6034, section 3); the others apply another backward rule at every ReLU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zfnet_jax import deconvnet
from zfnet_jax.networks import Network, as_network
from zfnet_jax.relu_rules import Rule, check_rule

Target = int | np.integer | str
Targets = Target | Sequence[Target] | Int[Array | np.ndarray, "..."]


def attribute(
    net: Any,
    images: Any,
    targets: Targets,
    *,
    rule: Rule = "gradient",
    strict: bool = True,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "n h w c"]:
    """Attribute a class to the pixels of each image.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> from flax import nnx
        >>> model = zf.ConvNet(zf.ZFNET32, rngs=nnx.Rngs(0))
        >>> images = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
        >>> attribute(model, images, 3).shape
        (2, 32, 32, 3)

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images [n, h, w, c], a source of them, or a path.
        targets: A label or a class name for all images, or one per image.
        rule: Backward rule for ReLUs, as in `with_relu_rule`. "gradient" is the
            derivative, with 0 as the derivative of a ReLU at 0. "guided" and
            "deconvnet" need at least one ReLU.
        strict: Refuse operations that "guided" and "deconvnet" say nothing about,
            instead of differentiating them. "gradient" allows any operation.
        batch_size: Images per batch.
        progress: Called with the number of images done and their total.

    Returns:
        Signed maps in units of the logit per unit of a pixel, in float32, or in float64
        for a float64 network.

    Raises:
        ValueError: There is no such class or rule, the images do not fit the network,
            or the rule does not fit its operations.
    """
    net, images = as_network(net, images)
    check_rule(rule)
    count = len(images)
    labels = net.targets(targets, count)
    maps = np.zeros(0)
    for start, batch, real in net.batches(images, batch_size):
        # The last batch is padded; its padding takes any label.
        batch_labels = np.resize(labels[start : start + real], len(batch))
        part = np.asarray(_attribute(net, batch, batch_labels, rule, strict))
        if not start:
            maps = np.empty((count, *part.shape[1:]), part.dtype)
        maps[start : start + real] = part[:real]
        if progress is not None:
            progress(start + real, count)
    return maps


@functools.partial(jax.jit, static_argnames=("rule", "strict"))
def _attribute(
    net: Network, images: Array, labels: Array, rule: Rule, strict: bool
) -> Float[Array, "b h w c"]:
    def start(logits: Array) -> Array:
        return jax.nn.one_hot(labels, net.num_classes, dtype=logits.dtype)

    if net.is_convnet:
        logits, trace = deconvnet.forward(net.model, images, net.output)
        *_, pixels = deconvnet.backward(net.model, trace, start(logits), rule)
        return pixels
    logits, pull = deconvnet.pull_back(net, images, net.output, rule, strict)
    (maps,) = pull(start(logits))
    return maps.astype(jnp.promote_types(maps.dtype, jnp.float32))

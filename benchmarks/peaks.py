"""Operations of a training step, and what a card can do at best."""

from __future__ import annotations

import re
from typing import Literal

from flax import nnx

import zfnet_jax as zf

Precision = Literal["TF32", "bfloat16"]

# TFLOP/s of dense products with TF32 and bfloat16 inputs, by the vendor's data sheets.
PEAKS = {
    "H100 PCIE": (378, 756),
    "H100": (495, 989),
    "H200": (495, 989),
    "A100": (156, 312),
    "A100 PCIE": (156, 312),
    "L40S": (183, 362),
    "L40": (90.5, 181),
    "L4": (60, 121),
    "A10": (62.5, 125),
    "RTX 4090": (83, 165),
    "RTX 3090": (36, 71),
}
# Words of a device's name that do not change its peak.
_PLAIN = re.compile(r"NVIDIA|GEFORCE|SXM\d?|HBM\w*|\d+GB")


def find_peak(kind: str, precision: Precision) -> float | None:
    """Look up the peak of a device in FLOP/s; None if its name is not in the table."""
    words = re.split(r"[ -]+", kind.upper())
    name = " ".join(word for word in words if not _PLAIN.fullmatch(word))
    if name not in PEAKS:
        return None
    return 1e12 * PEAKS[name][0 if precision == "TF32" else 1]


def count_flop(arch: zf.Architecture) -> int:
    """Count the operations of a training step for one image.

    Each multiplication and its addition occur three times: in the forward pass, for the
    gradient of the weights, and for that of the inputs, except in the first layer.
    """
    net = zf.network(zf.ConvNet(arch, rngs=nnx.Rngs(0)))
    first = net.layers[arch.layers[0].name].multiply_adds
    return 2 * (3 * net.multiply_adds - first)


def share_of_peak(
    arch: zf.Architecture, images_per_second: float, kind: str, precision: Precision
) -> float | None:
    """Compute the share of a device's peak that training uses; None if unknown."""
    peak = find_peak(kind, precision)
    return None if peak is None else images_per_second * count_flop(arch) / peak

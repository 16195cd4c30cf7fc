"""Captum's projections and occlusion: the other side of the timings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.attr import Occlusion


def captum_projections(
    methods: Sequence[Any], x: torch.Tensor, shape: tuple[int, ...], count: int
) -> Callable[[], None]:
    """Attribute the first units of a layer at the middle of the map, one by one.

    Args:
        methods: Attributions of the layer, one per rule.
        x: The image.
        shape: Rows, columns and units of the layer.
        count: Number of units.
    """
    x = x.requires_grad_()

    def run() -> None:
        for method in methods:
            for unit in range(count):
                with warnings.catch_warnings():
                    # Captum announces its hooks at every call.
                    warnings.simplefilter("ignore")
                    neuron = unit, shape[0] // 2, shape[1] // 2
                    method.attribute(x, neuron).cpu()

    return run


def captum_occlusion(
    model: Any, x: torch.Tensor, target: int, size: int, stride: int
) -> Callable[[int], torch.Tensor]:
    """Slide a square of zeros over an image, in batches of the given size."""
    method = Occlusion(model)

    def run(batch: int) -> torch.Tensor:
        with torch.no_grad():
            return method.attribute(
                x,
                (3, size, size),
                (3, stride, stride),
                baselines=0,
                target=target,
                perturbations_per_eval=batch,
            ).cpu()

    return run

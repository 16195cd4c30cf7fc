"""Engines compute the layers of a network: by its architecture or by replaying it.

An engine takes the weights as an argument. Under `jax.jit` it is static, so a compiled
program serves every network with an equal engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from zfnet_jax import cpu, relu_audit, tracing
from zfnet_jax.adapters import Adapter, module_path
from zfnet_jax.arch import (
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
    Pair,
    has_relu,
    receptive_field,
)
from zfnet_jax.layers import Kind, Layer, Position, Reader
from zfnet_jax.model import ConvNet

# Images of the trace that the layers are read from; one image would look like none.
_TRACED = 2

_KINDS: dict[type, Kind] = {Conv: "conv", MaxPool: "max pool", ContrastNorm: "norm"}


@functools.cache
def _describe(arch: Architecture) -> Mapping[str, Layer]:
    layers, kernels = {}, arch.kernel_shapes()
    for spec, _, shape in arch.walk():
        kernel = math.prod(kernels.get(spec.name, (0,)))
        layers[spec.name] = Layer(
            spec.name,
            _KINDS.get(type(spec), "dense"),
            shape,
            has_relu(spec),
            None if isinstance(spec, Dense) else receptive_field(arch, spec.name),
            parameters=kernel + shape[-1] if kernel else 0,
            multiply_adds=kernel * math.prod(shape[:-1]),
        )
    return types.MappingProxyType(layers)


@dataclasses.dataclass(frozen=True)
class ConvNetEngine:
    """The layers of a `ConvNet`, as its architecture describes them."""

    arch: Architecture

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return (*self.arch.input_hw, self.arch.channels)

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer by name, in order."""
        return _describe(self.arch)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(layer.parameters for layer in self.layers.values())

    def features(
        self,
        weights: ConvNet,
        images: Array,
        names: tuple[str, ...],
        offsets: Mapping[str, Array],
    ) -> dict[str, Array]:
        """Activations by layer."""
        assert not offsets, "deconvnet.backward has the signals that they are for"
        last = max(names, key=list(self.layers).index)
        features = weights.features(images, until=last).features
        return {name: features[name] for name in names}

    def trunk(self, layer: str) -> tuple[str, ...]:
        """All layers below one."""
        names = list(self.layers)
        return tuple(names[: names.index(layer)])

    def resize(self, image_hw: Pair) -> ConvNetEngine | None:
        """Its dense layers take one size."""
        return self if image_hw == self.arch.input_hw else None

    def leaves(self, weights: ConvNet, layer: str) -> Sequence[int]:
        """Kernel and bias."""
        paths = jax.tree_util.tree_leaves_with_path(weights)
        return [i for i, (path, _) in enumerate(paths) if module_path(path) == layer]


class TracedEngine:
    """The layers of a function, read off its equations.

    It takes the arrays of the adapter, then those that the function closes over.
    """

    def __init__(self, adapter: Adapter, image_shape: tuple[int, int, int]) -> None:
        """Trace the function and read its layers."""
        # Compiled programs keep an engine, which must not keep the weights.
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in adapter.read()]
        self.adapter = adapter._replace(read=lambda: shapes)
        self.image_shape = image_shape
        self._sizes: dict[Pair, TracedEngine | None] = {}
        images = jax.ShapeDtypeStruct((_TRACED, *image_shape), jnp.float32)
        program, self.constants, names = self._trace(shapes, images)
        paths = [adapter.closed_over.get(id(array)) for array in self.constants]
        self.paths = [*adapter.paths, *paths]
        self.positions = self._read(program, names)
        used = {number for e in program.equations for number in e.inputs}
        places = [i for i, number in enumerate(program.inputs[:-1]) if number in used]
        self.parameters = program.measure_inputs(places)
        self.layers: Mapping[str, Layer] = types.MappingProxyType(
            {name: position.layer for name, position in self.positions.items()}
        )

    def features(
        self,
        weights: list[Any],
        images: Array,
        names: tuple[str, ...],
        offsets: Mapping[str, Array],
    ) -> dict[str, Array]:
        """Replay the function, traced for this number of images."""
        given = len(self.adapter.paths)
        program, constants, results = self._trace(weights[:given], images)
        positions = self._read(program, results)
        for name in names:
            if name not in positions or positions[name].layer != self.layers[name]:
                raise RuntimeError(
                    f"layer {name} reads differently in this context; shard_map needs "
                    "check_vma=False"
                )
        # A constant whose shape depends on the number of images is not a weight.
        constants = [
            weight if weight.shape == constant.shape else constant
            for weight, constant in zip(weights[given:], constants, strict=True)
        ]
        values = program.run(
            [*weights[:given], *constants, images],
            {positions[name].value for name in names},
            {
                positions[name].value: positions[name].native(
                    offset, program.avals[positions[name].value]
                )
                for name, offset in offsets.items()
            },
        )
        return {
            name: positions[name].canonical(values[positions[name].value])
            for name in names
        }

    def trunk(self, layer: str) -> tuple[str, ...]:
        """Layers that all paths from the images to a layer lead through, in order."""
        images = jax.ShapeDtypeStruct((_TRACED, *self.image_shape), jnp.float32)
        program, _, names = self._trace(self.adapter.read(), images)
        positions = self._read(program, names)
        values = {name: position.value for name, position in positions.items()}
        source, top = program.inputs[-1], values.pop(layer)
        # The numbers of values are in the order of the forward pass.
        return tuple(
            name
            for name in sorted(values, key=values.__getitem__)
            if program.passes(source, top, values[name])
        )

    def resize(self, image_hw: Pair) -> TracedEngine | None:
        """The same function for images of another size; None if it takes one size."""
        if image_hw not in self._sizes:
            other = None
            with contextlib.suppress(Exception):  # Whatever a model raises.
                engine = TracedEngine(self.adapter, (*image_hw, self.image_shape[2]))
                if len(engine.paths) == len(self.paths):
                    other = engine
            # The first of two threads gives both the same engine.
            self._sizes.setdefault(image_hw, other)
        return self._sizes[image_hw]

    def leaves(self, weights: Any, layer: str) -> Sequence[int]:
        """Arrays that the layer's operations take."""
        del weights
        return sorted(self.positions[layer].weights)

    def _trace(
        self, weights: list[Any], images: Any
    ) -> tuple[tracing.Program, list[Any], list[str]]:
        # The names of the results, if the function returns a dict.
        names: list[str] = []

        def run(weights: list[Any], images: Any) -> Any:
            result = self.adapter.apply(weights, images)
            if not isinstance(result, Mapping):
                return [result]
            names[:] = map(str, result)
            return list(result.values())

        try:
            # A reader knows the plain operations, not their fast forms.
            with relu_audit.explain_training_mode(), cpu.use_definitions(True):
                program, results = tracing.trace(run, weights, images)
        except Exception as error:
            if isinstance(error, ValueError) and "model.eval()" in str(error):
                raise
            raise ValueError(self._explain(error)) from error
        for value in results:
            if not (
                isinstance(value, jax.ShapeDtypeStruct)
                and len(value.shape) > 1
                and value.shape[0] == len(images)
            ):
                raise ValueError(
                    f"the model gives {jax.tree.map(_shape, value)} for {len(images)} "
                    "images; it must return one array of logits [images, classes], or "
                    "a dict of activations"
                )
        return *tracing.hoist(program), names

    def _explain(self, error: Exception) -> str:
        """One line for a model that cannot be called with images of this shape."""
        height, width, channels = self.image_shape
        text = str(error).strip().partition("\n")[0]
        hint = ""
        if height <= 4 < min(width, channels):
            hint = "; channels come last: images.transpose(0, 2, 3, 1)"
        return (
            f"the model does not take images of shape (n, {height}, {width}, "
            f"{channels}){hint}: {type(error).__name__}: {text}"
        )

    def _read(
        self, program: tracing.Program, names: Sequence[str]
    ) -> dict[str, Position]:
        if any(
            "random_bits" in tracing.primitives(e.source) for e in program.equations
        ):
            raise ValueError("the model draws random numbers: call model.eval()")
        reader = Reader(program, self.paths)
        positions = reader.read_outputs(names) if names else reader.read()
        _refuse_softmax(program, positions)
        return {position.layer.name: position for position in positions}


Engine = ConvNetEngine | TracedEngine


def _shape(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}"


def _refuse_softmax(program: tracing.Program, positions: Sequence[Position]) -> None:
    """Probabilities saturate: what is projected and attributed are logits."""
    layers = {position.value for position in positions[:-1]}
    values, names = {program.outputs[-1]}, set[str]()
    for equation in reversed(program.equations):
        if values.intersection(equation.outputs) and not layers.intersection(
            equation.outputs
        ):
            names.update(tracing.primitives(equation.source))
            values.update(equation.inputs)
    if {"exp", "reduce_sum"} <= names:
        raise ValueError(
            "the model ends in a softmax: take the logits, the values before it "
            "(Keras: classifier_activation=None)"
        )

"""The layers of any network, read off the equations of its forward pass.

A layer is the output of a convolution or of a matrix product with a constant, after the
bias, the normalization by constants and the ReLU that directly follow; of a pooling; of
a contrast normalization; of any other ReLU; and the result. It is named by the path of
its parameters.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from zfnet_jax import tracing
from zfnet_jax.arch import ReceptiveField
from zfnet_jax.receptive_fields import IMAGES, POOLINGS, Axis, read_views
from zfnet_jax.tracing import Equation, Program

Kind = Literal[
    "conv", "dense", "max pool", "mean pool", "norm", "relu", "named", "output"
]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a network.

    Attributes:
        name: Path of its parameters, or a name by kind and order.
        kind: The operation that gives the layer its name.
        shape: One image's activations: (height, width, channels) or (units,).
        rectified: Whether its activations come from a ReLU.
        receptive_field: Pixels that an activation depends on; None where that is the
            whole image or cannot be known.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    rectified: bool
    receptive_field: ReceptiveField | None


class Position(NamedTuple):
    """Where a layer is in a program.

    Attributes:
        layer: The layer.
        value: Number of the value that holds its activations.
        axes: Meaning of each axis of that value.
        weights: Inputs of the program that the layer's operations take, by number.
    """

    layer: Layer
    value: int
    axes: tuple[Axis, ...]
    weights: frozenset[int]

    def canonical(self, activations: Any) -> Any:
        """Activations as [b, h, w, c] or [b, units], whatever the network's layout."""
        axes = self.axes
        order = [
            i
            for role in ("batch", "rows", "columns", None, "channels")
            for i, axis in enumerate(axes)
            if axis == role
        ]
        ordered = jnp.transpose(activations, order)
        return ordered.reshape(len(ordered), *self.layer.shape)


_SHAPING = {
    *"""broadcast_in_dim convert_element_type copy pvary reshape squeeze
    transpose""".split()
}
_AFFINE = {*"add sub mul div neg".split()}


@dataclasses.dataclass
class _Draft:
    """A layer while its equations are being followed."""

    kind: Kind
    value: int
    name: str | None
    weights: frozenset[int]
    rectified: bool = False


class Reader:
    """Reads the layers of a program.

    Args:
        program: A program whose last input is the batch of images.
        paths: For each other input the path of the module that it is a parameter of,
            or None.
    """

    def __init__(self, program: Program, paths: Sequence[str | None]) -> None:
        """Follow images and constants through the equations."""
        self.program = program
        *weights, images = program.inputs
        self.views = read_views(program, {images: IMAGES})
        # By constant: path of the parameter it comes from, and all inputs it takes.
        self.paths: dict[int, str] = {
            number: path
            for number, path in zip(weights, paths, strict=True)
            if path is not None
        }
        self.weights = {number: frozenset([i]) for i, number in enumerate(weights)}
        self.zeros = {n for n, a in program.constants.items() if tracing.is_zero(a)}
        self.consumers: dict[int, list[Equation]] = collections.defaultdict(list)
        for equation in program.equations:
            for number in set(equation.inputs):
                self.consumers[number].append(equation)
            self._follow_constants(equation)
        self.drafts: list[_Draft] = []
        self.absorbed: set[int] = set()
        # By signal: the last layer that it depends on.
        self.latest: dict[int, int] = {}

    def _follow_constants(self, equation: Equation) -> None:
        if any(number in self.views for number in equation.inputs):
            return
        given = [n for n in equation.inputs if n in self.paths]
        weights = self._weights(equation.inputs)
        for number in equation.outputs:
            if given:
                self.paths[number] = self.paths[given[0]]
            self.weights[number] = weights
            if equation.name in _SHAPING and equation.inputs[0] in self.zeros:
                self.zeros.add(number)

    def _weights(self, numbers: Sequence[int]) -> frozenset[int]:
        return frozenset[int]().union(*(self.weights.get(n, ()) for n in numbers))

    def read(self) -> list[Position]:
        """All layers in the order of the forward pass; names are unique."""
        for equation in self.program.equations:
            signals = [n for n in equation.inputs if n in self.views]
            if not signals:
                continue
            latest = max((self.latest.get(n, -1) for n in signals), default=-1)
            if not self.absorbed.intersection(equation.outputs):
                draft = self._start(equation, signals, latest)
                if draft is not None:
                    self._extend(draft)
                    self._add(draft)
            for number in equation.outputs:
                owner = [i for i, d in enumerate(self.drafts) if d.value == number]
                self.latest[number] = owner[0] if owner else latest
        output = self.program.outputs[0]
        if output not in {draft.value for draft in self.drafts}:
            self._add(_Draft("output", output, "output", frozenset()))
        return [self._position(draft) for draft in self.drafts]

    def read_outputs(self, names: Sequence[str]) -> list[Position]:
        """The program's results as layers of the names given."""
        makers = {n: e for e in self.program.equations for n in e.outputs}
        return [
            self._position(
                _Draft(
                    "named",
                    value,
                    name,
                    frozenset(),
                    value in makers and self._is_relu(makers[value]),
                )
            )
            for name, value in zip(names, self.program.outputs, strict=True)
        ]

    def _start(
        self, equation: Equation, signals: list[int], latest: int
    ) -> _Draft | None:
        """The layer that begins with an equation, if one does."""
        kind = self._kind(equation, signals)
        if kind is None:
            return None
        weights = self._weights(equation.inputs)
        value, name = equation.outputs[0], None
        if kind in ("conv", "dense"):
            paths = [self.paths[n] for n in equation.inputs if n in self.paths]
            name = paths[-1] if paths else None
        elif kind == "named":
            name = equation.params["name"]
        elif kind == "relu":
            name, weights = self._block(signals[0])
        elif latest >= 0:
            suffix = "norm" if kind == "norm" else "pool"
            name = f"{self.drafts[latest].name}.{suffix}"
        return _Draft(kind, value, name, weights, rectified=kind == "relu")

    def _kind(self, equation: Equation, signals: list[int]) -> Kind | None:
        view = self.views[signals[0]]
        if equation.params.get("name") == "contrast_norm":
            return "norm"
        if equation.name == "name":
            return "named"
        if self._is_relu(equation):
            return "relu"
        if equation.name == "conv_general_dilated" and len(signals) == 1:
            return "conv"
        if equation.name == "dot_general" and len(signals) == 1:
            side = equation.inputs.index(signals[0])
            contracted = equation.params["dimension_numbers"][0][side]
            if "channels" in [view.axes[i] for i in contracted]:
                return "dense"
        if equation.name in POOLINGS:
            window = equation.params["window_dimensions"]
            if any(
                size > 1 and axis in ("rows", "columns")
                for size, axis in zip(window, view.axes, strict=True)
            ):
                return "mean pool" if equation.name.endswith("sum") else "max pool"
        if equation.name in ("reduce_sum", "reduce_max"):
            gone = {view.axes[i] for i in equation.params["axes"]}
            if {"rows", "columns"} <= gone:
                return "max pool" if equation.name == "reduce_max" else "mean pool"
        body = tracing.body_of(equation) if len(signals) == 1 else None
        if body is not None and equation.name not in ("scan", "while"):
            inside = set(tracing.primitives(equation.source))
            if "conv_general_dilated" in inside:
                return "conv"
            if inside & POOLINGS:
                return "max pool"
        return None

    def _is_relu(self, equation: Equation) -> bool:
        """Whether an equation is max(x, 0), perhaps with a constant upper bound."""
        signals = [n for n in equation.inputs if n in self.views]
        if len(signals) != 1:
            return False
        if equation.name == "max":
            return bool(self.zeros.intersection(equation.inputs))
        if equation.name == "clamp":
            return equation.inputs[0] in self.zeros and equation.inputs[1] in signals
        body = tracing.body_of(equation)
        if body is None or equation.name in ("scan", "while"):
            return False
        inner = tracing.flatten(body)
        names = [e.name for e in inner.equations if e.name not in _SHAPING]
        zero = any(tracing.is_zero(array) for array in inner.constants.values())
        return zero and names in (["max"], ["max", "min"], ["clamp"])

    def _extend(self, draft: _Draft) -> None:
        """Follow a layer to the end of its bias, normalization and ReLU."""
        value = draft.value
        while len(self.consumers[value]) == 1 and value not in self.program.outputs:
            (equation,) = self.consumers[value]
            signals = [n for n in equation.inputs if n in self.views]
            clipped = draft.rectified and equation.name == "min"
            if len(signals) > 1 or (draft.rectified and not clipped):
                if equation.name != "name":
                    return
            is_affine = equation.name in _AFFINE and (
                draft.kind in ("conv", "dense") or equation.name == "div"
            )
            value = equation.outputs[0]
            if equation.name == "name":
                draft.name = equation.params["name"]
            elif self._is_relu(equation):
                draft.rectified = True
            elif not (is_affine or clipped):
                if equation.name not in _SHAPING or draft.kind not in (
                    "conv",
                    "dense",
                ):
                    return
                continue
            draft.value = value
            draft.weights |= self._weights(equation.inputs)
            self.absorbed.add(value)

    def _block(self, value: int) -> tuple[str | None, frozenset[int]]:
        """Name of a ReLU by itself: its normalization's, or its branches' block."""
        makers = {n: e for e in self.program.equations for n in e.outputs}
        weights = frozenset[int]()
        name = None
        while (equation := makers.get(value)) is not None:
            signals = [n for n in equation.inputs if n in self.views]
            if len(signals) > 1 and equation.name in ("add", "add_any", "concatenate"):
                main = max(self.latest.get(number, -1) for number in signals)
                if name is None and main >= 0:
                    own = self.drafts[main].name or ""
                    name = _parent(own) or f"{own}.relu"
                break
            if len(signals) != 1 or equation.name not in _AFFINE | _SHAPING:
                break
            weights |= self._weights(equation.inputs)
            paths = [self.paths[n] for n in equation.inputs if n in self.paths]
            name = name or (paths[0] if paths else None)
            (value,) = signals
        return name, weights

    def _add(self, draft: _Draft) -> None:
        """Give a layer its name: its own, or by kind and order, and unique."""
        kind = draft.kind.replace(" ", "_")
        count = 1 + sum(other.kind == draft.kind for other in self.drafts)
        stem = draft.name or f"{kind}{count}"
        used = {other.name for other in self.drafts}
        candidates = itertools.chain(
            [stem], (f"{stem}_{i}" for i in itertools.count(2))
        )
        draft.name = next(name for name in candidates if name not in used)
        self.drafts.append(draft)

    def _position(self, draft: _Draft) -> Position:
        axes = self.views[draft.value].axes
        return Position(self._layer(draft), draft.value, axes, draft.weights)

    def _layer(self, draft: _Draft) -> Layer:
        name = draft.name or ""
        view, shape = self.views[draft.value], self.program.avals[draft.value].shape
        sizes = dict[Axis, int]()
        for axis, size in zip(view.axes, shape, strict=True):
            sizes[axis] = sizes.get(axis, 1) * size
        channels = sizes.get("channels", 1)
        if "batch" not in sizes:
            raise ValueError(f"{name}: the network gives nothing for each image")
        field = None
        if "rows" in sizes and "columns" in sizes:
            own = (sizes["rows"], sizes["columns"], channels * sizes.get(None, 1))
            if view.rows and view.columns:
                hw = self.program.avals[self.program.inputs[-1]].shape[1:3]
                size, stride, start = zip(view.rows, view.columns, strict=True)
                field = ReceptiveField(size, stride, start, hw)
        else:
            own = (math.prod(shape) // sizes["batch"],)
        return Layer(name, draft.kind, own, draft.rectified, field)


def _parent(path: str) -> str:
    """The module that holds a module."""
    cut = max(path.rfind("."), path.rfind("/"))
    return path[:cut] if cut > 0 else ""

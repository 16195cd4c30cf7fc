"""The layers of any network, read off the equations of its forward pass.

A layer is the output of a convolution or of a matrix product with a constant, after the
bias, the normalization by constants and the ReLU that directly follow; of a pooling; of
a contrast normalization; of any other ReLU; and the result.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from zfnet_jax import tracing
from zfnet_jax.arch import ReceptiveField
from zfnet_jax.receptive_fields import IMAGES, POOLINGS, Axis, View, read_views
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
        parameters: Size of the weights, biases and constants of a normalization that
            its operations take. Layers that share a weight both count it.
        multiply_adds: Multiplications of its convolution or product for one image,
            those with padding included.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    rectified: bool
    receptive_field: ReceptiveField | None
    # An array that the function makes may grow with the number of images.
    parameters: int = dataclasses.field(compare=False)
    multiply_adds: int


class Position(NamedTuple):
    """Place of a layer in a program.

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
        roles = ["batch", "rows", "columns", None, "channels"]
        order = sorted(range(len(self.axes)), key=lambda i: roles.index(self.axes[i]))
        ordered = jnp.transpose(activations, order)
        return ordered.reshape(len(ordered), *self.layer.shape)

    def native(self, activations: Any, aval: Any) -> Any:
        """Undo `canonical`: activations as the value of the program, like `aval`."""
        value = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
        transpose = jax.linear_transpose(self.canonical, value)
        return transpose(activations.astype(aval.dtype))[0]


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
    weights: frozenset[int] = frozenset()
    rectified: bool = False
    multiply_adds: int = 0  # for all images


@dataclasses.dataclass(frozen=True)
class _Constant:
    """A value that comes from parameters: from a module's, and from which inputs."""

    path: str | None = None
    weights: frozenset[int] = frozenset()
    is_zero: bool = False


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
        self.views = read_views(program, {program.inputs[-1]: IMAGES})
        self.constants = _read_constants(program, paths, self.views)
        self.makers = {n: e for e in program.equations for n in e.outputs}
        self.consumers: dict[int, list[Equation]] = collections.defaultdict(list)
        for equation in program.equations:
            for number in set(equation.inputs):
                self.consumers[number].append(equation)
        self.drafts: list[_Draft] = []
        self.absorbed: set[int] = set()
        # By signal: the layer that it is, and the last layer that it depends on.
        self.owners: dict[int, int] = {}
        self.latest: dict[int, int] = {}

    def read(self) -> list[Position]:
        """All layers in the order of the forward pass; names are unique."""
        for equation in self.program.equations:
            signals, _ = self._split(equation)
            if not signals:
                continue
            latest = max(self.latest.get(number, -1) for number in signals)
            if self.absorbed.isdisjoint(equation.outputs):
                draft = self._start(equation, latest)
                if draft is not None:
                    self._extend(draft)
                    self._add(draft)
            for number in equation.outputs:
                self.latest[number] = self.owners.get(number, latest)
        output = self.program.outputs[0]
        owner = self.owners.get(self._unshaped(output))
        if owner is None:
            self._add(_Draft("output", output, "output"))
        else:
            self.drafts[owner].value = output
        return [self._position(draft) for draft in self.drafts]

    def read_outputs(self, names: Sequence[str]) -> list[Position]:
        """The program's results as layers of the names given."""
        self.read()
        positions = []
        for name, value in zip(names, self.program.outputs, strict=True):
            owner = self.owners.get(self._unshaped(value))
            draft = (
                _Draft("named", value, name) if owner is None else self.drafts[owner]
            )
            is_rectified = self._is_rectified(value)
            draft = dataclasses.replace(
                draft, value=value, name=name, rectified=is_rectified
            )
            positions.append(self._position(draft))
        return positions

    def _unshaped(self, value: int) -> int:
        """The layer that a value only gives another shape, or the value itself.

        A map that is flattened remains a layer of its own.
        """
        while value in self.views and value not in self.owners:
            maker = self.makers.get(value)
            if maker is None or maker.name not in _SHAPING:
                break
            (source,) = maker.inputs
            old, new = (self.program.avals[n].shape for n in (source, value))
            pairs = zip(self.views[source].axes, old, strict=True)
            image = {axis for axis, size in pairs if size > 1} & {"rows", "columns"}
            if math.prod(old) != math.prod(new) or image - {*self.views[value].axes}:
                break
            value = source
        return value

    def _split(self, equation: Equation) -> tuple[list[int], list[_Constant]]:
        """The inputs of an equation: signals, by number, and constants."""
        signals = [n for n in equation.inputs if n in self.views]
        constants = [self.constants[n] for n in equation.inputs if n not in self.views]
        return signals, constants

    def _start(self, equation: Equation, latest: int) -> _Draft | None:
        """The layer that begins with an equation, if one does."""
        signals, constants = self._split(equation)
        kind = self._kind(equation, signals)
        if kind is None:
            return None
        draft = _Draft(kind, equation.outputs[0], None, _weights(constants))
        if kind in ("conv", "dense"):
            paths = [constant.path for constant in constants if constant.path]
            draft.name = paths[-1] if paths else None
            draft.multiply_adds = _count_multiply_adds(equation.source)
        elif kind == "named":
            draft.name = equation.params["name"]
            draft.rectified = self._is_rectified(signals[0])
        elif kind == "relu":
            draft.name, draft.weights = self._block(signals[0])
            draft.rectified = True
        elif latest >= 0:
            suffix = "norm" if kind == "norm" else "pool"
            draft.name = f"{self.drafts[latest].name}.{suffix}"
        return draft

    def _kind(self, equation: Equation, signals: list[int]) -> Kind | None:
        view = self.views[signals[0]]
        if tracing.is_contrast_norm(equation.source):
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
            pairs = zip(equation.params["window_dimensions"], view.axes, strict=True)
            if {axis for size, axis in pairs if size > 1} & {"rows", "columns"}:
                return "mean pool" if equation.name.endswith("sum") else "max pool"
        if equation.name in ("reduce_sum", "reduce_max"):
            gone = {view.axes[i] for i in equation.params["axes"]}
            if {"rows", "columns"} <= gone:
                return "max pool" if equation.name == "reduce_max" else "mean pool"
        if equation.name.startswith("custom") and len(signals) == 1:
            inside = set(tracing.primitives(equation.source))
            if "conv_general_dilated" in inside:
                return "conv"
            if inside & POOLINGS:
                return "max pool"
        return None

    def _is_rectified(self, value: int) -> bool:
        maker = self.makers.get(value)
        return maker is not None and self._is_relu(maker)

    def _is_relu(self, equation: Equation) -> bool:
        """Return whether an equation is max(x, 0), perhaps bounded above."""
        signals, constants = self._split(equation)
        if len(signals) != 1:
            return False
        if equation.name == "max":
            return constants[0].is_zero
        if equation.name == "clamp":
            return equation.inputs[1] in signals and constants[0].is_zero
        if not equation.name.startswith("custom"):
            return False
        inner = tracing.flatten(tracing.bodies(equation.source)[0])
        names = [e.name for e in inner.equations if e.name not in _SHAPING]
        zero = any(map(tracing.is_zero, inner.constants.values()))
        return zero and names in (["max"], ["max", "min"], ["clamp"])

    def _extend(self, draft: _Draft) -> None:
        """Follow a layer to the end of its bias, normalization and ReLU.

        A name given by hand ends it: it is that of the very value it is put on.
        """
        if draft.kind == "named":
            return
        value, has_kernel = draft.value, draft.kind in ("conv", "dense")
        while len(self.consumers[value]) == 1 and value not in self.program.outputs:
            (equation,) = self.consumers[value]
            signals, constants = self._split(equation)
            value = equation.outputs[0]
            if equation.name == "name":
                draft.name, draft.value = equation.params["name"], value
                self.absorbed.add(value)
                return
            if len(signals) > 1:
                return
            elif draft.rectified:
                if equation.name != "min":  # Above which a ReLU is clipped.
                    return
            elif self._is_relu(equation):
                draft.rectified = True
            elif equation.name in _SHAPING and has_kernel:
                continue  # It belongs to the layer if a bias or a ReLU follows.
            elif equation.name not in (_AFFINE if has_kernel else {"div"}):
                return
            draft.value = value
            draft.weights |= _weights(constants)
            self.absorbed.add(value)

    def _block(self, value: int) -> tuple[str | None, frozenset[int]]:
        """Name of a ReLU by itself: its normalization's, or its branches' block."""
        weights = frozenset[int]()
        name = None
        while (equation := self.makers.get(value)) is not None:
            signals, constants = self._split(equation)
            if len(signals) > 1 and equation.name in ("add", "add_any", "concatenate"):
                main = max(self.latest.get(number, -1) for number in signals)
                if name is None and main >= 0:
                    own = self.drafts[main].name or ""
                    name = parent(own) or f"{own}.relu"
                break
            if len(signals) != 1 or equation.name not in _AFFINE | _SHAPING:
                break
            weights |= _weights(constants)
            name = name or next((c.path for c in constants if c.path), None)
            (value,) = signals
        return name, weights

    def _add(self, draft: _Draft) -> None:
        """Give a layer its name: its own, or by kind and order, and unique."""
        kind = draft.kind.replace(" ", "_")
        count = 1 + sum(other.kind == draft.kind for other in self.drafts)
        stem = draft.name or f"{kind}{count}"
        used = {other.name for other in self.drafts}
        more = (f"{stem}_{i}" for i in itertools.count(2))
        draft.name = next(x for x in itertools.chain([stem], more) if x not in used)
        self.owners.setdefault(draft.value, len(self.drafts))
        self.drafts.append(draft)

    def _position(self, draft: _Draft) -> Position:
        name = draft.name or ""
        if draft.value not in self.views:
            raise ValueError("the result does not depend on the images")
        view, shape = self.views[draft.value], self.program.avals[draft.value].shape
        sizes = dict[Axis, int]()
        for axis, size in zip(view.axes, shape, strict=True):
            sizes[axis] = sizes.get(axis, 1) * size
        channels = sizes.get("channels", 1)
        images = self.program.avals[self.program.inputs[-1]].shape[0]
        if sizes.get("batch") != images:
            raise ValueError(
                f"{name}: its activations cannot be told apart by image, as where "
                "pixels are reshaped into the batch; keep the axis of images"
            )
        field = None
        if "rows" in sizes and "columns" in sizes:
            own = (sizes["rows"], sizes["columns"], channels * sizes.get(None, 1))
            if view.rows and view.columns:
                hw = self.program.avals[self.program.inputs[-1]].shape[1:3]
                size, stride, start = zip(view.rows, view.columns, strict=True)
                field = ReceptiveField(size, stride, start, hw)
        else:
            own = (math.prod(shape) // sizes["batch"],)
        layer = Layer(
            name,
            draft.kind,
            own,
            draft.rectified,
            field,
            self.program.measure_inputs(draft.weights),
            draft.multiply_adds // images,
        )
        return Position(layer, draft.value, view.axes, draft.weights)


def _count_multiply_adds(source: core.JaxprEqn) -> int:
    """Multiplications of a convolution or product, or of those that are called."""
    numbers: Any = source.params.get("dimension_numbers")
    shapes: Any = [getattr(x.aval, "shape", ()) for x in source.invars]
    results = math.prod(getattr(source.outvars[0].aval, "shape", ()))
    match source.primitive.name:
        case "conv_general_dilated":
            kernel = shapes[1]
            return results * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        case "dot_general":
            return results * math.prod(shapes[0][i] for i in numbers[0][0])
    inside = (e for body in tracing.bodies(source) for e in body.jaxpr.eqns)
    return sum(map(_count_multiply_adds, inside))


def _read_constants(
    program: Program, paths: Sequence[str | None], views: Mapping[int, View]
) -> dict[int, _Constant]:
    *weights, _ = program.inputs
    constants = {
        n: _Constant(is_zero=tracing.is_zero(a)) for n, a in program.constants.items()
    }
    for index, (number, path) in enumerate(zip(weights, paths, strict=True)):
        constants[number] = _Constant(path, frozenset([index]))
    for equation in program.equations:
        if any(number in views for number in equation.inputs):
            continue
        operands = [constants[number] for number in equation.inputs]
        path = next((operand.path for operand in operands if operand.path), None)
        zero = equation.name in _SHAPING and operands[0].is_zero
        constant = _Constant(path, _weights(operands), zero)
        constants |= dict.fromkeys(equation.outputs, constant)
    return constants


def _weights(constants: Iterable[_Constant]) -> frozenset[int]:
    return frozenset().union(*(constant.weights for constant in constants))


def parent(path: str) -> str:
    """The module that holds a module."""
    cut = max(path.rfind("."), path.rfind("/"))
    return path[:cut] if cut > 0 else ""

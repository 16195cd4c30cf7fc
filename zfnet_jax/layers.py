"""The layers of any network, read off the equations of its forward pass.

A layer is the output of a convolution or of a matrix product with a constant, after the
bias, the normalization by constants and the ReLU that directly follow; of a pooling; of
a contrast normalization; of any other ReLU; and the result. It is named by the path of
its parameters. Its receptive field follows by interval arithmetic on the equations.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from zfnet_jax import tracing
from zfnet_jax.arch import ReceptiveField
from zfnet_jax.tracing import Equation, Program

Kind = Literal[
    "conv", "dense", "max pool", "mean pool", "norm", "relu", "named", "output"
]
Axis = Literal["batch", "rows", "columns", "channels"] | None


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


# Views: what each axis of a value means, and which pixels it sees.


class Span(NamedTuple):
    """Pixels along one axis that position i depends on: `size` from start + stride i."""

    size: int
    stride: int
    start: int

    def through(self, extent: int, stride: int, before: int) -> Span:
        """The span after a window of `extent` positions slides over the axis."""
        return Span(
            self.size + (extent - 1) * self.stride,
            self.stride * stride,
            self.start - before * self.stride,
        )

    def union(self, other: Span) -> Span | None:
        """Both spans, if they move in step."""
        if self.stride != other.stride:
            return None
        start = min(self.start, other.start)
        end = max(self.start + self.size, other.start + other.size)
        return Span(end - start, self.stride, start)


class View(NamedTuple):
    """What is known of a value that depends on the images.

    Attributes:
        axes: Meaning of each axis.
        rows: Rows of pixels that a position sees; None where all or not known.
        columns: Columns of pixels.
    """

    axes: tuple[Axis, ...]
    rows: Span | None = None
    columns: Span | None = None

    def span(self, axis: Axis) -> Span | None:
        """Pixels along the axis of this meaning."""
        return {"rows": self.rows, "columns": self.columns}.get(axis or "")

    def replace_span(self, axis: Axis, span: Span | None) -> View:
        """The view with other pixels along an axis; other axes have none."""
        return self._replace(**{axis: span}) if axis in ("rows", "columns") else self

    def union(self, other: View) -> View:
        """A value that depends on both, with the axes of the first."""
        view = self
        for axis in ("rows", "columns"):
            one, two = self.span(axis), other.span(axis)
            view = view.replace_span(axis, one.union(two) if one and two else None)
        return view


IMAGES = View(("batch", "rows", "columns", "channels"), Span(1, 1, 0), Span(1, 1, 0))

Views = dict[int, View]
Rule = Callable[[Equation, Program, Views], View]


def read_views(program: Program, inputs: dict[int, View]) -> Views:
    """The view of every value that depends on the images.

    Args:
        program: The program.
        inputs: The views of those of its inputs that do, by number.
    """
    views = dict(inputs)
    for equation in program.equations:
        if any(number in views for number in equation.inputs):
            for number, view in zip(
                equation.outputs, _views(equation, program, views), strict=True
            ):
                views[number] = view
    return views


def _views(equation: Equation, program: Program, views: Views) -> list[View]:
    branches = equation.params.get("branches")
    bodies = branches or [tracing.body_of(equation)]
    if equation.name in ("scan", "while") or bodies == [None]:
        rule = _RULES.get(equation.name)
        if rule is not None:
            return [rule(equation, program, views)]
        return [_pointwise(equation, program, views, n) for n in equation.outputs]
    inputs = equation.inputs[1:] if branches else equation.inputs
    results = []
    for body in bodies:
        inner = tracing.flatten(body)
        known = {
            own: views[number]
            for own, number in zip(inner.inputs, inputs, strict=True)
            if number in views
        }
        inner_views = read_views(inner, known)
        results.append([inner_views.get(number) for number in inner.outputs])
    return [
        _union([view for view in group if view is not None])
        or _unknown(program.avals[number].shape)
        for number, group in zip(
            equation.outputs, zip(*results, strict=True), strict=True
        )
    ]


def _union(views: Sequence[View]) -> View | None:
    total = views[0] if views else None
    for view in views[1:]:
        total = total.union(view) if total else None
    return total


def _unknown(shape: tuple[int, ...]) -> View:
    """A value of which nothing is known but its shape."""
    if len(shape) < 2:
        return View(("batch", *[None] * (len(shape) - 1))[: len(shape)])
    return View(("batch", *[None] * (len(shape) - 2), "channels"))


_POINTWISE = {
    *"""abs acos add add_any and asin atan atan2 cbrt ceil clamp convert_element_type
    copy cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow
    is_finite le log log1p logistic lt max min mul name ne neg nextafter not or pow
    reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient
    sub tan tanh xor optimization_barrier""".split()
}


def _pointwise(equation: Equation, program: Program, views: Views, output: int) -> View:
    shape = program.avals[output].shape
    signals = [number for number in equation.inputs if number in views]
    same = [n for n in signals if program.avals[n].shape == shape]
    if not same:
        return _unknown(shape)
    first = views[same[0]]
    if equation.name not in _POINTWISE or len(same) < len(signals):
        return View(first.axes)
    view = _union([views[number] for number in same])
    return view or View(first.axes)


def _convolution(equation: Equation, program: Program, views: Views) -> View:
    image, kernel = equation.inputs
    params = equation.params
    numbers = params["dimension_numbers"]
    view = views.get(image)
    shape = program.avals[equation.outputs[0]].shape
    if (
        view is None
        or kernel in views
        or view.axes[numbers.lhs_spec[0]] != "batch"
        or params["batch_group_count"] != 1
    ):
        return _unknown(shape)
    axes: list[Axis] = [None] * len(shape)
    axes[numbers.out_spec[0]], axes[numbers.out_spec[1]] = "batch", "channels"
    # An axis of pixels that lies where the channels should be is mixed with them.
    view = view.replace_span(view.axes[numbers.lhs_spec[1]], None)
    for k, (axis, out) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        axes[out] = view.axes[axis]
        size = program.avals[kernel].shape[numbers.rhs_spec[2 + k]]
        extent = (size - 1) * params["rhs_dilation"][k] + 1
        span = view.span(axes[out])
        if span is not None:
            known = params["lhs_dilation"][k] == 1
            span = span.through(
                extent, params["window_strides"][k], params["padding"][k][0]
            )
            view = view.replace_span(axes[out], span if known else None)
    return view._replace(axes=tuple(axes))


def _window(equation: Equation, program: Program, views: Views) -> View:
    del program
    view = next(views[number] for number in equation.inputs if number in views)
    params = equation.params
    for k, axis in enumerate(view.axes):
        span = view.span(axis)
        if span is not None:
            known = params["base_dilation"][k] == 1
            dilation = params["window_dilation"][k]
            extent = (params["window_dimensions"][k] - 1) * dilation + 1
            span = span.through(
                extent, params["window_strides"][k], params["padding"][k][0]
            )
            view = view.replace_span(axis, span if known else None)
    return view


def _pad(equation: Equation, program: Program, views: Views) -> View:
    if equation.inputs[0] not in views:
        return _unknown(program.avals[equation.outputs[0]].shape)
    view = views[equation.inputs[0]]
    for axis, (low, _, interior) in zip(
        view.axes, equation.params["padding_config"], strict=True
    ):
        if (span := view.span(axis)) is not None:
            moved = None if interior else span.through(1, 1, low)
            view = view.replace_span(axis, moved)
    return view


def _slice(equation: Equation, program: Program, views: Views) -> View:
    del program
    view = views[equation.inputs[0]]
    starts = equation.params["start_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)
    for axis, start, stride in zip(view.axes, starts, strides, strict=True):
        if (span := view.span(axis)) is not None:
            view = view.replace_span(axis, span.through(1, stride, -start))
    return view


def _concatenate(equation: Equation, program: Program, views: Views) -> View:
    del program
    signals = [views[number] for number in equation.inputs if number in views]
    view = _union(signals) or signals[0]
    return view.replace_span(view.axes[equation.params["dimension"]], None)


def _transpose(equation: Equation, program: Program, views: Views) -> View:
    del program
    view = views[equation.inputs[0]]
    axes = tuple(view.axes[i] for i in equation.params["permutation"])
    return view._replace(axes=axes)


def _squeeze(equation: Equation, program: Program, views: Views) -> View:
    del program
    view = views[equation.inputs[0]]
    gone = equation.params["dimensions"]
    kept = tuple(axis for i, axis in enumerate(view.axes) if i not in gone)
    return view._replace(axes=kept)


def _broadcast(equation: Equation, program: Program, views: Views) -> View:
    view = views[equation.inputs[0]]
    old = program.avals[equation.inputs[0]].shape
    new = program.avals[equation.outputs[0]].shape
    axes: list[Axis] = [None] * len(new)
    for i, out in enumerate(equation.params["broadcast_dimensions"]):
        axes[out] = view.axes[i]
        if old[i] != new[out]:
            view = view.replace_span(view.axes[i], None)
    return view._replace(axes=tuple(axes))


def _reshape(equation: Equation, program: Program, views: Views) -> View:
    view = views[equation.inputs[0]]
    old = program.avals[equation.inputs[0]].shape
    new = program.avals[equation.outputs[0]].shape
    axes: list[Axis] = [None] * len(new)
    for before, after in _groups(old, new):
        roles = [view.axes[i] for i in before if old[i] != 1]
        if not roles and len(before) == len(after):
            roles = [view.axes[i] for i in before]
            after_roles = dict(zip(after, roles, strict=True))
        else:
            wide = [i for i in after if new[i] != 1]
            after_roles = _regroup(roles, wide)
        for i, role in after_roles.items():
            axes[i] = role
    for axis in ("rows", "columns"):
        if axis in view.axes and axis not in axes:
            lost = view.axes.index(axis)
            # A map of one pixel may lose its axes and still be that pixel.
            if old[lost] != 1:
                view = view.replace_span(axis, None)
    return view._replace(axes=tuple(axes))


def _regroup(roles: list[Axis], after: list[int]) -> dict[int, Axis]:
    """Meanings of the axes that some axes are merged into or split into."""
    if len(roles) == len(after):
        return dict(zip(after, roles, strict=True))
    if len(after) == 1:
        merged = [role for role in ("batch", "channels") if role in roles]
        return {after[0]: merged[0] if merged and "batch" not in roles[1:] else None}
    if roles == ["channels"]:
        return dict.fromkeys(after, "channels")
    if roles == ["batch"]:
        return {after[0]: "batch"}
    return {}


def _groups(
    old: tuple[int, ...], new: tuple[int, ...]
) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes before and after a reshape that hold the same elements."""
    i = j = 0
    while i < len(old) and j < len(new):
        before, after = [i], [j]
        left, right = old[i], new[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= old[i]
                before.append(i)
                i += 1
            else:
                right *= new[j]
                after.append(j)
                j += 1
        yield before, after
    yield list(range(i, len(old))), list(range(j, len(new)))


def _reduce(equation: Equation, program: Program, views: Views) -> View:
    view = views[equation.inputs[0]]
    gone = equation.params["axes"]
    for i in gone:
        if view.axes[i] == "batch" and program.avals[equation.inputs[0]].shape[i] > 1:
            raise ValueError(
                "the network mixes the images of a batch, as batch normalization does "
                "in training: call model.eval(), or take the running statistics"
            )
        view = view.replace_span(view.axes[i], None)
    kept = tuple(axis for i, axis in enumerate(view.axes) if i not in gone)
    return view._replace(axes=kept)


def _product(equation: Equation, program: Program, views: Views) -> View:
    left, right = equation.inputs
    contracted, batch = equation.params["dimension_numbers"]
    shape = program.avals[equation.outputs[0]].shape
    if left in views and right in views:
        return _unknown(shape)
    side = 0 if left in views else 1
    view = views[equation.inputs[side]]
    for i in contracted[side]:
        view = view.replace_span(view.axes[i], None)
    axes: list[Axis] = [view.axes[i] for i in batch[side]]
    for number, gone, along in zip(equation.inputs, contracted, batch, strict=True):
        for i in range(len(program.avals[number].shape)):
            if i not in gone and i not in along:
                own = number == equation.inputs[side]
                axes.append(view.axes[i] if own else "channels")
    return view._replace(axes=tuple(axes))


_WINDOWS = {
    *"reduce_window reduce_window_max reduce_window_min reduce_window_sum".split()
}
_RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "pad": _pad,
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
    **dict.fromkeys(_WINDOWS - {"reduce_window"}, _window),
    **dict.fromkeys(
        ["reduce_max", "reduce_min", "reduce_prod", "reduce_sum", "argmax", "argmin"],
        _reduce,
    ),
}


# Layers.

_SHAPING = {
    *"broadcast_in_dim convert_element_type copy reshape squeeze transpose".split()
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
        if equation.name in _WINDOWS:
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
            if inside & _WINDOWS:
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
                field = ReceptiveField(*zip(view.rows, view.columns, strict=True), hw)
        else:
            own = (math.prod(shape) // sizes["batch"],)
        return Layer(name, draft.kind, own, draft.rectified, field)


def _parent(path: str) -> str:
    """The module that holds a module."""
    cut = max(path.rfind("."), path.rfind("/"))
    return path[:cut] if cut > 0 else ""

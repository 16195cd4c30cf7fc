"""Which pixels each value of a program sees: interval arithmetic on its equations.

A convolution, a pooling, a padding or a slice widens, strides or shifts the interval of
pixels that a position depends on; operations on several values unite theirs; a sum over
the map, a flattening or an operation that is not known sees the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from zfnet_jax import tracing
from zfnet_jax.tracing import Equation, Program

Axis = Literal["batch", "rows", "columns", "channels"] | None


class Span(NamedTuple):
    """Pixels along an axis that position i sees: `size` from start + stride i."""

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
    body = tracing.body_of(equation)
    bodies = branches or ([] if body is None else [body])
    if equation.name in ("scan", "while") or not bodies:
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
    is_finite le log log1p logistic lt max min mul name ne neg nextafter not
    optimization_barrier or pow pvary reduce_precision rem round rsqrt select_n sign sin
    sinh sqrt square stop_gradient sub tan tanh xor""".split()
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
                extent, params["window_strides"][k], int(params["padding"][k][0])
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
                extent, params["window_strides"][k], int(params["padding"][k][0])
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
            moved = None if interior else span.through(1, 1, int(low))
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
        roles: list[Axis] = [view.axes[i] for i in before if old[i] != 1]
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
        kept: Axis = "batch" if roles[0] == "batch" else "channels"
        return {after[0]: kept if kept in roles and "batch" not in roles[1:] else None}
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


POOLINGS = {
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
    **dict.fromkeys(POOLINGS - {"reduce_window"}, _window),
    **dict.fromkeys(
        ["reduce_max", "reduce_min", "reduce_prod", "reduce_sum", "argmax", "argmin"],
        _reduce,
    ),
}

"""Which pixels each value of a program sees: interval arithmetic on its equations.

A convolution, a pooling, a padding or a slice widens, strides or shifts the interval of
pixels that a position depends on; operations on several values unite theirs; a sum over
the map, a flattening or an unknown operation sees the whole image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Literal, NamedTuple

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
    """Facts about a value that depends on the images.

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
        """A value of the same shape that depends on both, with what either knows."""
        pairs = zip(self.axes, other.axes, strict=True)
        view = View(tuple(_meaning(one, two) for one, two in pairs))
        for axis in ("rows", "columns"):
            one, two = self.span(axis), other.span(axis)
            if one and two and self.places(axis) == other.places(axis):
                view = view.replace_span(axis, one.union(two))
        return view

    def places(self, axis: Axis) -> list[int]:
        """Indices of the axes of this meaning."""
        return [i for i, own in enumerate(self.axes) if own == axis]

    def take(self, axes: Iterable[int]) -> View:
        """The view with some of its axes, by index."""
        return self._replace(axes=tuple(self.axes[i] for i in axes))

    def drop(self, axes: Collection[int]) -> View:
        """The view without some of its axes."""
        return self.take(i for i in range(len(self.axes)) if i not in axes)

    def forget(self, axes: Iterable[int]) -> View:
        """The view after all pixels along some axes are mixed."""
        view = self
        for i in axes:
            view = view.replace_span(self.axes[i], None)
        return view

    def slide(self, windows: Iterable[tuple[int, int, int] | None]) -> View:
        """The view after a window slides over every axis.

        Args:
            windows: For each axis extent, stride and padding before the first position;
                None if its positions are not evenly spaced.
        """
        view = self
        for axis, window in zip(self.axes, windows, strict=True):
            if span := view.span(axis):
                view = view.replace_span(
                    axis, span.through(*window) if window else None
                )
        return view


def _meaning(one: Axis, two: Axis) -> Axis:
    """Meaning of an axis in two views; that of channels is often only a guess."""
    return two if one is None or (one == "channels" and two is not None) else one


IMAGES = View(("batch", "rows", "columns", "channels"), Span(1, 1, 0), Span(1, 1, 0))


def read_views(program: Program, inputs: dict[int, View]) -> dict[int, View]:
    """The view of every value that depends on the images, from those of the inputs."""
    views = dict(inputs)
    for equation in program.equations:
        operands = [views.get(number) for number in equation.inputs]
        if not any(operands):
            continue
        name, params = equation.name, equation.params
        shapes = [program.avals[number].shape for number in equation.inputs]
        inside = _views_inside(equation, operands) if name in _CALLS else None
        for index, number in enumerate(equation.outputs):
            shape = program.avals[number].shape
            operation = Operation(name, params, operands, shapes, shape)
            rule = _RULES.get(name, _pointwise)
            known = inside[index] if inside else rule(operation)
            views[number] = known or _unknown(operation)
    return views


_CALLS = {"cond", "jit", "custom_jvp_call", "custom_vjp_call"}


def _views_inside(equation: Equation, operands: list[View | None]) -> list[View | None]:
    """Results of the function that an equation calls; of all branches of a `cond`."""
    results = []
    for body in tracing.bodies(equation.source):
        inner = tracing.flatten(body)
        # The first operand of a `cond` chooses the branch.
        own = operands[len(operands) - len(inner.inputs) :]
        given = {n: view for n, view in zip(inner.inputs, own, strict=True) if view}
        views = read_views(inner, given)
        results.append([views.get(number) for number in inner.outputs])
    groups = ([*filter(None, group)] for group in zip(*results, strict=True))
    views = [functools.reduce(View.union, group) if group else None for group in groups]
    if equation.name == "cond" and operands[0]:
        # The pixels that choose the branch count, too.
        return [View(view.axes) if view else None for view in views]
    return views


class Operation(NamedTuple):
    """An equation, as far as a rule needs to know it."""

    name: str
    params: dict[str, Any]
    operands: list[View | None]  # None for a constant
    shapes: list[tuple[int, ...]]  # of the operands
    shape: tuple[int, ...]  # of the result

    @property
    def view(self) -> View:
        """View of the first operand that is not a constant."""
        return next(view for view in self.operands if view)


def _unknown(operation: Operation) -> View:
    """A value whose axes are those of its signals if there are as many."""
    count = len(operation.shape)
    similar = [view for view in operation.operands if view and len(view.axes) == count]
    if similar:
        return View(functools.reduce(View.union, similar).axes)
    return _guess(operation)


def _guess(operation: Operation) -> View:
    """A value of which nothing is known but its shape."""
    count = len(operation.shape)
    if count < 2:
        return View(("batch",)[:count])
    return View(("batch", *[None] * (count - 2), "channels"))


_POINTWISE = {
    *"""abs acos add add_any and asin atan atan2 cbrt ceil clamp convert_element_type
    copy cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow
    is_finite le log log1p logistic lt max min mul name ne neg nextafter not
    optimization_barrier or pow pvary reduce_precision rem round rsqrt select_n sign sin
    sinh sqrt square stop_gradient sub tan tanh xor""".split()
}


def _pointwise(operation: Operation) -> View:
    """Also of operations that are not known: they may mix all pixels."""
    pairs = zip(operation.operands, operation.shapes, strict=True)
    signals = [(view, shape) for view, shape in pairs if view]
    same = [view for view, shape in signals if shape == operation.shape]
    if not same:
        return _unknown(operation)
    view = functools.reduce(View.union, same)
    if operation.name not in _POINTWISE or len(same) < len(signals):
        return View(view.axes)
    return view


def _windows(
    params: dict[str, Any], extents: Iterable[int], base: str, dilation: str
) -> Iterator[tuple[int, int, int] | None]:
    """Arguments of `View.slide`, from the names of the parameters that dilate."""
    names = "window_strides", "padding", base, dilation
    for extent, stride, (before, _), apart, step in zip(
        extents, *(params[name] for name in names), strict=True
    ):
        yield ((extent - 1) * step + 1, stride, int(before)) if apart == 1 else None


_CONVOLUTION: tuple[Axis, ...] = ("batch", "channels", "rows", "columns")


def _convolution(operation: Operation) -> View:
    params, (view, kernel) = operation.params, operation.operands
    numbers = params["dimension_numbers"]
    batch, channels, *pixels = numbers.lhs_spec
    if (
        view is None
        or kernel is not None
        or view.axes[batch] not in ("batch", None)
        or view.axes[channels] == "batch"
        or params["batch_group_count"] != 1
    ):
        return _guess(operation)
    if len(pixels) == 2 and {view.axes[i] for i in pixels} != {"rows", "columns"}:
        # Its own layout tells what an earlier operation did not.
        axes = dict(zip([batch, channels, *pixels], _CONVOLUTION, strict=True))
        view = View(tuple(axes[i] for i in range(4)))
    extents = [operation.shapes[1][i] for i in numbers.rhs_spec[2:]]
    # An axis of pixels that lies where the channels should be is mixed with them.
    view = view.forget([channels]).take(pixels)
    view = view.slide(_windows(params, extents, "lhs_dilation", "rhs_dilation"))
    view = view._replace(axes=("batch", "channels", *view.axes))
    return view.take(map(numbers.out_spec.index, range(len(numbers.out_spec))))


def _window(operation: Operation) -> View:
    params = operation.params
    extents = params["window_dimensions"]
    windows = _windows(params, extents, "base_dilation", "window_dilation")
    return operation.view.slide(windows)


def _pad(operation: Operation) -> View:
    view, edges = operation.operands[0], operation.params["padding_config"]
    if view is None:
        return _unknown(operation)
    return view.slide(
        None if interior else (1, 1, int(low)) for low, _, interior in edges
    )


def _slice(operation: Operation) -> View:
    starts = operation.params["start_indices"]
    strides = operation.params["strides"] or (1,) * len(starts)
    return operation.view.slide(
        (1, stride, -start) for start, stride in zip(starts, strides, strict=True)
    )


def _concatenate(operation: Operation) -> View:
    view = functools.reduce(View.union, filter(None, operation.operands))
    return view.forget([operation.params["dimension"]])


def _broadcast(operation: Operation) -> View:
    view, places = operation.view, operation.params["broadcast_dimensions"]
    pairs = zip(operation.shapes[0], places, strict=True)
    repeated = [i for i, (n, out) in enumerate(pairs) if n != operation.shape[out]]
    axes = dict(zip(places, view.axes, strict=True))
    return view.forget(repeated)._replace(
        axes=tuple(axes.get(i) for i in range(len(operation.shape)))
    )


def _reshape(operation: Operation) -> View:
    view, old, new = operation.view, operation.shapes[0], operation.shape
    axes = dict[int, Axis]()
    mixed = list[int]()
    for before, after in _groups(old, new):
        wide = [i for i in before if old[i] != 1]
        if not wide and len(before) == len(after):
            axes.update(zip(after, (view.axes[i] for i in before), strict=True))
        else:
            roles: list[Axis] = [view.axes[i] for i in wide]
            parts = [i for i in after if new[i] != 1]
            axes |= _regroup(roles, parts)
            if len(wide) > 1 or len(parts) > 1:
                mixed += wide
    # A map of one pixel may lose its axes and still be that pixel.
    return view.forget(mixed)._replace(axes=tuple(map(axes.get, range(len(new)))))


def _regroup(roles: list[Axis], after: list[int]) -> dict[int, Axis]:
    """Meanings of the axes that some axes are merged into or split into."""
    if len(roles) == len(after):
        return dict(zip(after, roles, strict=True))
    known: list[Axis] = [role for role in roles if role is not None]
    if len(after) == 1:
        if "batch" in roles[1:]:
            return {}
        if len(known) == 1:
            return dict.fromkeys(after, known[0])
        kept: Axis = "batch" if roles[0] == "batch" else "channels"
        return {after[0]: kept if kept in roles else None}
    if roles == ["channels"]:
        return dict.fromkeys(after, "channels")
    return {after[0]: roles[0]} if len(roles) == 1 else {}


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


def _reduce(operation: Operation) -> View:
    view, gone = operation.view, [*map(int, operation.params["axes"])]
    if any(view.axes[i] == "batch" and operation.shapes[0][i] > 1 for i in gone):
        raise ValueError(
            "the network mixes the images of a batch, as batch normalization does "
            "in training: call model.eval() (Equinox: eqx.nn.inference_mode), or take "
            "the running statistics"
        )
    return view.forget(gone).drop(gone)


def _collective(operation: Operation) -> View:
    """A sum over devices, or over an axis of its operand where `vmap` has named it."""
    if any(isinstance(axis, str) for axis in operation.params["axes"]):
        return _pointwise(operation)
    return _reduce(operation)


def _product(operation: Operation) -> View:
    if all(operation.operands):
        return _guess(operation)
    signal = 0 if operation.operands[0] else 1
    contracted, batch = operation.params["dimension_numbers"]
    free = [
        [i for i in range(len(shape)) if i not in (*contracted[side], *batch[side])]
        for side, shape in enumerate(operation.shapes)
    ]
    view = operation.view.forget(contracted[signal])
    given: Axis = "channels"
    if len(contracted[signal]) == len(free[1 - signal]) == 1:
        # A matrix along the rows alone, as of a resize, gives rows.
        role = view.axes[contracted[signal][0]]
        given = role if role in ("rows", "columns") else "channels"
    own: list[Axis] = [view.axes[i] for i in free[signal]]
    new = [given] * len(free[1 - signal])
    shared = [view.axes[i] for i in batch[signal]]
    axes = (*shared, *own, *new) if signal == 0 else (*shared, *new, *own)
    return view._replace(axes=axes)


POOLINGS = {
    *"reduce_window reduce_window_max reduce_window_min reduce_window_sum".split()
}
_RULES: dict[str, Callable[[Operation], View]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "pad": _pad,
    "reshape": _reshape,
    "slice": _slice,
    "split": lambda operation: operation.view.forget([operation.params["axis"]]),
    "squeeze": lambda operation: operation.view.drop(operation.params["dimensions"]),
    "transpose": lambda operation: operation.view.take(operation.params["permutation"]),
    **dict.fromkeys(POOLINGS, _window),
    **dict.fromkeys(
        """argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod
        reduce_sum reduce_xor""".split(),
        _reduce,
    ),
    **dict.fromkeys(["psum", "psum_invariant", "pmax", "pmin"], _collective),
}

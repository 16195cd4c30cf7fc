"""Programs: a JAX function as one flat list of equations that can be read and replayed.

Every `jit` and `checkpoint` is inlined, and the arrays that the function closes over
become inputs. Reading a network is then a loop over equations, and replaying it can
hand out any value on the way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core, source_info_util

from zfnet_jax import ops
from zfnet_jax.arch import Conv, MaxPool


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """An equation of a jaxpr; the values it takes and gives are numbers."""

    source: core.JaxprEqn
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self.source.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the primitive."""
        return self.source.params

    def run(self, *values: Any) -> Sequence[Any]:
        """Apply the operation; its source line stays that of the original.

        Convolutions and max pooling go through `ops`: the same values with a faster
        backward pass on the CPU, and the first of equal values wins everywhere.
        """
        if self.name in _OPERATIONS:
            result = _OPERATIONS[self.name](self, *values)
            if result is not None:
                return [result]
        with at_source(self.source):
            return bind(self.source, values)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A function as a flat list of equations.

    Values are numbers; `avals` holds the shape and dtype of each.

    Attributes:
        equations: In order; only those that the outputs depend on.
        avals: Shape and dtype of every value.
        inputs: Values of the function's arguments, flattened.
        constants: Values that do not depend on the arguments.
        outputs: Values that the function returns, flattened.
    """

    equations: list[Equation]
    avals: list[Any]
    inputs: list[int]
    constants: dict[int, Any]
    outputs: list[int]

    def run(
        self,
        arguments: Sequence[Any],
        wanted: Collection[int],
        offsets: Mapping[int, Any],
    ) -> dict[int, Any]:
        """Replay the program, add to some values, and return those asked for."""
        values = dict(self.constants)
        values.update(zip(self.inputs, arguments, strict=True))
        for equation in self.needed(wanted):
            results = equation.run(*(values[number] for number in equation.inputs))
            for number, result in zip(equation.outputs, results, strict=True):
                is_moved = number in offsets
                values[number] = result + offsets[number] if is_moved else result
        return {number: values[number] for number in wanted}

    def passes(self, source: int, target: int, value: int) -> bool:
        """Return whether every path from one value to another leads through a third."""
        kept = self.needed([target], given=[value])
        return not any(source in equation.inputs for equation in kept)

    def measure_inputs(self, places: Iterable[int]) -> int:
        """Number of values in some of the inputs, by place."""
        return sum(math.prod(self.avals[self.inputs[i]].shape) for i in places)

    def needed(
        self, wanted: Collection[int], given: Collection[int] = ()
    ) -> list[Equation]:
        """The equations that some values depend on if others are given, in order."""
        missing, kept = set(wanted), []
        for equation in reversed(self.equations):
            if not missing.isdisjoint(equation.outputs):
                missing.update(set(equation.inputs).difference(given))
                kept.append(equation)
        return kept[::-1]


def trace(function: Callable[..., Any], *arguments: Any) -> tuple[Program, Any]:
    """Trace a function into a program, and give the shapes of its result."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return flatten(closed), shapes


def flatten(closed: core.ClosedJaxpr) -> Program:
    """Inline every `jit` and `checkpoint`, and drop equations that nothing needs."""
    avals: list[Any] = []
    constants: dict[int, Any] = {}
    equations: list[Equation] = []

    def value(aval: Any) -> int:
        avals.append(aval)
        return len(avals) - 1

    def constant(array: Any) -> int:
        number = value(jax.typeof(array))
        constants[number] = array
        return number

    def inline(
        closed: core.ClosedJaxpr, inputs: Sequence[int], caller: Any = None
    ) -> list[int]:
        jaxpr = closed.jaxpr
        numbers = dict(zip(jaxpr.invars, inputs, strict=True))
        numbers.update(zip(jaxpr.constvars, map(constant, closed.consts), strict=True))

        def number(atom: core.Var | core.Literal) -> int:
            if isinstance(atom, core.Literal):
                return constant(atom.val)
            return numbers[atom]

        for source in jaxpr.eqns:
            given = tuple(map(number, source.invars))
            if caller and not source_info_util.summarize(source.source_info):
                # Inside a function of JAX the user's line is that of the call.
                source = source.replace(source_info=caller)
            if _is_inlined(source):
                results = inline(bodies(source)[0], given, source.source_info)
            else:
                results = [value(variable.aval) for variable in source.outvars]
                equations.append(Equation(source, given, tuple(results)))
            numbers.update(zip(source.outvars, results, strict=True))
        return list(map(number, jaxpr.outvars))

    inputs = [value(variable.aval) for variable in closed.jaxpr.invars]
    outputs = inline(closed, inputs)
    program = Program(equations, avals, inputs, constants, outputs)
    return dataclasses.replace(program, equations=program.needed(outputs))


def hoist(program: Program) -> tuple[Program, list[Any]]:
    """Turn the arrays that a program holds into inputs before its last one.

    A compiled program then does not contain its weights. Scalars stay, and zeros: a
    maximum with them is a ReLU.
    """
    arrays = {
        number: array
        for number, array in program.constants.items()
        if np.ndim(array) and not is_zero(array)
    }
    constants = {n: a for n, a in program.constants.items() if n not in arrays}
    *first, last = program.inputs
    inputs = [*first, *arrays, last]
    hoisted = dataclasses.replace(program, constants=constants, inputs=inputs)
    return hoisted, list(arrays.values())


def bodies(source: core.JaxprEqn) -> list[core.ClosedJaxpr]:
    """The functions inside an equation through which a signal passes."""
    match source.primitive.name:
        case "cond":
            return [*source.params["branches"]]
        case "while":
            return [source.params["body_jaxpr"]]
        case "jit" | "scan":
            return [source.params["jaxpr"]]
        case "remat2" | "checkpoint":
            return [core.ClosedJaxpr(source.params["jaxpr"], ())]
        case "custom_jvp_call" | "custom_vjp_call":
            return [source.params["call_jaxpr"]]
    return []


def is_contrast_norm(source: core.JaxprEqn) -> bool:
    """Recognize `ops.contrast_norm`, which is jitted under its name."""
    if source.primitive.name != "jit" or source.params["name"] != "contrast_norm":
        return False
    inputs, outputs = ([x.aval for x in s] for s in (source.invars, source.outvars))
    return len(inputs) == 1 and inputs == outputs


def _is_inlined(source: core.JaxprEqn) -> bool:
    # The ReLU rules know the contrast normalization by its `jit`.
    name = source.primitive.name
    return name in ("jit", "remat2", "checkpoint") and not is_contrast_norm(source)


def primitives(source: core.JaxprEqn) -> Iterator[str]:
    """Names of the primitives of an equation, at any depth."""
    yield source.primitive.name
    for inner in jax.tree.leaves(list(source.params.values())):
        for equation in getattr(getattr(inner, "jaxpr", inner), "eqns", ()):
            yield from primitives(equation)


@contextlib.contextmanager
def at_source(source: core.JaxprEqn) -> Iterator[None]:
    """Whatever runs inside has the source line, names and context of an equation."""
    info = source.source_info
    stack = source_info_util.current_name_stack() + info.name_stack
    with (
        source_info_util.user_context(info.traceback, name_stack=stack),
        source.ctx.manager,
    ):
        yield


def bind(source: core.JaxprEqn, operands: Sequence[Any], **changes: Any) -> list[Any]:
    """Run an equation, with some of its parameters changed."""
    params = source.primitive.get_bind_params(source.params | changes)
    results = source.primitive.bind(*operands, **params)
    return [*results] if source.primitive.multiple_results else [results]


def _convolve(equation: Equation, x: Any, kernel: Any) -> Any:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    rows_columns = numbers.lhs_spec[2:]
    if (
        len(rows_columns) != 2
        or {*params["lhs_dilation"], *params["rhs_dilation"]} != {1}
        or params["batch_group_count"] != 1
        or min(itertools.chain(*params["padding"])) < 0
        or params["precision"] is not None
        or params["preferred_element_type"] not in (None, x.dtype)
    ):
        return None
    features, inputs, *size = numbers.rhs_spec
    kernel = jnp.transpose(kernel, (*size, inputs, features))
    spec = Conv(
        "",
        kernel.shape[-1],
        kernel.shape[:2],
        params["window_strides"],
        params["padding"],
        params["feature_group_count"],
    )
    batch, channels = numbers.lhs_spec[:2]
    y = ops.conv(jnp.transpose(x, (batch, *rows_columns, channels)), kernel, spec)
    batch, channels, *rows_columns = numbers.out_spec
    return jnp.transpose(y, np.argsort([batch, *rows_columns, channels]).tolist())


def _max_pool(equation: Equation, x: Any) -> Any:
    params = equation.params
    windows, strides = params["window_dimensions"], params["window_strides"]
    axes = [i for i in range(1, x.ndim) if (windows[i], strides[i]) != (1, 1)]
    if (
        len(axes) != 2
        or (windows[0], strides[0]) != (1, 1)
        or {*params["base_dilation"], *params["window_dilation"]} != {1}
        or any(any(edges) for i, edges in enumerate(params["padding"]) if i not in axes)
        or not jnp.issubdtype(x.dtype, jnp.floating)
    ):
        return None
    kernel, stride, padding = (
        (edges[axes[0]], edges[axes[1]])
        for edges in (windows, strides, params["padding"])
    )
    spec = MaxPool("", kernel, stride, padding)
    rest = [i for i in range(1, x.ndim) if i not in axes]
    order = (0, *axes, *rest)
    maps = jnp.transpose(x, order)
    y, _ = ops.max_pool(maps.reshape(*maps.shape[:3], -1), spec)
    y = y.reshape(*y.shape[:3], *maps.shape[3:])
    return jnp.transpose(y, np.argsort(order).tolist())


_OPERATIONS = {"conv_general_dilated": _convolve, "reduce_window_max": _max_pool}


def is_zero(array: Any) -> bool:
    """Return whether a constant is known to be 0 throughout."""
    return not isinstance(array, Tracer) and not np.any(np.asarray(array))
